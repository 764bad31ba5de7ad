"""How the cache is cut where launching counts: a GPU's work hides it, as long as it is quick."""

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.decide_rows import best_rows
from headrace.plan.decision import Decider
from headrace.plan.decode import decode_program
from headrace.plan.geometry import Geometry, staging_choices
from headrace.plan.launching import Launching
from headrace.plan.operations import Kind
from headrace.plan.options import PlanOptions
from headrace.plan.pace import StepEstimate
from headrace.plan.plan import make_plan, plan_program
from headrace.plan.policies import Policy, Split
from headrace.plan.replan import Replanner
from headrace.plan.simulate import predicted_step_s, simulate
from headrace.plan.step_work import Schedule, StepWork
from headrace.plan.workload import Workload
from headrace.timeline import Lane

OPT = replace(published_shape("opt-6.7b"), dtype="bfloat16")
CALLS = replace(
    machine("h200-141gb-pcie5"), attend_call_s=33e-6, rebuild_call_s=35e-6, load_call_s=20e-6
)
IN_STEPS = replace(
    CALLS,
    launch_step_s=1e-3,
    launch_layer_s=2e-4,
    launch_plain_layer_s=9e-4,
    launch_stream_s=1e-4,
    launch_rebuild_s=2.3e-4,
    launch_host_s=1.5e-4,
    launch_while_attend=1.5,
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


# What launching takes in steps

EVERY_PATH = Split(0.25, 0.25, 0.25, 0.25)
GEOMETRY = Geometry(16, 1 << 30)
"""A granule a layer of whatever there is."""


def program_of(split, policy=Policy.AUTO, rows=64, context=128):
    return decode_program(OPT, rows, context, split, GEOMETRY, policy)


def work_of(rows=64, context=128):
    return StepWork(OPT, rows, context, context, page_tokens=16)


@pytest.mark.parametrize(
    ("split", "layer_us"),
    [
        (Split(resident=0.5, stream=0.5), 200 + 33 + 100),
        (Split(stream=1.0), 200 + 100),
        (Split(recompute=1.0), 200 + 230),
        (Split(host=1.0), 1.5 * (200 + 150)),
        (EVERY_PATH, 1.5 * (200 + 33 + 100 + 230 + 150)),
    ],
)
def test_each_path_takes_calls_in_each_layer(split, layer_us):
    launching = Launching(IN_STEPS)
    slowed = 1.5 if split.host else 1.0
    expected = OPT.num_layers * layer_us * 1e-6 + slowed * 1e-3
    assert launching.step_s(work_of(), GEOMETRY, [split]) == pytest.approx(expected)
    assert launching.launched_s(program_of(split).operations)[-1] == pytest.approx(expected)


def test_a_forward_whose_weights_are_streamed_is_launched_kernel_by_kernel():
    launching, split = Launching(IN_STEPS), [Split(stream=1.0)]
    replayed, plain = (
        launching.step_s(work_of(), GEOMETRY, split, streams_weights=streams)
        for streams in (False, True)
    )
    assert plain - replayed == pytest.approx(OPT.num_layers * 7e-4)


def test_a_step_of_the_short_way_has_it_in_the_rate_of_its_dense_work():
    launching = Launching(IN_STEPS)
    assert launching.step_s(work_of(), GEOMETRY, [Split(resident=1.0)]) == 0
    assert not any(launching.launched_s(program_of(Split(resident=1.0)).operations))


@pytest.mark.parametrize("profile", [CALLS, replace(IN_STEPS, device="cpu")])
def test_nothing_is_known_of_a_cpu_nor_where_it_was_not_measured(profile):
    launching = Launching(profile)
    assert launching.step_s(work_of(), GEOMETRY, [EVERY_PATH]) == 0
    assert not any(launching.launched_s(program_of(EVERY_PATH).operations))


def test_operations_are_launched_in_their_order():
    operations = program_of(EVERY_PATH).operations
    launched = Launching(IN_STEPS).launched_s(operations)
    assert launched == sorted(launched)
    assert launched[0] == pytest.approx(1.5e-3)
    for op, before, after in zip(operations[1:], launched, launched[1:], strict=False):
        takes = op.kind in (Kind.ATTEND_NEW, Kind.ATTEND, Kind.REBUILD, Kind.HOST_ATTEND)
        assert (after > before) == takes


def test_no_compute_starts_before_it_is_launched():
    program, steps = program_of(EVERY_PATH), 3
    launched = Launching(IN_STEPS).launched_s(program.operations)
    timeline = simulate(program, IN_STEPS, OPT.dtype, steps)
    ends = [0.0]
    for step in range(steps):
        spans = [span for span in timeline.spans if span.step == step]
        compute = [span for span in spans if span.lane is Lane.COMPUTE]
        of_program = [op for op in program.operations if op.lane is Lane.COMPUTE]
        for span, op in zip(compute, of_program, strict=True):
            assert span.kind == op.kind.value
            assert span.start_s >= ends[-1] + launched[op.index] - 1e-9
        ends.append(max(span.finish_s for span in compute))


def test_a_step_of_little_work_is_as_long_as_its_launching():
    program = program_of(EVERY_PATH, rows=8)
    launch_s = Launching(IN_STEPS).launched_s(program.operations)[-1]
    step_s = predicted_step_s(program, IN_STEPS, OPT.dtype)
    assert predicted_step_s(program, CALLS, OPT.dtype) < launch_s
    assert launch_s < step_s < 1.1 * launch_s


def test_a_step_of_much_work_hides_it():
    program = program_of(Split(stream=1.0), Policy.STREAM, context=2048)
    alone_s, with_s = (predicted_step_s(program, one, OPT.dtype) for one in (CALLS, IN_STEPS))
    assert with_s == pytest.approx(alone_s, rel=0.01)


# What is decided of it

SHORT = Workload(64, 128, 24)
MANY = Workload(256, 128, 24)
TIGHT = PlanOptions(policy=Policy.AUTO, gpu_memory_bytes=16 << 30)


def decider_of(profile, options=TIGHT):
    return Decider(OPT, SHORT, profile, options)


def test_where_launching_takes_longest_fewer_paths_are_taken():
    by_work, with_calls = (decider_of(one).decide(Policy.AUTO) for one in (CALLS, IN_STEPS))
    decider = decider_of(IN_STEPS)
    assert decider.estimated_step_s(with_calls) < decider.estimated_step_s(by_work)
    taken = [
        sum(share > 1e-9 for share in vars(one.split).values()) for one in (by_work, with_calls)
    ]
    assert taken[1] < taken[0]


def test_no_fewer_paths_would_be_faster_for_a_cache_that_is_cut_so():
    decider = decider_of(IN_STEPS)
    geometry = decider.decide(Policy.AUTO).geometry
    best = decider.at(Policy.AUTO, Schedule.ROW, geometry)
    paths = [
        ("resident", *others)
        for others in (("stream",), ("recompute",), ("host",), ("stream", "recompute"))
    ]
    for fewer in paths:
        options = replace(TIGHT, paths=fewer, stream_weights=False)
        other = decider_of(IN_STEPS, options).at(Policy.AUTO, Schedule.ROW, geometry)
        assert not other.fits or other.least_s >= best.least_s - 1e-9


@pytest.mark.parametrize("rows", [44, 48, 52])
def test_weights_are_not_streamed_so_that_all_of_the_cache_fits(rows):
    """Such a step does not go the short way, and is launched kernel by kernel."""
    decision = Decider(OPT, Workload(rows, 128, 24), IN_STEPS, TIGHT).decide(Policy.AUTO)
    assert decision.fits
    assert decision.weights_streamed == 0
    assert decision.least_s < OPT.num_layers * IN_STEPS.launch_plain_layer_s


def test_a_step_whose_weights_are_streamed_does_not_go_the_short_way():
    launching = Launching(IN_STEPS)
    plan = make_plan(
        OPT, Workload(44, 128, 24), IN_STEPS, gpu_memory_bytes=16 << 30, weights_streamed=0.05
    )
    program = plan_program(plan, OPT)
    assert plan.split.resident == 1
    assert not any(op.is_short for op in program.operations)
    least_s = OPT.num_layers * IN_STEPS.launch_plain_layer_s
    assert launching.launched_s(program.operations)[-1] > least_s
    assert plan.launch_s > least_s
    assert plan.step_s > least_s


def test_of_several_numbers_of_rows_launching_counts():
    most = replace(decider_of(IN_STEPS, replace(TIGHT, stream_weights=False)), workload=MANY)
    best = best_rows(most, Policy.AUTO)

    def tokens_per_s(rows):
        one = replace(most, workload=replace(MANY, rows=rows)).decide(Policy.AUTO)
        return rows / one.least_s if one.fits else 0.0

    assert tokens_per_s(best) >= max(tokens_per_s(rows) for rows in (32, 44, 64))


def test_shares_that_are_nothing_but_rounding_take_no_calls():
    launching = Launching(IN_STEPS)
    split = Split(resident=0.7, stream=0.0, recompute=0.3, host=0.0)
    rounded = Split(resident=0.7, stream=5.6e-17, recompute=0.3, host=1e-16)
    assert launching.step_s(work_of(), GEOMETRY, [rounded]) == pytest.approx(
        launching.step_s(work_of(), GEOMETRY, [split])
    )


@pytest.mark.parametrize("split", [Split(stream=1.0), Split(host=1.0), EVERY_PATH])
def test_rows_shorter_than_a_page_are_taken_to_go_the_short_way(split):
    launching, empty = Launching(IN_STEPS), StepWork(OPT, 8, 8, 0, page_tokens=16)
    assert launching.step_s(empty, GEOMETRY, [split]) == 0
    assert not any(launching.launched_s(program_of(split, rows=8, context=8).operations))


def test_the_reasons_say_that_launching_is_the_longest():
    slow = replace(IN_STEPS, launch_layer_s=5e-3)
    plan = make_plan(OPT, SHORT, slow, gpu_memory_bytes=16 << 30)
    assert plan.launch_s > plan.bound_s
    assert "launching" in plan.reasons[0]
    assert not any("faster would give" in reason for reason in plan.reasons)


def test_a_forward_that_is_not_replayed_is_planned_as_it_is_launched():
    assert IN_STEPS.without_replays().launch_layer_s == IN_STEPS.launch_plain_layer_s
    assert CALLS.without_replays() == CALLS


def test_what_was_asked_to_be_rebuilt_is_rebuilt_all_the_same():
    asked = replace(TIGHT, recompute_fraction=0.3)
    decision = decider_of(replace(IN_STEPS, launch_rebuild_s=1e-2), asked).decide(Policy.AUTO)
    assert decision.placement.recompute == 0.3


def test_a_batch_that_runs_is_not_given_calls_that_take_longer_than_they_save():
    quick, slow = (
        Replanner(OPT, profile, TIGHT, GEOMETRY)
        for profile in (IN_STEPS, replace(IN_STEPS, launch_host_s=5e-3))
    )
    assert quick.hosted(64, 128, 0.2, 0.0)[0] > 0
    assert slow.hosted(64, 128, 0.2, 0.0)[0] == 0
    split = Split(0.2, 0.4, 0.0, 0.4)
    assert slow.step_s(64, 128, split) > 1.5 * OPT.num_layers * 5e-3
