from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.strategies import cases, profiles

from headrace.plan.operations import Kind
from headrace.plan.simulate import bound_s, simulate, step_durations_s, work_s
from headrace.timeline import D2H_LANES, H2D_LANES, Lane

LOADS = (Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV)
STEPS = 3
TOLERANCE_S = 1e-12


def spans_by_operation(program, timeline):
    """Spans of each step, keyed by the operation's index."""
    keys = {(op.kind.value, op.lane, op.layer, op.granule): op.index for op in program.operations}
    spans = [{} for _ in range(STEPS)]
    for span in timeline.spans:
        spans[span.step][keys[span.kind, span.lane, span.layer, span.granule]] = span
    return spans


@given(case=cases(), profile=profiles(), gap=st.sampled_from([0.0, 1e-3]))
@settings(max_examples=150, deadline=None)
def test_what_runs_keeps_every_wait(case, profile, gap):
    program = case.program
    timeline = simulate(program, profile, "bfloat16", STEPS, gap)
    spans = spans_by_operation(program, timeline)
    assert len(timeline.spans) == STEPS * len(program.operations)
    for step, of_step in enumerate(spans):
        for op in program.operations:
            for index in op.waits_for:
                assert of_step[op.index].start_s >= of_step[index].finish_s
        if step:
            head = spans[step - 1][program.operations[-1].index]
            dense = next(op for op in program.operations if op.kind is Kind.DENSE)
            assert of_step[dense.index].start_s >= head.finish_s + gap
            if not program.lookahead:
                loads = [of_step[op.index] for op in program.loads]
                assert all(load.start_s >= head.finish_s for load in loads)


@given(case=cases(), profile=profiles())
@settings(max_examples=150, deadline=None)
def test_lanes_and_links_take_one_at_a_time_in_program_order(case, profile):
    program = case.program
    spans = spans_by_operation(program, simulate(program, profile, "bfloat16", STEPS))
    for lanes in (H2D_LANES, D2H_LANES, (Lane.COMPUTE,)):
        ordered = [
            of_step[op.index] for of_step in spans for op in program.operations if op.lane in lanes
        ]
        assert all(before.finish_s <= after.start_s for before, after in pairwise(ordered))


@given(case=cases(), profile=profiles())
@settings(max_examples=150, deadline=None)
def test_no_slot_is_refilled_while_it_is_read(case, profile):
    program = case.program
    spans = spans_by_operation(program, simulate(program, profile, "bfloat16", STEPS))
    loads, reads = [], []
    for of_step in spans:
        base = len(loads)
        loads += [of_step[op.index] for op in program.loads]
        reads += [None] * (len(loads) - base)
        for op in program.operations:
            if op.kind not in LOADS and op.load_number >= 0:
                reads[base + op.load_number] = of_step[op.index]
    for number, read in enumerate(reads):
        assert read.start_s >= loads[number].finish_s
        if number + program.ring_slots < len(loads):
            assert loads[number + program.ring_slots].start_s >= read.finish_s


@given(case=cases(), profile=profiles())
@settings(max_examples=150, deadline=None)
def test_simulated_time_never_beats_the_bound(case, profile):
    timeline = simulate(case.program, profile, "bfloat16", STEPS)
    bound = bound_s(case.program, profile, "bfloat16")
    assert timeline.finish_s >= STEPS * bound * (1 - 1e-9)
    most = max(work_s(case.program, profile, "bfloat16").values())
    assert bound == most if case.program.lookahead else bound >= most
    total = sum(step_durations_s(timeline))
    stores = timeline.select(D2H_LANES)
    last = max((span.finish_s for span in stores), default=0.0)
    assert total <= timeline.finish_s + TOLERANCE_S <= max(total, last) + 2 * TOLERANCE_S


@given(
    case=cases(),
    profile=profiles(),
    faster=st.floats(1, 50),
    what=st.sampled_from(["h2d_bytes_per_s", "d2h_bytes_per_s", "device_bytes_per_s"]),
)
@settings(max_examples=150, deadline=None)
def test_more_bandwidth_is_never_slower(case, profile, faster, what):
    quicker = replace(profile, **{what: getattr(profile, what) * faster})
    before = simulate(case.program, profile, "bfloat16", STEPS)
    after = simulate(case.program, quicker, "bfloat16", STEPS)
    assert after.finish_s <= before.finish_s * (1 + 1e-9)


@given(case=cases(), profile=profiles(), more=st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_a_longer_ring_is_never_slower(case, profile, more):
    longer = replace(case.program, ring_slots=case.program.ring_slots + more)
    before = simulate(case.program, profile, "bfloat16", STEPS)
    after = simulate(longer, profile, "bfloat16", STEPS)
    assert after.finish_s <= before.finish_s * (1 + 1e-9)
