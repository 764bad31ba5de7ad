import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.strategies import layer_times, splits

from headrace.plan.policies import (
    LayerTimes,
    Policy,
    best_fraction,
    kvpr_fraction,
    layer_time_s,
    policy_times,
    recompute_fraction,
)

GRID = np.linspace(0, 1, 2001)
REBUILDING = [Policy.KVPR, Policy.RECOMPUTE]


def times_on_grid(policy, times):
    """The schedules' times on a grid, written out anew."""
    link_s = times.recompute_link_s * GRID + times.stream_link_s * (1 - GRID)
    rebuilt_s = times.rebuild_gpu_s * GRID + times.attend_gpu_s
    if policy is Policy.RECOMPUTE:
        return np.maximum(link_s, times.fixed_gpu_s + rebuilt_s)
    x_or_dense_s = np.maximum(times.recompute_link_s * GRID, times.fixed_gpu_s)
    return np.maximum(link_s, x_or_dense_s + rebuilt_s)


@pytest.mark.parametrize("policy", REBUILDING)
@given(times=layer_times())
@settings(max_examples=1000)
def test_closed_form_is_no_slower_than_any_fraction_on_a_grid(policy, times):
    fraction = best_fraction(policy, times)
    assert 0 <= fraction <= 1
    best = times_on_grid(policy, times).min()
    reached = layer_time_s(policy, times, fraction)
    assert reached <= best * (1 + 1e-9)
    steepest = times.stream_link_s + times.recompute_link_s + times.rebuild_gpu_s
    assert reached >= best - steepest / (len(GRID) - 1)


@given(times=layer_times())
@settings(max_examples=1000)
def test_the_paper_formula_is_the_case_without_other_work(times):
    bare = LayerTimes(times.stream_link_s, times.recompute_link_s, times.rebuild_gpu_s)
    paper_s = times.recompute_link_s * GRID + np.maximum(
        times.rebuild_gpu_s * GRID, times.stream_link_s * (1 - GRID)
    )
    at_best = layer_time_s(Policy.KVPR, bare, kvpr_fraction(bare))
    assert at_best <= paper_s.min() * (1 + 1e-9)
    np.testing.assert_allclose(times_on_grid(Policy.KVPR, bare), paper_s, rtol=1e-9)


@given(
    kv_bytes=st.floats(1e2, 1e6),
    ratio=st.floats(0.1, 3),
    rebuild_flops=st.floats(1e4, 1e10),
    link=st.floats(1e8, 1e12),
    gemm=st.floats(1e11, 1e16),
)
def test_recompute_fraction_is_the_formula_of_the_design(
    kv_bytes, ratio, rebuild_flops, link, gemm
):
    times = LayerTimes.from_rates(kv_bytes, ratio * kv_bytes, rebuild_flops, link, gemm)
    expected = 0.0
    if ratio < 1:
        expected = min(1.0, 1 / (1 - ratio + rebuild_flops * link / (kv_bytes * gemm)))
    assert math.isclose(recompute_fraction(times), expected, rel_tol=1e-6)


@given(times=layer_times())
def test_recompute_is_never_slower_than_the_paper_nor_than_stream(times):
    reached = policy_times(times)
    assert reached[Policy.RECOMPUTE] <= reached[Policy.KVPR] * (1 + 1e-12)
    assert reached[Policy.RECOMPUTE] <= reached[Policy.STREAM] * (1 + 1e-12)
    assert reached[Policy.RESIDENT] <= reached[Policy.RECOMPUTE] * (1 + 1e-12)


@given(times=layer_times(), faster=st.floats(1, 100))
def test_more_bandwidth_is_never_slower(times, faster):
    quicker = LayerTimes(
        times.stream_link_s / faster,
        times.recompute_link_s / faster,
        times.rebuild_gpu_s,
        times.attend_gpu_s,
        times.fixed_gpu_s,
    )
    before, after = policy_times(times), policy_times(quicker)
    assert all(after[policy] <= before[policy] * (1 + 1e-12) for policy in before)


@given(split=splits(), admitted=st.integers(0, 1000), newer=st.integers(0, 1000))
def test_a_split_that_grows_still_sums_to_one(split, admitted, newer):
    grown = split.grown(admitted, admitted + newer)
    total = grown.resident + grown.stream + grown.recompute + grown.host
    assert math.isclose(total, 1, abs_tol=1e-9)
    assert grown.recompute <= split.recompute
    assert (
        math.isclose(grown.recompute * (admitted + newer), split.recompute * admitted, abs_tol=1e-6)
        or grown == split
    )
