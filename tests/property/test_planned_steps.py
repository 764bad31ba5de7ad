"""Plans simulated: never faster than their bound, and near it where the work is large."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.property.planner_strategies import machines, models, problems, workloads

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.demands import PATHS, Schedule, StepWork, demands
from headrace.plan.device_time import DeviceTime
from headrace.plan.granules import path_pages
from headrace.plan.operations import Kind
from headrace.plan.plan import Planner, make_plan, plan_program
from headrace.plan.policies import Policy
from headrace.plan.simulate import bound_s, operation_work_s, work_s
from headrace.plan.workload import Workload
from headrace.timeline import D2H_LANES, H2D_LANES, Lane

CHECKED = {"deadline": None, "suppress_health_check": [HealthCheck.filter_too_much]}
POLICIES = st.sampled_from([Policy.AUTO, Policy.AUTO, Policy.AUTO, *Policy])
NEAR = [Policy.STREAM, Policy.RECOMPUTE, Policy.HOST, Policy.AUTO]

SMALL = problems(
    shapes=models(layers=(1, 2, 4)),
    work=workloads(most_rows=16, contexts=(16, 4000)),
    profiles=machines(latencies=(0.0, 1e-5)),
)


def planned(problem, policy, schedule):
    options = replace(problem.options, policy=policy, schedule=schedule)
    return Planner(problem.shape, problem.workload, problem.profile, options).of(policy)


def in_whole_pages(plan, shape):
    """The shares of a plan's paths as its program has them."""
    workload, block = plan.workload, plan.geometry.block_tokens
    pages = plan.geometry.paged_tokens(workload.mean_context) // block
    if pages == 0 or plan.split.resident == 1:
        return {path: getattr(plan.split, path) for path in PATHS}
    parts = [path_pages(plan.split, rows, pages) for rows in workload.batch_rows]
    total = workload.rows * pages
    return {path: sum(getattr(part, path) for part in parts) / total for path in PATHS}


@given(problem=SMALL, policy=POLICIES, schedule=st.sampled_from(Schedule))
@settings(max_examples=150, **CHECKED)
def test_the_program_needs_what_the_linear_program_counts(problem, policy, schedule):
    plan = planned(problem, policy, schedule)
    shape, profile, workload = problem.shape, problem.profile, plan.workload
    shares = in_whole_pages(plan, shape)
    context = workload.mean_context
    work = StepWork(
        shape,
        workload.rows,
        context,
        plan.geometry.paged_tokens(context),
        workload.batches,
        plan.schedule,
    )
    values = {"weights": plan.weights_streamed}
    for path, share in shares.items():
        values |= {name: share for name, _, _ in work.columns(path)}
    used = tuple(path for path in PATHS if shares[path] > 0)
    counted = {}
    for demand in demands(work, profile, used):
        seconds = demand.seconds(values)
        counted[demand.resource] = max(counted.get(demand.resource, 0.0), seconds)
    program = plan_program(plan, shape)
    needed = work_s(program, profile, shape.dtype)
    device = DeviceTime(work, profile)
    # Each granule of X reads the projections' weights, which only matters to small ones.
    reads_s = sum(
        operation_work_s(op, profile, shape.dtype)
        - op.tokens * device.rebuild_s(shape.layers[op.layer])
        for op in program.operations
        if op.kind is Kind.REBUILD
    )
    assert reads_s >= -1e-12
    assert math.isclose(needed["link"], counted["link"], rel_tol=1e-6, abs_tol=1e-12)
    assert math.isclose(needed["store"], counted["store"], rel_tol=1e-9, abs_tol=1e-15)
    # Batches of unequal rows take a little longer than the mean batch, that many times.
    even = workload.rows % workload.batches == 0 or plan.schedule is Schedule.COLUMN
    assert needed["gpu"] - reads_s >= counted["gpu"] * (1 - 1e-9)
    if even:
        assert math.isclose(needed["gpu"] - reads_s, counted["gpu"], rel_tol=1e-9)
    hosted = sum(op.lane is Lane.HOST_ATTEND for op in program.operations)
    if even and hosted in (0, shape.full_layers * workload.batches):
        assert ("host" in needed) == (hosted > 0)
        for resource in ("host", "dram"):
            if resource in needed:
                assert math.isclose(needed[resource], counted[resource], rel_tol=1e-6)


