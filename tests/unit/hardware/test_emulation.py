"""The rates of an emulated machine: one factor for the link and for the host's cores."""

import math
from dataclasses import replace

import pytest

from headrace.errors import ProfileError
from headrace.hardware.catalog import machine, machine_names
from headrace.hardware.emulation import Pace, emulated_cores_rate, emulated_link_rate

A100 = machine("a100-40gb-pcie4")
WITH_CORES = [name for name in machine_names() if machine(name).host_attends]


def pace_of(named, gemm_rate=100e9):
    return Pace.of(named, gemm_rate, math.inf, math.inf)


def test_emulated_link_keeps_the_ratio_of_rebuilding_to_the_link():
    named = replace(A100, d2h_bytes_per_s=16e9)
    h2d = emulated_link_rate(named, 100e9)
    assert 100e9 / h2d == pytest.approx(312e12 / 32e9)
    assert emulated_link_rate(named, 100e9, direction="d2h") == pytest.approx(h2d / 2)
    assert emulated_link_rate(named, 200e9) == pytest.approx(2 * h2d)


def test_emulated_link_of_a_machine_without_bfloat16():
    assert 65e9 / emulated_link_rate(machine("t4-pcie3"), 65e9) == pytest.approx(65e12 / 16e9)


@pytest.mark.parametrize("name", WITH_CORES)
def test_cores_and_link_compare_as_on_the_named_machine(name):
    named = machine(name)
    link, cores = named.shared_rates
    assert emulated_link_rate(named, 100e9) / emulated_cores_rate(named, 100e9) == pytest.approx(
        link / cores
    )
    assert emulated_cores_rate(named, 200e9) == pytest.approx(2 * emulated_cores_rate(named, 100e9))


@pytest.mark.parametrize("name", WITH_CORES)
def test_cores_and_link_never_take_more_than_memory_gives(name):
    pace = pace_of(machine(name))
    assert pace.cores <= pace.memory
    assert pace.cores + pace.h2d <= pace.memory * (1 + 1e-9)


def test_a_machine_of_whose_cores_nothing_is_said():
    paper = machine("paper-a100")
    assert emulated_cores_rate(paper, 100e9) == math.inf
    assert pace_of(paper).cores == pace_of(paper).memory == math.inf


def test_nothing_is_held_back_where_nothing_is_emulated():
    assert Pace.of(None, 1.0, 1.0, 1.0) == Pace(math.inf, math.inf, math.inf, math.inf)


def test_a_link_that_real_copies_cannot_keep_is_refused():
    link = emulated_link_rate(A100, 100e9)
    assert Pace.of(A100, 100e9, link, link).h2d == link
    with pytest.raises(ProfileError, match="cannot be emulated here"):
        Pace.of(A100, 100e9, link, 0.9 * link)
