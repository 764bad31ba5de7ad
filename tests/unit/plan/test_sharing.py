import math
from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.plan.resources import Rate, Term
from headrace.plan.sharing import Factor, Sharing

ROOMY = replace(
    machine("paper-a100"),
    h2d_bytes_per_s=20.0,
    host_attend_bytes_per_s=80.0,
    host_bytes_per_s=100.0,
)
TIGHT = replace(ROOMY, h2d_bytes_per_s=40.0)
MEASURED = replace(TIGHT, h2d_while_host_bytes_per_s=30.0, host_while_h2d_bytes_per_s=60.0)


def test_nothing_is_slowed_where_host_memory_suffices_for_both():
    assert not Sharing(ROOMY).slows
    assert Sharing(ROOMY).shares(1.0, 1.0, 0.5) == (1.0, 1.0)
    assert Sharing(ROOMY).least_s(1.0, 1.0, 0.5) == 0.0
    assert not Sharing(machine("paper-a100")).slows


def test_both_read_no_more_than_host_memory_gives():
    # 40 and 80 bytes at 100 a second, and one second of the link alone at 40.
    assert Sharing(TIGHT).slows
    assert Sharing(TIGHT).least_s(2.0, 1.0, 1.0) == pytest.approx((2 * 40 + 80) / 100 + 0.6)
    assert Sharing(TIGHT).least_s(1.0, 1.0, 0.0) == pytest.approx(1.2)


def test_both_end_at_the_same_time_where_they_can():
    link, cores = Sharing(TIGHT).shares(1.0, 1.0, 0.0)
    assert link * 40 + cores * 80 == pytest.approx(100)
    assert link == pytest.approx(cores)
    # With little to load beside them the cores go at full speed; the link never less than that.
    link, cores = Sharing(TIGHT).shares(0.1, 1.0, 0.0)
    assert (link * 40, cores) == (pytest.approx(20), 1.0)
    link, cores = Sharing(TIGHT).shares(10.0, 0.1, 0.0)
    assert (link, cores * 80) == (1.0, pytest.approx(60))


def test_what_was_measured_counts():
    assert Sharing(MEASURED).shares(1.0, 1.0, 0.0) == (0.75, 0.75)
    # The cores end last: 2 s of the link beside them take them a quarter of its longer time.
    assert Sharing(MEASURED).least_s(2.0, 4.0, 0.5) == pytest.approx(0.5 + 4 + 0.25 / 0.75 * 1.5)
    # The link does: all of the cores' work is beside its.
    assert Sharing(MEASURED).least_s(9.0, 3.0, 0.0) == pytest.approx(9 + 0.25 / 0.75 * 3)
    slow = replace(MEASURED, h2d_while_host_bytes_per_s=4.0, host_while_h2d_bytes_per_s=8.0)
    assert Sharing(slow).shares(1.0, 1.0, 0.0) == (0.5, 0.5)
    assert Sharing(slow).least_s(1.0, 1.0, 0.0) == pytest.approx(2.0)


def test_the_kernel_beside_the_link_counts_more_than_cores_that_only_read():
    kernel = replace(
        MEASURED, h2d_while_attend_bytes_per_s=36.0, host_attend_while_h2d_bytes_per_s=64.0
    )
    assert kernel.joint_rates == (36.0, 64.0)
    assert Sharing(kernel).shares(1.0, 1.0, 0.0) == (0.9, 0.8)
    assert kernel.dram_rate == 100.0
    assert kernel.shared_rates == (36.0, 64.0)
    # Half of a measurement says nothing.
    half = replace(MEASURED, h2d_while_attend_bytes_per_s=36.0)
    assert half.joint_rates == MEASURED.joint_rates == (30.0, 60.0)
    assert TIGHT.joint_rates is None


def test_a_factor_tells_what_more_of_its_rates_gives():
    factor = Factor(0.5, {Rate.LINK: 0.5, Rate.DRAM: -0.5})
    terms = list(factor.of([Term("stream", Rate.LINK, 4.0)]))
    by_rate = {rate: sum(t.seconds for t in terms if t.rate is rate) for rate in Rate}
    assert by_rate[Rate.LINK] == 0.0
    assert by_rate[Rate.DRAM] == 2.0
    assert math.isclose(sum(term.seconds for term in terms), 2.0)