@given(problem=SMALL, policy=POLICIES, schedule=st.sampled_from(Schedule))
@settings(max_examples=150, **CHECKED)
def test_no_step_beats_its_bound_nor_the_linear_program(problem, policy, schedule):
    plan = planned(problem, policy, schedule)
    assert plan.step_s >= plan.bound_s * (1 - 1e-9)
    assert 0 <= plan.weights_streamed <= 1
    assert math.isclose(sum(getattr(plan.split, path) for path in PATHS), 1, abs_tol=1e-9)
    # Whole pages may be more of the faster path than was asked for, by one in each batch.
    token_s = max(
        (
            term.seconds
            for demand in demands(StepWork(problem.shape, 1, 1, 1), problem.profile, PATHS)
            for term in demand.terms
            if term.column not in ("", "weights")
        ),
        default=0.0,
    )
    page_s = token_s * plan.geometry.block_tokens * plan.workload.batches
    assert plan.bound_s >= plan.optimum.step_s * (1 - 1e-6) - 2 * page_s


def is_large(plan, problem):
    """Whether latencies, and what begins and ends a layer and a step, are small next to the step.

    Device memory must also leave room for the staging that the step asks for (the bound knows of no
    rings), and batches must be about alike: what makes one wait is made up for by no other.
    """
    if max(plan.workload.batch_rows) > 1.15 * min(plan.workload.batch_rows):
        return False
    if problem.shape.full_layers < 6:
        return False
    program = plan_program(plan, problem.shape)
    lanes = [op.lane for op in program.operations]
    copies = sum(lane in (*H2D_LANES, *D2H_LANES) for lane in lanes)
    copies += 2 * lanes.count(Lane.HOST_ATTEND)
    latency_s = copies * problem.profile.copy_latency_s
    latency_s += lanes.count(Lane.COMPUTE) * problem.profile.launch_latency_s
    weights = [op for op in program.operations if op.kind is Kind.LOAD_WEIGHTS]
    layers = problem.shape.num_layers * plan.workload.batches
    layer_s = sum(op.link_bytes for op in weights) / layers / problem.profile.h2d_bytes_per_s
    staged = len(program.loads)
    many = staged == 0 or staged >= 4 * problem.shape.full_layers * plan.workload.batches
    return many and latency_s < 0.03 * plan.bound_s and layer_s < 0.03 * plan.bound_s


LARGE = problems(
    shapes=models(layers=(12, 24, 36)),
    work=workloads(most_rows=64, contexts=(1000, 20_000)),
    profiles=machines(latencies=(0.0, 1e-5)),
    tight=(0.3, 2.0),
)


def decided_and_planned(problem, policy, schedule):
    """A plan that fits, and whether memory leaves room for the staging that it asks for."""
    options = replace(problem.options, policy=policy, schedule=schedule)
    planner = Planner(problem.shape, problem.workload, problem.profile, options)
    decided = planner.decider.decide(policy, schedule)
    assume(decided.fits)
    roomy = planner.decider.estimated_step_s(decided) <= 1.03 * decided.optimum.step_s
    return planner._predicted(decided, 0.0), roomy


@pytest.mark.parametrize("policy", NEAR)
@given(problem=LARGE, schedule=st.sampled_from(Schedule))
@settings(max_examples=60, **CHECKED)
def test_large_steps_come_within_a_tenth_of_their_bound(policy, problem, schedule):
    plan, roomy = decided_and_planned(problem, policy, schedule)
    assume(roomy and is_large(plan, problem))
    assert plan.step_s <= 1.1 * plan.bound_s


@given(problem=LARGE)
@settings(max_examples=30, **CHECKED)
def test_the_paper_schedule_comes_near_its_own_bound(problem):
    """Its bound is that of its layers' turns, and the linear program's is no more than that."""
    plan, roomy = decided_and_planned(problem, Policy.KVPR, Schedule.ROW)
    assume(roomy and is_large(plan, problem))
    program = plan_program(plan, problem.shape)
    bound = bound_s(program, problem.profile, problem.shape.dtype)
    assert bound == plan.bound_s >= max(plan.work_s.values())
    assert plan.step_s <= 1.1 * bound
    if problem.options.host_memory_bytes is None:
        # Else the program may have been given less than the budget, to be rounded within it.
        assert plan.optimum.step_s <= 1.001 * bound


def test_windowed_layers_do_not_starve_the_link():
    """Weights and X of layers that wait for the host come while quick layers are worked on."""
    gemma, workload = published_shape("gemma-2-9b"), Workload(16, 7000, 100)
    plan = make_plan(gemma, workload, machine("rtx4090-pcie4"), policy="auto")
    assert plan.feasible
    assert plan.step_s <= 1.03 * plan.bound_s
    assert plan.step_s <= 0.3
