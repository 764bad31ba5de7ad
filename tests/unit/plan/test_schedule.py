import pytest

from headrace.model.cost import kv_bytes_per_token
from headrace.model.published import published_shape
from headrace.plan.operations import Kind
from headrace.plan.policies import Policy
from headrace.plan.schedule import GranuleSpec, build_program, order_granules
from headrace.timeline import Lane

SHAPE = published_shape("qwen3-0.6b")
X = GranuleSpec("activations", 2, 128, 1000)
KV = GranuleSpec("kv", 1, 64, 900)
RESIDENT = GranuleSpec("resident", 1, 64, 0)


def program_of(granules, policy, ring_slots=4, **settings):
    layers = [granules, granules, *[()] * (SHAPE.num_layers - 2)]
    return build_program(SHAPE, layers, 1, 1, ring_slots, policy, **settings)


def kinds(program, layer):
    return [op.kind for op in program.operations if op.layer == layer]


def test_a_layer_in_order():
    program = program_of([RESIDENT, X, KV], Policy.RECOMPUTE)
    assert kinds(program, 0) == [
        Kind.LOAD_ACTIVATIONS,
        Kind.LOAD_KV,
        Kind.DENSE,
        Kind.ATTEND_NEW,
        Kind.ATTEND,
        Kind.REBUILD,
        Kind.ATTEND,
        Kind.ATTEND,
        Kind.MERGE,
    ]
    assert kinds(program, 2) == [Kind.DENSE, Kind.ATTEND_NEW, Kind.MERGE]
    assert kinds(program, SHAPE.num_layers) == [Kind.DENSE]
    assert program.link_bytes == 2 * 1900
    assert program.lookahead


def test_operations_carry_their_work():
    program = program_of([X, KV], Policy.RECOMPUTE)
    load_x, load_kv, dense, attend_new, rebuild, attend_x, attend_kv, _ = program.operations[:8]
    assert (load_x.lane, load_kv.lane) == (Lane.LOAD_ACTIVATIONS, Lane.LOAD_KV)
    assert (load_x.load_number, load_kv.load_number) == (0, 1)
    assert dense.flops > 0
    assert (rebuild.load_number, rebuild.waits_for) == (0, (load_x.index,))
    assert rebuild.flops == 128 * 4 * 1024 * 1024
    assert (attend_x.load_number, attend_x.waits_for) == (-1, (rebuild.index,))
    assert (attend_kv.load_number, attend_kv.waits_for) == (1, (load_kv.index,))
    assert attend_kv.memory_bytes == 64 * kv_bytes_per_token(SHAPE)
    assert attend_new.tokens == 1


def test_device_tokens_are_attended_in_attend_new():
    tokens = list(range(SHAPE.num_layers))
    program = program_of([], Policy.STREAM, device_tokens=tokens)
    attends = [op.tokens for op in program.operations if op.kind is Kind.ATTEND_NEW]
    assert attends == tokens


def test_the_paper_waits_for_all_x_and_for_the_layer_above():
    program = program_of(order_granules([X, X, KV, X], Policy.KVPR), Policy.KVPR)
    operations = program.operations
    loads = [op for op in program.loads if op.layer == 1]
    merge = next(op for op in operations if op.kind is Kind.MERGE)
    assert all(load.waits_for == (merge.index,) for load in loads)
    rebuilds = [op for op in operations if op.kind is Kind.REBUILD and op.layer == 1]
    assert [op.waits_for for op in rebuilds] == [(loads[2].index,)] * 3
    assert [op.load_number for op in rebuilds] == [4, 5, 6]
    assert not program.lookahead


def test_the_paper_with_a_short_ring_waits_for_what_fits():
    program = program_of([X] * 5, Policy.KVPR, ring_slots=3)
    loads = [op.index for op in program.loads if op.layer == 0]
    rebuilds = [op for op in program.operations if op.kind is Kind.REBUILD and op.layer == 0]
    assert [op.waits_for[0] for op in rebuilds] == [loads[i] for i in (2, 2, 2, 4, 4)]


def test_the_paper_refuses_another_order():
    with pytest.raises(ValueError, match="all X of a layer before"):
        program_of([KV, X], Policy.KVPR)


def test_interleaving_begins_with_x():
    ordered = order_granules([KV, KV, X, KV, X], Policy.RECOMPUTE)
    assert [spec.kind for spec in ordered] == ["activations", "kv", "activations", "kv", "kv"]


def test_stores_wait_for_the_new_kv():
    stores = [[(Kind.STORE_KV, 10), (Kind.STORE_ACTIVATIONS, 5)]] * SHAPE.num_layers
    program = program_of([KV], Policy.STREAM, stores=stores)
    in_layer = [op for op in program.operations if op.layer == 0]
    attend_new, _, _, store_kv, store_x = in_layer[-5:]
    assert (store_kv.lane, store_x.lane) == (Lane.STORE_KV, Lane.STORE_ACTIVATIONS)
    assert store_kv.waits_for == store_x.waits_for == (attend_new.index,)
    assert (store_kv.link_bytes, store_x.link_bytes) == (10, 5)


def test_as_many_layers_as_the_model_has():
    with pytest.raises(ValueError, match="1 lists of granules for 28 layers"):
        build_program(SHAPE, [()], 1, 1, 4, Policy.STREAM)
