import pytest

from headrace.errors import ConfigurationError
from headrace.plan.policies import (
    LayerTimes,
    Policy,
    Split,
    best_fraction,
    kvpr_fraction,
    layer_time_s,
    recompute_fraction,
    recompute_split,
    resident_split,
    stream_split,
)


def test_nothing_is_rebuilt_where_x_is_no_smaller_than_kv():
    times = LayerTimes(stream_link_s=1.0, recompute_link_s=1.0, rebuild_gpu_s=0.0)
    assert recompute_fraction(times) == kvpr_fraction(times) == 0.0


def test_nothing_is_rebuilt_where_the_device_is_the_bottleneck():
    times = LayerTimes(1.0, 0.5, 0.2, attend_gpu_s=0.4, fixed_gpu_s=0.7)
    assert recompute_fraction(times) == kvpr_fraction(times) == 0.0


def test_everything_is_rebuilt_where_rebuilding_is_free():
    times = LayerTimes(1.0, 0.5, 0.0)
    assert recompute_fraction(times) == 1.0
    assert kvpr_fraction(times) == 1.0
    assert layer_time_s(Policy.RECOMPUTE, times, 1.0) == 0.5


def test_crossing_with_all_terms():
    times = LayerTimes(1.0, 0.5, 0.5, attend_gpu_s=0.1, fixed_gpu_s=0.2)
    assert recompute_fraction(times) == pytest.approx(0.7)
    assert layer_time_s(Policy.RECOMPUTE, times, 0.7) == pytest.approx(0.65)
    assert kvpr_fraction(times) == pytest.approx(0.6)
    assert layer_time_s(Policy.KVPR, times, 0.6) == pytest.approx(0.7)


def test_policies_that_rebuild_nothing():
    times = LayerTimes(1.0, 0.5, 0.1, 0.2, 0.3)
    assert best_fraction(Policy.STREAM, times) == best_fraction(Policy.RESIDENT, times) == 0.0
    assert layer_time_s(Policy.STREAM, times) == 1.0
    assert layer_time_s(Policy.RESIDENT, times) == 0.5


@pytest.mark.parametrize("policy", [Policy.HOST, Policy.AUTO])
def test_no_closed_form(policy):
    with pytest.raises(ConfigurationError, match="closed forms"):
        layer_time_s(policy, LayerTimes(1.0, 0.5, 0.1))


@pytest.mark.parametrize(
    "fractions", [{}, {"stream": 0.9}, {"stream": 1.5, "recompute": -0.5}, {"stream": float("nan")}]
)
def test_a_split_is_validated(fractions):
    with pytest.raises(ConfigurationError, match="sum to 1"):
        Split(**fractions)


def test_named_splits():
    assert stream_split() == Split(stream=1.0)
    assert resident_split() == Split(resident=1.0)
    assert recompute_split(0.25) == Split(stream=0.75, recompute=0.25)


def test_new_tokens_are_kv():
    assert recompute_split(0.5).grown(100, 200) == Split(stream=0.75, recompute=0.25)
    assert resident_split().grown(100, 200) == resident_split()
    assert recompute_split(0.5).grown(0, 0) == recompute_split(0.5)
