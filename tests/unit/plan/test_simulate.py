import math
from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.cost import kv_bytes_per_token
from headrace.model.published import published_shape
from headrace.plan.decode import decode_program
from headrace.plan.demands import demands
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind, Operation, Program
from headrace.plan.policies import Policy, Split
from headrace.plan.resources import Resource
from headrace.plan.schedule import GranuleSpec, build_program
from headrace.plan.simulate import (
    bound_s,
    operation_work_s,
    simulate,
    steady_step_s,
    step_durations_s,
    work_s,
)
from headrace.plan.step_work import StepWork
from headrace.timeline import Lane, Origin

PROFILE = replace(
    machine("paper-a100"), h2d_bytes_per_s=1.0, d2h_bytes_per_s=1.0, gemm_flops_per_s={"x": 1.0}
)


def load(index, number, size, waits_for=()):
    return Operation(
        index, Kind.LOAD_KV, Lane.LOAD_KV, 0, number, size, load_number=number, waits_for=waits_for
    )


def compute(index, flops, kind=Kind.ATTEND, number=-1, waits_for=()):
    return Operation(
        index, kind, Lane.COMPUTE, 0, number, 0, 0, flops, load_number=number, waits_for=waits_for
    )


def two_loads(ring_slots=3, lookahead=True):
    """Dense work of 1 s, and two loads of 2 s with readers of 1 s."""
    operations = (
        load(0, 0, 2),
        load(1, 1, 2),
        compute(2, 1, Kind.DENSE),
        compute(3, 1, number=0, waits_for=(0,)),
        compute(4, 1, number=1, waits_for=(1,)),
    )
    return Program(operations, 1, ring_slots, lookahead)


def starts(timeline, kind, step):
    return [s.start_s for s in timeline.spans if s.kind == kind and s.step == step]


def test_one_step_by_hand():
    timeline = simulate(two_loads(), PROFILE, "x", label="by hand")
    assert (timeline.origin, timeline.label) == (Origin.PREDICTED, "by hand")
    assert starts(timeline, "load_kv", 0) == [0, 2]
    assert starts(timeline, "dense", 0) == [0]
    assert starts(timeline, "attend", 0) == [2, 4]
    assert timeline.duration_s == 5


def test_look_ahead_crosses_steps():
    timeline = simulate(two_loads(), PROFILE, "x", 4)
    assert starts(timeline, "load_kv", 1) == [4, 6]
    assert step_durations_s(timeline) == [5, 4, 4, 4]
    assert steady_step_s(timeline) == 4


def test_without_look_ahead_loads_wait_for_the_step_before():
    timeline = simulate(two_loads(lookahead=False), PROFILE, "x", 3)
    assert starts(timeline, "load_kv", 1) == [5, 7]
    assert steady_step_s(timeline) == 5


def test_a_slot_is_refilled_after_its_reader():
    timeline = simulate(two_loads(ring_slots=1), PROFILE, "x", 2)
    assert starts(timeline, "load_kv", 0) == [0, 3]
    assert starts(timeline, "load_kv", 1) == [6, 9]


def test_the_gap_between_steps():
    timeline = simulate(two_loads(), PROFILE, "x", 2, step_gap_s=0.5)
    assert starts(timeline, "dense", 1) == [5.5]


def test_several_programs_in_turn():
    longer = replace(two_loads(), operations=(*two_loads().operations, compute(5, 7)))
    timeline = simulate([two_loads(), longer], PROFILE, "x")
    assert step_durations_s(timeline) == [5, 11]


def test_rings_must_agree():
    with pytest.raises(ValueError, match="share one ring"):
        simulate([two_loads(), two_loads(4)], PROFILE, "x")


def test_a_circle_is_reported():
    operations = (compute(0, 1, Kind.DENSE, waits_for=(1,)), compute(1, 1))
    with pytest.raises(ValueError, match="circle"):
        simulate(Program(operations, 1, 3), PROFILE, "x")


