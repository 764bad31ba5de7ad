from dataclasses import replace

import pytest

from headrace.model.cost import layer_weight_bytes
from headrace.model.published import published_shape
from headrace.plan.decode import DecodeWork, step_program
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind
from headrace.plan.policies import Policy, recompute_split
from headrace.plan.schedule import StepOrder
from headrace.plan.step_work import Schedule
from headrace.plan.weight_loads import Turn, WeightLoads
from headrace.plan.weights import streamed_device_bytes, weight_slots

OPT = published_shape("opt-6.7b")
GEMMA = published_shape("gemma-2-9b")


def loads_of(turns, ring_slots=2, slots=2, ahead=False):
    """What is loaded in which order: ("weights", turn, bytes), ("cache", turn)."""
    done = []

    def add(kind, lane, layer, granule, size_bytes, weights_number):
        done.append(("weights", weights_number, size_bytes))
        return len(done) - 1

    weights = WeightLoads(add, turns, ring_slots, slots, ahead)
    for number, turn in enumerate(turns):
        weights.begin_turn()
        for _ in turn.load_bytes:
            done.append(("cache", number))
            weights.after_load()
    return done


def test_few_granules_come_before_the_next_layer_s_weights():
    turns = [Turn(layer, 100, (10, 10)) for layer in range(3)]
    assert loads_of(turns) == [
        ("weights", 0, 100),
        ("cache", 0),
        ("cache", 0),
        ("weights", 1, 100),
        ("cache", 1),
        ("cache", 1),
        ("weights", 2, 100),
        ("cache", 2),
        ("cache", 2),
    ]


def test_among_many_granules_they_come_in_pieces_of_a_granule_or_more():
    turns = [Turn(layer, 100, (40,) * 6) for layer in range(2)]
    between = loads_of(turns)[1:10]
    assert between == [("cache", 0)] * 4 + [
        ("weights", 1, 50),
        ("cache", 0),
        ("cache", 0),
        ("weights", 1, 50),
        ("cache", 1),
    ]


def test_ahead_those_of_quick_layers_come_while_others_are_worked_on():
    busy, quick = (40,) * 8, ()
    turns = [Turn(layer, 100, quick if layer % 4 else busy) for layer in range(8)]
    late = loads_of(turns, slots=5)
    ahead = loads_of(turns, slots=5, ahead=True)
    first_busy = [step for step in ahead[: ahead.index(("cache", 4))] if step[0] == "weights"]
    assert sum(size for _, _, size in first_busy) > 100 * 4
    by_first = late[: late.index(("cache", 0)) + 8]
    assert sum(step[2] for step in by_first if step[0] == "weights") <= 200
    for done in (late, ahead):
        brought = [0] * 8
        for step in done:
            if step[0] == "weights":
                brought[step[1]] += step[2]
            else:
                assert brought[step[1]] == 100
        assert brought == [100] * 8


def test_windowed_layers_ask_for_more_slots():
    assert weight_slots(OPT) == 2
    assert weight_slots(GEMMA) == 3
    assert weight_slots(replace(GEMMA, windowed_layers=35)) == 7
    assert weight_slots(replace(GEMMA, windowed_layers=42)) == 2
    layer = layer_weight_bytes(GEMMA)
    assert streamed_device_bytes(GEMMA) == (3 - 42) * layer
    assert streamed_device_bytes(replace(GEMMA, num_layers=2, windowed_layers=1)) == 0


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("ahead", [False, True])
def test_dense_work_waits_for_all_of_its_weights(schedule, ahead):
    shape = replace(GEMMA, num_layers=6, windowed_layers=3)
    geometry = Geometry(64, 2**22, 4)
    work = DecodeWork(shape, (4, 4), 4000, recompute_split(0.5), geometry)
    order = StepOrder(Policy.RECOMPUTE, 4, schedule, 0.75, weights_ahead=ahead)
    program = step_program(work, order)
    assert program.weight_slots == 3
    turns = 6 if schedule is Schedule.COLUMN else 12
    brought = {}
    for op in program.operations:
        if op.kind is Kind.LOAD_WEIGHTS:
            brought.setdefault(op.weights_number, []).append(op)
    assert len(brought) == turns
    dense = [op for op in program.operations if op.kind is Kind.DENSE and op.layer < 6]
    for number, op in enumerate(dense):
        pieces = brought[number]
        assert sum(piece.link_bytes for piece in pieces) == round(0.75 * layer_weight_bytes(shape))
        assert op.waits_for == tuple(piece.index for piece in pieces)
        assert all(piece.layer == op.layer for piece in pieces)
