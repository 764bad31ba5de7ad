"""How the cache is cut where launching counts: a GPU's work hides it, as long as it is quick."""

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.geometry import staging_choices
from headrace.plan.options import PlanOptions
from headrace.plan.pace import StepEstimate
from headrace.plan.policies import Policy, Split
from headrace.plan.step_work import Schedule
from headrace.plan.workload import Workload

OPT = replace(published_shape("opt-6.7b"), dtype="bfloat16")
CALLS = replace(
    machine("h200-141gb-pcie5"), attend_call_s=33e-6, rebuild_call_s=35e-6, load_call_s=20e-6
)
SMALL = PlanOptions(policy=Policy.AUTO, gpu_memory_bytes=24 << 30)
WORKLOAD = Workload(64, 1024, 24)


def decided(profile):
    return Decider(OPT, WORKLOAD, profile, SMALL).decide(Policy.AUTO)


def estimate_of(profile):
    decider = Decider(OPT, WORKLOAD, profile, SMALL)
    found = decided(profile)
    work = decider.step_work(Policy.AUTO, Schedule.ROW, found.geometry)
    return StepEstimate(work, profile, found.optimum), found.geometry


def test_what_launching_takes_grows_with_the_granules():
    estimate, geometry = estimate_of(CALLS)
    halves = replace(geometry, granule_bytes=geometry.granule_bytes // 2)
    assert estimate.launch_s(halves) == pytest.approx(2 * estimate.launch_s(geometry), rel=0.1)


@pytest.mark.parametrize("changes", [{"device": "cpu"}, {"attend_call_s": None}])
def test_a_cpus_calls_are_part_of_its_work_and_data_sheets_name_none(changes):
    calls = {"rebuild_call_s": None, "load_call_s": None} if "attend_call_s" in changes else {}
    estimate, geometry = estimate_of(replace(CALLS, **changes, **calls))
    assert estimate.launch_s(geometry) == 0


def test_under_a_budget_granules_are_larger_where_launching_counts():
    """In short pages, of which the newest tokens take less room, as large ones leave it."""
    by_work = replace(CALLS, attend_call_s=None, rebuild_call_s=None, load_call_s=None)
    with_calls, without = decided(CALLS), decided(by_work)
    launches = estimate_of(CALLS)[0].launch_s
    assert with_calls.fits
    assert launches(with_calls.geometry) < 0.5 * launches(without.geometry)
    # A tenth of the launching is worth what the work takes more.
    saved_s = launches(without.geometry) - launches(with_calls.geometry)
    decider = Decider(OPT, WORKLOAD, CALLS, SMALL)
    again = decider.at(Policy.AUTO, Schedule.ROW, without.geometry)
    more_s = decider.estimated_step_s(with_calls) - decider.estimated_step_s(again)
    assert more_s < 0.1 * saved_s


def test_where_launching_counts_there_are_more_sizes_to_choose_from():
    split = Split(recompute=1.0)
    pace = estimate_of(CALLS)[0].pace()
    few, more = (
        list(staging_choices(OPT, 64, 1024, split, pace=pace, launches_count=counts))
        for counts in (False, True)
    )
    assert set(few) < set(more)
    assert len({one.granule_bytes for one in more}) > len({one.granule_bytes for one in few})
    large = max(one.granule_bytes for one in more)
    assert {one.block_tokens for one in more if one.granule_bytes == large} == {16, 32, 64}
