"""How rows that come are divided: room that is free is used, and what is not there is not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from headrace.hardware.catalog import machine
from headrace.hf.arrivals import split_of_arriving
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Split
from headrace.plan.replan import Replanner
from headrace.plan.step_work import PATHS
from headrace.plan.workload import Workload
from headrace.runtime.capacity import RowNeed
from headrace.runtime.layout import Layout
from headrace.runtime.pages import PageKind

SHAPE = published_shape("opt-6.7b")
WITHOUT_CORES = replace(machine("a100-40gb-pcie4"), host_attends=False)
PLANNED = Split(0.2, 0.4, 0.4)
NEW = [RowNeed(1024, 1100)] * 4
OTHERS = [RowNeed(1024, 1100, cached=1024)] * 12
ROW_PAGES = 64


@pytest.fixture(scope="module")
def replanner():
    options = PlanOptions.checked(stream_weights=False, weights_streamed=0.0)
    workload = Workload(16, 1024, 76)
    decided = Decider(SHAPE, workload, WITHOUT_CORES, options).decide(options.policy)
    geometry = replace(decided.geometry, block_tokens=1024 // ROW_PAGES)
    return Replanner(SHAPE, WITHOUT_CORES, options, geometry)


def cache(planned=PLANNED, resident_pages=10_000, has_room=True, **used):
    """A cache with so many pages in use, by kind."""
    layout = Layout(1024 // ROW_PAGES, planned, resident_pages)
    for kind, count in used.items():
        pool = layout.pools[PageKind(kind)]
        pool.grow(count)
        for _ in range(count):
            pool.take()
    asked = []

    def suffices(pages):
        asked.append(pages)
        return has_room

    return SimpleNamespace(layout=layout, capacity=SimpleNamespace(suffices=suffices), asked=asked)


def split_of(made, replanner, new=NEW, others=OTHERS, paths=PATHS):
    return split_of_arriving(made, replanner, paths, new, others)


def test_what_ended_rows_left_on_the_device_is_used(replanner):
    used = {"kv": 12 * 40, "activations": 12 * 24}
    assert split_of(cache(resident_pages=10_000, **used), replanner).resident == pytest.approx(1)
    half = split_of(cache(resident_pages=4 * ROW_PAGES // 2, **used), replanner)
    assert half.resident == pytest.approx(0.5)


def test_a_batch_with_little_x_gets_more_of_it_and_the_reverse(replanner):
    little = split_of(cache(resident_pages=0, kv=12 * ROW_PAGES), replanner)
    much = split_of(cache(resident_pages=0, activations=12 * ROW_PAGES), replanner)
    assert little.recompute > PLANNED.recompute
    assert much is None or much.recompute <= little.recompute


def test_x_is_kept_only_where_some_is_planned(replanner):
    made = split_of(cache(Split(0.2, 0.8), kv=12 * ROW_PAGES), replanner)
    assert made.recompute == 0


def test_the_device_gets_what_is_planned_where_its_pages_have_no_limit(replanner):
    made = split_of(cache(resident_pages=None, kv=12 * ROW_PAGES), replanner)
    assert made.resident == pytest.approx(PLANNED.resident)


def test_without_room_for_all_until_they_end_it_is_as_planned(replanner):
    made = cache(has_room=False, kv=12 * ROW_PAGES)
    assert split_of(made, replanner) is None
    (pages,) = made.asked
    # A row takes a page more for each kind, and the tail of what it generates one.
    generated = 16 * (-(-76 // 16) + 1)
    assert pages[PageKind.KV] >= generated
    assert sum(pages.values()) <= generated + 4 * (ROW_PAGES + 2)


def test_short_prompts_have_no_pages_to_be_divided(replanner):
    assert split_of(cache(kv=100), replanner, [RowNeed(15, 100)]) is None


def test_a_split_that_gains_nothing_is_left_as_planned(replanner):
    best = split_of(cache(resident_pages=0, kv=12 * ROW_PAGES), replanner)
    again = cache(planned=best, resident_pages=0, kv=12 * ROW_PAGES)
    assert split_of(again, replanner) is None
