import math
from dataclasses import replace

import pytest

from headrace.errors import ProfileError
from headrace.hardware.catalog import machine
from headrace.hardware.profile import Measurement


def test_rates_fall_back_to_the_memories():
    profile = replace(machine("a100-40gb-pcie4"), host_attend_bytes_per_s=None)
    assert profile.attend_rate == profile.dense_rate(8) == profile.device_bytes_per_s
    assert profile.host_attend_rate == profile.host_bytes_per_s
    measured = replace(
        profile, attend_bytes_per_s=1.0, dense_bytes_per_s=2.0, host_attend_bytes_per_s=3.0
    )
    assert (measured.attend_rate, measured.dense_rate(8), measured.host_attend_rate) == (1, 2, 3)


@pytest.mark.parametrize(
    ("rows", "seconds"),  # a byte takes 1 s with 2 rows, 2 s with 4, and 8 s with 10
    [(1, 1), (2, 1), (3, 1.5), (4, 2), (7, 5), (10, 8), (20, 18), (40, 38), (400, 38)],
)
def test_dense_work_by_rows_is_interpolated_and_continued(rows, seconds):
    curve = ((2, 1.0), (4, 0.5), (10, 0.125))
    profile = replace(machine("t4-pcie3"), dense_curve=curve)
    assert 1 / profile.dense_rate(rows) == pytest.approx(seconds)
    assert profile.dense_rate(rows, resident=True) == profile.dense_rate(rows)
    both = replace(profile, resident_curve=((1, 7.0),))
    assert both.dense_rate(rows, resident=True) == 7
    assert both.dense_rate(rows) == profile.dense_rate(rows)


def test_what_gets_faster_with_more_rows_is_not_continued():
    profile = replace(machine("t4-pcie3"), dense_curve=((1, 1.0), (8, 2.0)))
    assert profile.dense_rate(16) == 2.0


def test_a_rate_by_rows_must_be_above_0():
    with pytest.raises(ProfileError, match=r"dense_curve at 8 is 0\.0; it must be above 0"):
        replace(machine("t4-pcie3"), dense_curve=((1, 1.0), (8, 0.0)))


def test_matrix_product_rate():
    assert machine("a100-40gb-pcie4").gemm_rate("bfloat16") == 312e12


def test_a_missing_matrix_product_rate_names_those_there_are():
    with pytest.raises(
        ProfileError, match=r"no matrix product rate for bfloat16.*float16, float32"
    ):
        machine("t4-pcie3").gemm_rate("bfloat16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h2d_bytes_per_s": 0.0}, "h2d_bytes_per_s is 0.0; it must be above 0"),
        ({"device_bytes_per_s": math.nan}, "device_bytes_per_s is nan"),
        ({"gemm_flops_per_s": {"float32": -1.0}}, r"gemm_flops_per_s\[float32\] is -1.0"),
        ({"h2d_curve": ((1024, 0.0),)}, "h2d_curve at 1024"),
        ({"host_memory_bytes": 0}, "host_memory_bytes is 0"),
        ({"attend_bytes_per_s": -1.0}, "attend_bytes_per_s"),
        ({"gemm_while_h2d_flops_per_s": 0.0}, "gemm_while_h2d_flops_per_s"),
        ({"copy_latency_s": -1e-6}, "copy_latency_s"),
        ({"launch_latency_s": math.inf}, "launch_latency_s"),
        ({"device": "tpu"}, "device is 'tpu'; allowed are cpu, cuda"),
    ],
)
def test_impossible_figures_are_refused(change, message):
    with pytest.raises(ProfileError, match=message):
        replace(machine("a100-40gb-pcie4"), **change)


def test_spread():
    assert Measurement.of([3.0, 1.0, 2.0]) == Measurement(2.0, 1.0, 3.0, 3)
