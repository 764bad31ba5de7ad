"""The cores' share follows the rates of cores and link: fake ones, real predictions."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from headrace.hardware.catalog import machine
from headrace.hf.learnt_rates import LearntRates, RateRules, RecentRates
from headrace.hf.replanning import Replanning, Rules
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Split
from headrace.plan.replan import Ratios, Replanner
from headrace.plan.workload import Workload
from headrace.runtime.lanes import Busy
from headrace.runtime.pages import PageKind, PagePool

SHAPE = published_shape("opt-6.7b")
PUBLISHED = machine("a100-40gb-pcie4")
MEASURED = replace(
    PUBLISHED,
    host_attend_bytes_per_s=107e9,
    h2d_while_attend_bytes_per_s=0.9 * PUBLISHED.h2d_bytes_per_s,
    host_attend_while_h2d_bytes_per_s=80e9,
)
ROWS = range(32)
KV_PAGES = 32 * 64
NOISE = (1.0, 1.1, 0.9, 1.05, 0.95, 0.92, 1.08)


def replanner(profile):
    options = PlanOptions.checked(stream_weights=False, weights_streamed=0.0)
    decided = Decider(SHAPE, Workload(32, 1024, 32), profile, options).decide(options.policy)
    return Replanner(SHAPE, profile, options, decided.geometry)


class FakeCache:
    """Pages of keys and values on the host, and cores that attend at a rate of one's choice."""

    def __init__(self, made):
        self.made = made
        self.ratio = self.link_ratio = 1.0
        self.noise = itertools.repeat(1.0)
        self.capacity = SimpleNamespace(page_bytes=1 << 20)
        self.layout = SimpleNamespace(
            pools={kind: PagePool(0) for kind in PageKind},
            version=0,
            block_tokens=made.geometry.block_tokens,
            promotable=0,
        )
        pool = self.layout.pools[PageKind.KV]
        pool.grow(KV_PAGES)
        for _ in range(KV_PAGES):
            pool.take()
        self.host_share = made.hosted(len(ROWS), self.context, 0.0, 0.0)[0]
        self.shares = []

    @property
    def context(self):
        return KV_PAGES * self.layout.block_tokens // len(ROWS)

    def rates(self):
        split = Split(0.0, 1 - self.shares[-1], 0.0, self.shares[-1])
        return self.actual.rates(len(ROWS), self.context, split)

    def host_busy(self):
        if not self.shares or self.shares[-1] == 0:
            return Busy()
        return Busy(1.0, int(self.rates().cores * next(self.noise)))

    def link_busy(self):
        if not self.shares or self.shares[-1] == 1:
            return Busy()
        return Busy(1.0, int(self.rates().link * next(self.noise)))

    @property
    def actual(self):
        return self.made.with_ratios(Ratios(self.ratio, self.link_ratio))

    def run(self, replanning, steps):
        """Decode, and note the share of each step."""
        for _ in range(steps):
            replanning.before_forward(ROWS, 1)
            self.shares.append(self.host_share)

    def best(self, ratio, link_ratio=1.0):
        actual = self.made.with_ratios(Ratios(ratio, link_ratio))
        return actual.hosted(len(ROWS), self.context, 0.0, 0.0)[0]


@pytest.fixture(params=[PUBLISHED, MEASURED], ids=["published", "measured"])
def cache(request):
    return FakeCache(replanner(request.param))


def test_cores_at_a_third_of_their_rate_get_what_the_program_gives_them(cache):
    replanning = Replanning(cache, cache.made)
    opened = cache.host_share
    cache.run(replanning, 20)
    assert cache.host_share == opened
    cache.ratio = 1 / 3
    cache.run(replanning, 20)
    assert cache.host_share == cache.best(1 / 3) < opened
    assert replanning.ratios.cores == pytest.approx(1 / 3, rel=0.01)
    assert replanning.changes == 1
    words = replanning.words()
    assert f"went from {100 * opened:.0f} % to {100 * cache.host_share:.0f} %" in words
    assert "GB/s, not " in words

    cache.ratio = 1.0
    cache.run(replanning, 20)
    assert cache.host_share == cache.best(1.0) == opened
    assert replanning.changes == 2


@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_a_link_at_half_its_rate_leaves_the_cores_more(cache, ratio):
    replanning = Replanning(cache, cache.made)
    opened = cache.host_share
    cache.run(replanning, 20)
    cache.ratio, cache.link_ratio = ratio, 0.5
    cache.run(replanning, 40)
    assert cache.host_share == pytest.approx(cache.best(ratio, 0.5), abs=1 / 32)
    assert cache.host_share > opened
    assert replanning.ratios.link == pytest.approx(0.5, rel=0.05)
    assert "the link loaded at" in replanning.words()


def test_both_at_three_quarters_of_their_rates_leave_the_share(cache):
    """The cores alone would have to be relieved: what is learnt of the link says otherwise."""
    replanning = Replanning(cache, cache.made)
    opened = cache.host_share
    cache.ratio = cache.link_ratio = 0.75
    cache.run(replanning, 40)
    assert replanning.ratios.cores == pytest.approx(0.75, rel=0.05)
    assert replanning.ratios.link == pytest.approx(0.75, rel=0.05)
    assert cache.host_share == opened
    assert cache.best(0.75) < opened


