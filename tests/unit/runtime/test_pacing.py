"""Pacing, by a clock that only sleeping moves."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from headrace.runtime.pacing import Pacer


class Clock:
    """A clock whose sleepers wake late."""

    def __init__(self, oversleeps=0.0):
        self.now_s = 0.0
        self.sleeps = []
        self._oversleeps = oversleeps

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now_s += seconds + self._oversleeps


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pacer(clock):
    return Pacer(clock, clock.sleep)


def test_a_piece_takes_as_long_as_it_shall(pacer, clock):
    clock.now_s = 5.0
    assert pacer.hold(4.5, 2.0) == (4.5, 6.5)
    assert clock.now_s == 6.5
    assert clock.sleeps == [1.5]


def test_a_piece_begins_when_the_one_before_has_ended(pacer, clock):
    assert pacer.hold(0.0, 2.0) == (0.0, 2.0)
    assert pacer.hold(1.0, 3.0) == (2.0, 5.0)
    assert pacer.hold(7.0, 1.0) == (7.0, 8.0)


def test_who_wakes_late_loses_nothing():
    clock = Clock(oversleeps=0.25)
    pacer = Pacer(clock, clock.sleep)
    ends = [pacer.hold(0.0, 1.0)[1] for _ in range(4)]
    assert ends == [1.0, 2.0, 3.0, 4.0]
    assert clock.now_s == 4.25


def test_who_wakes_early_sleeps_again(clock):
    def wake_early(seconds):
        clock.sleep(seconds if clock.sleeps else seconds / 2)

    assert Pacer(clock, wake_early).hold(0.0, 2.0) == (0.0, 2.0)
    assert clock.sleeps == [1.0, 1.0]


def test_a_piece_ends_no_sooner_than_the_real_work(pacer, clock):
    clock.now_s = 3.0
    assert pacer.hold(0.0, 2.0, done_s=3.0) == (0.0, 3.0)
    assert clock.sleeps == []
    assert pacer.hold(1.0, 2.0, done_s=4.0) == (3.0, 5.0)


def test_pieces_of_several_threads_follow_each_other():
    pacer = Pacer()
    ready_s = time.perf_counter()
    with ThreadPoolExecutor(3) as threads:
        times = sorted(threads.map(lambda _: pacer.hold(ready_s, 0.01), range(6)))
    assert times[0][0] == ready_s
    for (_, finish_s), (start_s, _) in pairwise(times):
        assert start_s == finish_s
    assert time.perf_counter() - ready_s >= 6 * 0.01


def test_what_is_over_already_costs_no_sleep(pacer, clock):
    clock.now_s = 10.0
    assert pacer.hold(1.0, 2.0) == (1.0, 3.0)
    assert clock.sleeps == []
