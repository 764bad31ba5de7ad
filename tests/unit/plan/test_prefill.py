from collections import Counter
from dataclasses import replace

import pytest
from tests.unit.plan.shapes import SMALL

from headrace.hardware.catalog import machine
from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    head_dense_flops,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_weight_bytes,
    prefill_attention_flops,
    rebuild_flops_per_token,
)
from headrace.model.published import published_shape
from headrace.plan.operations import Kind
from headrace.plan.plan import make_plan, plan_program
from headrace.plan.prefill import prefill_program
from headrace.plan.prefill import prefill_s as predicted_prefill_s
from headrace.plan.simulate import simulate
from headrace.plan.workload import Workload
from headrace.timeline import Lane

A100 = machine("a100-40gb-pcie4")
PAPER = machine("paper-a100")
STORES = (Kind.STORE_KV, Kind.STORE_ACTIVATIONS)


def stored(program):
    found = Counter()
    for op in program.operations:
        if op.kind in STORES:
            found[op.kind] += op.link_bytes
    return found


def prefill_s(plan, shape, profile):
    timeline = simulate(prefill_program(plan, shape), profile, shape.dtype)
    return max(span.finish_s for span in timeline.select([Lane.COMPUTE]))


@pytest.mark.parametrize(
    ("policy", "fraction"),
    [("stream", None), ("host", None), ("recompute", 0.0), ("recompute", 0.5), ("kvpr", 1.0)],
)
@pytest.mark.parametrize("prompt_len", [128, 140])
@pytest.mark.parametrize("prefill_rows", [1, 3, 8])
def test_what_is_stored_is_what_is_on_the_host(policy, fraction, prompt_len, prefill_rows):
    plan = make_plan(
        SMALL,
        Workload(8, prompt_len, 32),
        A100,
        policy=policy,
        recompute_fraction=fraction,
        prefill_tokens=prefill_rows * prompt_len,
    )
    paged = 8 * plan.geometry.paged_tokens(prompt_len) * SMALL.num_layers
    assert prompt_len - 16 < plan.geometry.paged_tokens(prompt_len) <= prompt_len
    rebuilt = fraction or 0.0
    found = stored(prefill_program(plan, SMALL))
    assert found[Kind.STORE_KV] == (1 - rebuilt) * paged * kv_bytes_per_token(SMALL)
    assert found[Kind.STORE_ACTIVATIONS] == rebuilt * paged * activation_bytes_per_token(SMALL)


@pytest.mark.parametrize("policy", ["stream", "kvpr", "recompute"])
@pytest.mark.parametrize("batches", [1, 4])
def test_the_first_decode_step_loads_what_was_stored(policy, batches):
    plan = make_plan(
        SMALL, Workload(16, 200, 64, batches), A100, policy=policy, stream_weights=False
    )
    found = stored(prefill_program(plan, SMALL))
    step = plan_program(plan, SMALL, 200)
    assert sum(found.values()) == pytest.approx(sum(op.link_bytes for op in step.loads), rel=0.01)


def test_what_stays_on_the_device_is_not_stored():
    plan = make_plan(SMALL, Workload(8, 128, 32), A100, policy="resident")
    assert not stored(prefill_program(plan, SMALL))
    short = make_plan(SMALL, Workload(8, 15, 2), A100, policy="stream")
    assert short.geometry.paged_tokens(15) == 0
    assert not stored(prefill_program(short, SMALL))