def test_a_link_that_was_too_slow_to_be_used_is_seen_again(cache):
    replanning = Replanning(cache, cache.made)
    opened = cache.host_share
    cache.link_ratio = 0.02
    cache.run(replanning, 60)
    assert cache.host_share == cache.best(1.0, 0.02) == 1
    cache.link_ratio = 1.0
    cache.run(replanning, 3000)
    assert replanning.ratios.link == 1
    # Short of the best by no more than what a change must gain.
    found_s, best_s = (
        cache.made.step_s(len(ROWS), cache.context, Split(0.0, 1 - share, 0.0, share))
        for share in (cache.host_share, opened)
    )
    assert found_s <= best_s / (1 - replanning.rules.least_gain)


def test_a_link_that_stays_too_slow_is_seen_less_and_less(cache):
    replanning = Replanning(cache, cache.made)
    cache.link_ratio = 0.02
    cache.run(replanning, 8000)
    used = sum(share < 1 for share in cache.shares)
    assert 0 < used < 0.05 * len(cache.shares)


def test_a_link_faster_than_its_profile_changes_nothing(cache):
    replanning = Replanning(cache, cache.made)
    looks = []
    cache.link_busy = lambda: Busy(1.0, int(2 * PUBLISHED.h2d_bytes_per_s))
    replanning._look = lambda rows: looks.append(rows)
    cache.run(replanning, 200)
    assert len(looks) <= 2


def test_noise_changes_nothing(cache):
    replanning = Replanning(cache, cache.made)
    cache.noise = itertools.cycle(NOISE)
    cache.run(replanning, 200)
    assert len(set(cache.shares)) == 1
    assert (replanning.changes, replanning.words()) == (0, None)


def test_a_few_outliers_change_nothing(cache):
    replanning = Replanning(cache, cache.made)
    cache.noise = itertools.cycle([1.0, 1.0, 0.01, 1.0, 1.0, 1.0, 30.0, 1.0])
    cache.run(replanning, 200)
    assert len(set(cache.shares)) == 1


def test_another_rate_that_gains_nothing_leaves_the_share(cache):
    replanning = Replanning(cache, cache.made, Rules(least_gain=0.9))
    cache.ratio = 0.2
    cache.run(replanning, 40)
    assert len(set(cache.shares)) == 1
    assert replanning.ratios.cores == pytest.approx(0.2, rel=0.01)


def slow_cache(ratio):
    """A cache whose cores have become so slow that the best is to do without them."""
    cache = FakeCache(replanner(PUBLISHED))
    replanning = Replanning(cache, cache.made)
    cache.ratio = ratio
    cache.run(replanning, 30)
    assert cache.best(ratio) == 0
    assert cache.host_share == 0
    return cache, replanning


def test_cores_that_do_nothing_are_tried_again_and_come_back():
    cache, replanning = slow_cache(0.004)
    cache.shares.clear()
    cache.run(replanning, 200)
    assert replanning.tries == 1
    tried = [share for share in cache.shares if share > 0]
    assert len(tried) == replanning.rules.rate.try_steps
    assert max(tried) <= 1 / 32
    assert cache.host_share == 0

    cache.ratio = 1.0
    cache.run(replanning, 3000)
    assert cache.host_share == cache.best(1.0) > 0


def test_trials_take_no_more_than_their_part_of_the_time():
    cache, replanning = slow_cache(0.004)
    cache.shares.clear()
    cache.run(replanning, 8000)
    slow = cache.made.with_ratios(Ratios(0.004))
    seconds = [
        slow.step_s(len(ROWS), cache.context, Split(0.0, 1 - share, 0.0, share))
        for share in sorted(set(cache.shares))
    ]
    assert replanning.tries > 1
    idle = cache.shares.count(0.0)
    tried = len(cache.shares) - idle
    lost_s = tried * (seconds[1] - seconds[0])
    # The first trial does not know yet what it takes.
    most = replanning.rules.rate.most_try_cost * len(cache.shares) * seconds[0]
    assert lost_s <= most + replanning.rules.rate.try_steps * seconds[1]


def test_cores_that_the_plan_leaves_out_are_not_tried():
    cache = FakeCache(replanner(PUBLISHED))
    cache.host_share, cache.layout.version = 0.0, -1
    replanning = Replanning(cache, cache.made)
    cache.run(replanning, 500)
    assert replanning.tries == 0


def test_prompts_do_not_count():
    cache = FakeCache(replanner(PUBLISHED))
    replanning = Replanning(cache, cache.made)
    cache.ratio = 0.1
    for _ in range(50):
        replanning.before_forward(ROWS, 7)
        cache.shares.append(cache.host_share)
    assert replanning.ratios == Ratios()


def test_a_rate_is_the_median_of_steps_in_which_there_was_something_to_do():
    recent, none = RecentRates(3), Busy()
    assert recent.note(none, Busy(2.0, 20)) is None
    assert recent.note(none, none) is None
    assert recent.note(Busy(1.0, 7), Busy(1.0, 11)) is None
    assert recent.note(none, Busy(1.0, 500)) == LearntRates(7.0, 11.0)
    assert recent.note(Busy(1.0, 8), none) is None
    assert recent.note(Busy(1.0, 8), none) is None
    assert recent.note(Busy(2.0, 80), none) == LearntRates(8.0, None)


def test_dear_trials_are_rare():
    rules = RateRules(try_every=100, try_steps=2, most_try_cost=0.01)
    assert rules.wait_steps(1.0, 1.1) == 100
    assert rules.wait_steps(1.0, 3.0) == 400
