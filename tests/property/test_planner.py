"""The linear program: never beaten, never worse with more, and what its prices say is so."""

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.property.planner_strategies import (
    ARITHMETIC,
    DEVICE_MEMORY,
    HOST,
    LINK,
    faster,
    machines,
    models,
    scaled,
    workloads,
)
from tests.property.reference_step import ReferenceStep, simplex
from tests.property.strategies import log_uniform

from headrace.plan.decode import layer_times
from headrace.plan.demands import PATHS, Rate, Schedule, StepWork
from headrace.plan.options import POLICY_PATHS
from headrace.plan.policies import Policy, best_fraction, layer_time_s
from headrace.plan.program import GPU_MEMORY, Choice, MemoryLimits, optimise
from headrace.plan.weights import weight_slots

ALMOST = 1 + 1e-5
"""The tie-break may cost a few millionths; the solver's rounding far less."""

FREE = MemoryLimits(math.inf, math.inf, 0)


@st.composite
def steps(draw, serial=False):
    """A step, its machine and what memory is left, from next to nothing to plenty."""
    shape, workload, profile = draw(models()), draw(workloads()), draw(machines())
    context = workload.mean_context
    block = draw(st.sampled_from([16, 64]))
    schedule = Schedule.ROW if serial else draw(st.sampled_from(Schedule))
    work = StepWork(
        shape,
        workload.rows,
        context,
        context // block * block,
        workload.batches,
        schedule,
        serial=serial,
    )
    reference = ReferenceStep(work, profile)
    cache = max(1.0, work.paged_tokens * reference.kv_bytes())
    gpu = draw(st.one_of(st.just(math.inf), st.floats(-0.5, 1.5)))
    host = draw(st.one_of(st.just(math.inf), log_uniform(0.1, 4.0)))
    end = -(-workload.max_context // block) * block
    return work, profile, MemoryLimits(gpu * cache, host * cache, end)


def fits(reference, limits, split, streamed, later=0.0):
    """Whether a split keeps the budgets, with room for rounding."""
    slots = weight_slots(reference.shape)
    on_gpu = reference.gpu_bytes(split, streamed, slots)
    on_host = reference.host_bytes(split, streamed, limits.end_paged)
    if later:
        kept = reference.work.rows * max(0, limits.end_paged - reference.work.paged)
        on_gpu += later * kept * reference.kv_bytes()
        on_host -= later * kept * reference.kv_bytes()
    return on_gpu <= limits.gpu_left and on_host <= limits.host_left


def tied(paths=PATHS, stream_weights=True, most=1.0):
    return Choice(paths, stream_weights, most, tied=True)


def as_split(optimum):
    return dict(zip(PATHS, astuple(optimum.splits[0]), strict=True)) if optimum.splits else {}


@given(step=steps(), stream_weights=st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_optimum_takes_what_it_says_and_keeps_the_budgets(step, stream_weights):
    work, profile, limits = step
    optimum = optimise(work, profile, limits, tied(stream_weights=stream_weights))
    assume(optimum is not None)
    assert 0 <= optimum.weights_streamed <= stream_weights
    for split in optimum.splits:
        assert math.isclose(sum(astuple(split)), 1, abs_tol=1e-9)
        assert np.allclose(astuple(split), astuple(optimum.splits[0]), atol=1e-8)
    reference = ReferenceStep(work, profile)
    split = as_split(optimum)
    expected = reference.seconds(split, optimum.weights_streamed)
    assert math.isclose(optimum.step_s, max(expected.values()), rel_tol=1e-6)
    for resource in ("link", "store", "gpu", "host"):
        if resource in expected:
            assert math.isclose(optimum.seconds[resource], expected[resource], rel_tol=1e-9)
    roomy = replace(limits, gpu_left=limits.gpu_left + 4096, host_left=limits.host_left + 4096)
    assert fits(reference, roomy, split, optimum.weights_streamed, optimum.later_resident)


@given(step=steps(), stream_weights=st.booleans(), parts=st.sampled_from([4, 5]))
@settings(max_examples=200, deadline=None)
def test_no_split_on_a_grid_is_faster(step, stream_weights, parts):
    work, profile, limits = step
    optimum = optimise(work, profile, limits, tied(stream_weights=stream_weights))
    reference = ReferenceStep(work, profile)
    for split in simplex(PATHS, parts):
        for streamed in (0.0, 0.5, 1.0) if stream_weights else (0.0,):
            if not fits(reference, limits, split, streamed):
                continue
            assert optimum is not None
            assert optimum.step_s <= ALMOST * reference.step_s(split, streamed)


@given(
    step=steps(),
    weights=st.tuples(*[st.floats(0, 1)] * 4),
    streamed=st.floats(0, 1),
    later=st.floats(0, 1),
)
@settings(max_examples=500, deadline=None)
def test_no_other_split_is_faster(step, weights, streamed, later):
    work, profile, limits = step
    assume(sum(weights) > 0)
    split = {path: part / sum(weights) for path, part in zip(PATHS, weights, strict=True)}
    reference = ReferenceStep(work, profile)
    assume(fits(reference, limits, split, streamed, later))
    optimum = optimise(work, profile, limits, tied())
    assert optimum is not None
    assert optimum.step_s <= ALMOST * reference.step_s(split, streamed)


@given(step=steps(), policy=st.sampled_from([p for p in Policy if p is not Policy.AUTO]))
@settings(max_examples=400, deadline=None)
def test_no_policy_by_itself_is_faster(step, policy):
    work, profile, limits = step
    single = optimise(work, profile, limits, tied(POLICY_PATHS[policy]))
    assume(single is not None)
    every = optimise(work, profile, limits, tied())
    assert every is not None
    assert every.step_s <= ALMOST * single.step_s


@given(step=steps())
@settings(max_examples=200, deadline=None)
def test_layers_with_splits_of_their_own_are_no_slower(step):
    work, profile, limits = step
    one = optimise(work, profile, limits, tied())
    assume(one is not None)
    own = optimise(work, profile, limits, replace(tied(), tied=False))
    assert own.step_s <= ALMOST * one.step_s
    assert all(math.isclose(sum(astuple(split)), 1, abs_tol=1e-9) for split in own.splits)


@given(
    step=steps(),
    data=st.data(),
    policy=st.sampled_from([Policy.AUTO, Policy.AUTO, *Policy]),
)
@settings(max_examples=600, deadline=None)
def test_more_of_a_rate_is_never_slower(step, data, policy):
    work, profile, limits = step
    work = replace(work, serial=policy is Policy.KVPR and work.schedule is Schedule.ROW)
    before = optimise(work, profile, limits, tied(POLICY_PATHS[policy]))
    assume(before is not None)
    quicker = data.draw(faster(profile))
    after = optimise(work, quicker, limits, tied(POLICY_PATHS[policy]))
    assert after.step_s <= ALMOST * before.step_s


@given(
    step=steps(),
    more=st.tuples(st.floats(0, 1e12), st.floats(0, 1e12)),
    policy=st.sampled_from([Policy.AUTO, Policy.AUTO, *Policy]),
)
@settings(max_examples=400, deadline=None)
def test_more_memory_is_never_slower(step, more, policy):
    work, profile, limits = step
    before = optimise(work, profile, limits, tied(POLICY_PATHS[policy]))
    assume(before is not None)
    roomier = replace(
        limits, gpu_left=limits.gpu_left + more[0], host_left=limits.host_left + more[1]
    )
    after = optimise(work, profile, roomier, tied(POLICY_PATHS[policy]))
    assert after.step_s <= ALMOST * before.step_s


RATES = {
    Rate.LINK: LINK,
    Rate.STORE: ("d2h_bytes_per_s",),
    Rate.ARITHMETIC: ARITHMETIC,
    Rate.DEVICE_MEMORY: DEVICE_MEMORY,
    Rate.HOST: HOST,
}


@given(step=steps(), rate=st.sampled_from(list(RATES)))
@settings(max_examples=300, deadline=None)
def test_elasticity_is_what_more_of_a_rate_gives(step, rate):
    work, profile, limits = step
    # Host memory's rate is one of its own, unless it is that of what alone reads fastest.
    assume(profile.host_bytes_per_s > 1.01 * max(profile.h2d_bytes_per_s, profile.host_attend_rate))
    optimum = optimise(work, profile, limits, tied())
    assume(optimum is not None)
    change = 1e-4
    slower, quicker = (
        optimise(work, scaled(profile, RATES[rate], factor), limits, tied()).step_s
        for factor in (1 - change, 1 + change)
    )
    lost = (slower - optimum.step_s) / (change * optimum.step_s)
    gained = (optimum.step_s - quicker) / (change * optimum.step_s)
    # At a kink the two differ, and the price is between them.
    low, high = sorted((lost, gained))
    assert low - 0.02 <= optimum.elasticity.get(rate, 0.0) <= high + 0.02
    assert math.isclose(sum(optimum.elasticity.values()), 1, abs_tol=1e-3)


@given(step=steps())
@settings(max_examples=200, deadline=None)
def test_the_price_of_device_memory_is_what_a_byte_of_it_gives(step):
    work, profile, limits = step
    assume(math.isfinite(limits.gpu_left) and work.paged > 0)
    optimum = optimise(work, profile, limits, tied())
    assume(optimum is not None)
    change = 1e-3 * work.paged_tokens * ReferenceStep(work, profile).kv_bytes()
    steps_s = []
    for part in (-1, 1):
        moved = replace(limits, gpu_left=limits.gpu_left + part * change)
        found = optimise(work, profile, moved, tied())
        steps_s.append(math.inf if found is None else found.step_s)
    price_s = optimum.prices[GPU_MEMORY] * change
    tolerance_s = 1e-4 * optimum.step_s
    low, high = sorted((steps_s[0] - optimum.step_s, optimum.step_s - steps_s[1]))
    assert low - tolerance_s <= price_s <= high + tolerance_s


@pytest.mark.parametrize("policy", [Policy.RECOMPUTE, Policy.KVPR])
@given(step=steps(), serial_step=steps(serial=True))
@settings(max_examples=250, deadline=None)
def test_the_closed_forms_are_the_program_of_their_paths(policy, step, serial_step):
    work, profile, _ = serial_step if policy is Policy.KVPR else step
    # The closed forms know one batch, no stores, and more than nothing to divide.
    work = replace(work, batches=1)
    profile = replace(profile, d2h_bytes_per_s=1e15)
    assume(work.shape.full_layers > 0 and work.paged > 0)
    times = layer_times(work.shape, work.rows, work.paged, profile, work.context - work.paged)
    fraction = best_fraction(policy, times)
    expected_s = work.shape.full_layers * layer_time_s(policy, times, fraction)
    optimum = optimise(work, profile, FREE, tied(POLICY_PATHS[policy]))
    assert math.isclose(optimum.step_s, expected_s, rel_tol=1e-5)
    layer_s = layer_time_s(policy, times, optimum.splits[0].recompute)
    assert layer_s <= ALMOST * layer_time_s(policy, times, fraction)
    if times.recompute_link_s < 0.99 * times.stream_link_s and (
        times.stream_link_s > 1.01 * (times.fixed_gpu_s + times.last_gpu_s + times.attend_gpu_s)
    ):
        assert math.isclose(optimum.splits[0].recompute, fraction, abs_tol=1e-3)


@given(step=steps(), policy=st.sampled_from([Policy.AUTO, Policy.RECOMPUTE, Policy.KVPR]))
@settings(max_examples=250, deadline=None)
def test_nothing_is_rebuilt_where_x_is_no_smaller(step, policy):
    work, profile, limits = step
    assume(all(group.shape.d_model >= 2 * group.shape.d_kv for group in work.shape.groups))
    work = replace(work, serial=policy is Policy.KVPR and work.schedule is Schedule.ROW)
    optimum = optimise(work, profile, limits, tied(POLICY_PATHS[policy]))
    assume(optimum is not None and work.paged > 0)
    assert all(split.recompute < 1e-6 for split in optimum.splits)
