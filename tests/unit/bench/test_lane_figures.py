import pytest

from headrace.bench.lane_figures import LaneFigures
from headrace.timeline import Lane, Origin, Span, Timeline


def span(lane, start_s, finish_s, size_bytes=0, flops=0, kind=""):
    return Span(lane, kind or str(lane), 0, 0, 0, start_s, finish_s, size_bytes, flops)


def test_lanes_rates_are_of_the_time_in_which_they_were_busy():
    timeline = Timeline(
        Origin.MEASURED,
        "by hand",
        (
            span(Lane.LOAD_KV, 0.0, 2.0, 40),
            span(Lane.LOAD_WEIGHTS, 2.0, 3.0, 20),
            span(Lane.HOST_ATTEND, 0.0, 4.0, 400),
            span(Lane.COMPUTE, 1.0, 2.0, flops=60, kind="rebuild"),
            span(Lane.COMPUTE, 2.0, 4.0, flops=9, kind="attend"),
        ),
    )
    found = LaneFigures.of(timeline, 1.0, 4.0)
    assert found.link_bytes_per_s == pytest.approx(60 / 3)
    assert found.host_attend_bytes_per_s == pytest.approx(400 / 4)
    assert found.rebuild_flops_per_s == pytest.approx(60)
    # From 1 to 4: half of the first load, all of the second, three quarters of what cores read.
    assert found.dram_bytes_per_s == pytest.approx((20 + 20 + 300) / 3)
    assert (found.link_busy, found.device_busy) == pytest.approx((2 / 3, 1.0))
    assert found.busy == pytest.approx(
        {
            Lane.LOAD_WEIGHTS: 1 / 3,
            Lane.LOAD_KV: 1 / 3,
            Lane.COMPUTE: 1.0,
            Lane.HOST_ATTEND: 1.0,
        }
    )