def test_latencies_count_in_time_but_not_in_the_bound():
    slow = replace(PROFILE, copy_latency_s=0.25, launch_latency_s=0.125)
    assert simulate(two_loads(), slow, "x").duration_s == 4 + 2 * 0.25 + 1 + 0.125
    assert bound_s(two_loads(), slow, "x") == 4
    assert work_s(two_loads(), slow, "x") == {"link": 4, "store": 0, "gpu": 3}


def test_compute_takes_the_slower_of_flops_and_memory():
    profile = replace(
        PROFILE, device_bytes_per_s=10.0, attend_bytes_per_s=5.0, dense_bytes_per_s=2.0
    )
    op = replace(compute(0, 1), memory_bytes=100)
    assert operation_work_s(op, profile, "x") == 20
    assert operation_work_s(replace(op, kind=Kind.DENSE), profile, "x") == 50
    assert operation_work_s(replace(op, kind=Kind.REBUILD), profile, "x") == 10
    assert operation_work_s(replace(op, flops=1000), profile, "x") == 1000


def test_dense_work_takes_longer_with_more_rows_and_less_on_the_short_way():
    profile = replace(PROFILE, dense_curve=((1, 4.0), (8, 2.0)), resident_curve=((1, 5.0),))
    op = replace(compute(0, 1), kind=Kind.DENSE, memory_bytes=100, tokens=1)
    assert operation_work_s(op, profile, "x") == 25
    assert operation_work_s(replace(op, tokens=8), profile, "x") == 50
    assert operation_work_s(replace(op, is_short=True), profile, "x") == 20


def test_attention_to_contiguous_rows_has_its_own_rate():
    """Where all is resident: in the program's operations and in what the planner asks."""
    shape = replace(published_shape("opt-6.7b"), dtype="bfloat16")
    plain = machine("h200-141gb-pcie5")
    short = replace(plain, resident_attend_bytes_per_s=plain.attend_rate / 2)
    work = StepWork(shape, 4, 1024, 1024)

    def asked_s(profile, path):
        (demand,) = [one for one in demands(work, profile, (path,)) if one.resource is Resource.GPU]
        return demand.seconds({path: 1.0})

    for split, slower in ((Split(resident=1.0), True), (Split(stream=1.0), False)):
        program = decode_program(shape, 4, 1024, split, Geometry(64, 1 << 24), Policy.AUTO)
        spent = [work_s(program, profile, shape.dtype)[Resource.GPU] for profile in (plain, short)]
        path = "resident" if slower else "stream"
        asked = [asked_s(profile, path) for profile in (plain, short)]
        assert spent == pytest.approx(asked, rel=1e-3)
        read_s = 4 * 1024 * kv_bytes_per_token(shape) * shape.num_layers / plain.attend_rate
        assert spent[1] - spent[0] == pytest.approx(read_s if slower else 0.0, rel=0.01)


def test_steps_of_a_short_timeline():
    assert steady_step_s(simulate(two_loads(), PROFILE, "x", 1)) == 5
    assert steady_step_s(simulate(two_loads(), PROFILE, "x", 2)) == 4
    assert steady_step_s(simulate([], PROFILE, "x")) == 0


def test_spans_say_what_ran():
    shape = replace(published_shape("qwen3-0.6b"), num_layers=1)
    granules = [GranuleSpec("activations", 1, 64, 64 * 2048)]
    program = build_program(shape, [granules], 1, 1, 4, Policy.RECOMPUTE, [[(Kind.STORE_KV, 8)]])
    timeline = simulate(program, machine("a100-40gb-pcie4"), shape.dtype, 2)
    assert timeline.steps == (0, 1)
    rebuild = next(span for span in timeline.spans if span.kind == "rebuild")
    assert (rebuild.lane, rebuild.layer, rebuild.granule) == (Lane.COMPUTE, 0, 0)
    assert rebuild.flops > 0
    loaded = timeline.select([Lane.LOAD_ACTIVATIONS])
    assert [span.size_bytes for span in loaded] == [64 * 2048] * 2
    assert math.isclose(loaded[0].duration_s, 10e-6 + 64 * 2048 / 32e9)