def test_windowed_layers_store_nothing_and_attend_to_their_window():
    shape = replace(SMALL, sliding_window=32, windowed_layers=2)
    plan = make_plan(shape, Workload(4, 128, 32), A100, policy="stream")
    program = prefill_program(plan, shape)
    windowed = shape.windowed_indices
    assert {op.layer for op in program.operations if op.kind in STORES} == {0, 1, 2, 3} - windowed
    pairs = {False: 128 * 129 // 2, True: 32 * 33 // 2 + 96 * 32}
    for op in program.operations:
        if op.kind is Kind.ATTEND_NEW:
            assert op.flops == 4 * 256 * 4 * pairs[op.layer in windowed]


@pytest.mark.parametrize("prefill_rows", [1, 3, 8])
def test_the_arithmetic_is_that_of_all_prompts(prefill_rows):
    workload = Workload(8, 128, 32)
    plan = make_plan(SMALL, workload, A100, policy="stream", prefill_tokens=prefill_rows * 128)
    flops = Counter()
    for op in prefill_program(plan, SMALL).operations:
        flops[op.kind] += op.flops
    dense = SMALL.num_layers * layer_dense_flops(SMALL, 8 * 128) + head_dense_flops(SMALL, 8)
    attention = SMALL.num_layers * 8 * prefill_attention_flops(SMALL, 128)
    assert flops == {Kind.DENSE: dense, Kind.ATTEND_NEW: attention} | dict.fromkeys(
        (Kind.STORE_KV,), 0
    )


@pytest.mark.parametrize(
    ("policy", "fraction"), [("stream", None), ("host", None), ("recompute", 0.5)]
)
@pytest.mark.parametrize("part", [256, 512, 768])
def test_prompts_in_parts_store_the_same_and_bring_what_went_before(policy, fraction, part):
    workload = Workload(3, 1024, 32)
    plan = make_plan(
        SMALL,
        workload,
        A100,
        policy=policy,
        recompute_fraction=fraction,
        stream_weights=False,
        prefill_tokens=part,
    )
    assert plan.prefill_tokens == part
    whole = replace(plan, prefill_tokens=workload.prompt_len)
    program = prefill_program(plan, SMALL)
    assert stored(program) == stored(prefill_program(whole, SMALL))
    rebuilt = fraction or 0.0
    of_token = rebuilt * activation_bytes_per_token(SMALL)
    of_token += (1 - rebuilt) * kv_bytes_per_token(SMALL)
    earlier = sum(range(part, 1024, part)) * workload.rows * SMALL.num_layers
    assert program.link_bytes == pytest.approx(earlier * of_token)
    flops = Counter()
    for op in program.operations:
        flops[op.kind] += op.flops
    attention = SMALL.num_layers * workload.rows * prefill_attention_flops(SMALL, 1024)
    assert flops[Kind.ATTEND] + flops[Kind.ATTEND_NEW] == attention
    assert flops[Kind.REBUILD] == rebuilt * earlier * rebuild_flops_per_token(SMALL)
    rows_s = predicted_prefill_s(plan, SMALL, A100)
    assert rows_s == pytest.approx(prefill_s(plan, SMALL, A100), rel=0.1)


def test_windowed_layers_bring_nothing_of_earlier_parts():
    shape = replace(SMALL, sliding_window=32, windowed_layers=2)
    plan = make_plan(shape, Workload(2, 1024, 32), A100, policy="stream", prefill_tokens=256)
    program = prefill_program(plan, shape)
    assert {op.layer for op in program.loads} == set(range(4)) - shape.windowed_indices
    pairs = 32 * 33 // 2 + (1024 - 32) * 32
    for layer in shape.windowed_indices:
        flops = sum(
            op.flops
            for op in program.operations
            if op.layer == layer and op.kind is Kind.ATTEND_NEW
        )
        assert flops == 2 * 4 * 256 * pairs


def test_a_prefill_that_only_computes_takes_its_arithmetic():
    plan = make_plan(SMALL, Workload(8, 128, 32), PAPER, policy="resident")
    flops = sum(op.flops for op in prefill_program(plan, SMALL).operations)
    assert prefill_s(plan, SMALL, PAPER) == pytest.approx(flops / 312e12)


@pytest.mark.parametrize("schedule", ["row", "column"])
@pytest.mark.parametrize("name", ["opt-6.7b", "opt-30b", "llama-3-8b", "gemma-2-9b"])
def test_no_prefill_is_faster_than_its_bound(name, schedule):
    shape = published_shape(name)
    plan = make_plan(
        shape,
        Workload(32, 512, 32, batches=4),
        A100,
        policy="stream",
        schedule=schedule,
        gpu_memory_bytes=16 * 2**30,
    )
    program = prefill_program(plan, shape)
    assert {op.lane for op in program.operations} >= {Lane.COMPUTE, Lane.STORE_KV}
    flops_s = sum(op.flops for op in program.operations) / A100.gemm_rate(shape.dtype)
    loads = [op.link_bytes for op in program.operations if op.kind is Kind.LOAD_WEIGHTS]
    bound_s = max(flops_s, sum(loads) / A100.h2d_bytes_per_s)
    found_s = prefill_s(plan, shape, A100)
    assert bound_s <= found_s < 2.5 * bound_s


def weight_loads(schedule):
    shape = published_shape("opt-13b")
    plan = make_plan(
        shape,
        Workload(32, 256, 32, batches=4),
        A100,
        policy="stream",
        schedule=schedule,
        prefill_tokens=8 * 256,
        gpu_memory_bytes=12 * 2**30,
    )
    assert plan.weights_streamed > 0.5
    program = prefill_program(plan, shape)
    return shape, plan, [op for op in program.operations if op.kind is Kind.LOAD_WEIGHTS]


def test_column_by_column_brings_in_each_layers_weights_once():
    shape, plan, loads = weight_loads("column")
    assert [op.layer for op in loads] == list(range(shape.num_layers))
    streamed = plan.weights_streamed * all_layers_weight_bytes(shape)
    assert sum(op.link_bytes for op in loads) == pytest.approx(streamed, rel=1e-6)


def test_row_by_row_brings_them_in_for_every_batch_of_prompts():
    shape, plan, loads = weight_loads("row")
    assert [op.layer for op in loads] == 4 * list(range(shape.num_layers))
    each = round(plan.weights_streamed * layer_weight_bytes(shape))
    assert {op.link_bytes for op in loads} == {each}


def test_weights_on_the_device_are_not_loaded():
    plan = make_plan(SMALL, Workload(8, 128, 32), A100, policy="stream", stream_weights=False)
    kinds = {op.kind for op in prefill_program(plan, SMALL).operations}
    assert kinds == {Kind.DENSE, Kind.ATTEND_NEW, Kind.STORE_KV}


def test_stores_are_two_layers_behind_at_most():
    plan = make_plan(SMALL, Workload(8, 128, 32), A100, policy="recompute", recompute_fraction=0.5)
    program = prefill_program(plan, SMALL)
    of_layer = {
        layer: {op.index for op in program.operations if op.layer == layer and op.kind in STORES}
        for layer in range(4)
    }
    for op in program.operations:
        if op.kind is Kind.DENSE and 2 <= op.layer < 4:
            assert set(op.waits_for) == of_layer[op.layer - 2]
        if op.kind in STORES:
            (attended,) = op.waits_for
            assert program.operations[attended].kind is Kind.ATTEND_NEW
            assert program.operations[attended].layer == op.layer


def test_slow_stores_hold_up_the_prefill():
    plan = make_plan(SMALL, Workload(8, 128, 32), A100, policy="stream")
    slow = replace(A100, d2h_bytes_per_s=1e6)
    size_bytes = 8 * 128 * kv_bytes_per_token(SMALL)
    assert prefill_s(plan, SMALL, slow) > 2 * size_bytes / 1e6
    assert prefill_s(plan, SMALL, A100) < 1e-2
