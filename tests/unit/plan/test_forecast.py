from dataclasses import replace

import pytest
from tests.unit.plan.shapes import SMALL

from headrace.hardware.catalog import machine
from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.forecast import decode_stretches, decode_time, forecast, lane_shares
from headrace.plan.plan import make_plan, plan_program
from headrace.plan.simulate import predicted_step_s, simulate
from headrace.plan.workload import Workload
from headrace.timeline import Lane, Origin, Span, Timeline

A100 = machine("a100-40gb-pcie4")
PAPER = machine("paper-a100")
LINK_ONLY = replace(PAPER, name="link", gemm_flops_per_s={"float16": 1e30})
"""Everything but the link is as good as infinitely fast."""


@pytest.mark.parametrize(
    ("prompt_len", "steps", "block", "stretches"),
    [
        (16, 5, 16, [(16, 21)]),
        (30, 5, 16, [(30, 32), (32, 35)]),
        (31, 1, 16, [(31, 32)]),
        (64, 33, 16, [(64, 80), (80, 96), (96, 97)]),
        (7, 0, 16, []),
    ],
)
def test_steps_with_the_same_pages_are_a_stretch(prompt_len, steps, block, stretches):
    found = decode_stretches(prompt_len, steps, block)
    assert [(one.start, one.stop) for one in found] == stretches


@pytest.mark.parametrize("prompt_len", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 200])
def test_each_step_is_in_one_stretch(prompt_len, steps):
    stretches = decode_stretches(prompt_len, steps, 16)
    contexts = [context for stretch in stretches for context in stretch]
    assert contexts == list(range(prompt_len, prompt_len + steps))
    assert all(len({context // 16 for context in stretch}) == 1 for stretch in stretches)


def test_few_stretches_are_all_simulated():
    seconds = {35: 1.0, 43: 10.0, 48: 100.0}
    found = decode_time((range(32, 40), range(40, 48), range(48, 50)), seconds.__getitem__)
    assert found.contexts == (35, 43, 48)
    assert found.step_s == (1.0, 10.0, 100.0)
    assert found.total_s == 8 * 1.0 + 8 * 10.0 + 2 * 100.0


def test_stretches_between_are_interpolated():
    stretches = decode_stretches(0, 160, 16)
    simulated = []

    def step_s(context):
        simulated.append(context)
        return 2.0 + context // 16

    found = decode_time(stretches, step_s, 3)
    assert simulated == [7, 16 * 4 + 7, 16 * 9 + 7]
    assert found.total_s == pytest.approx(sum(16 * (2.0 + block) for block in range(10)))


def test_without_decode_steps_there_is_nothing_to_simulate():
    found = decode_time((), lambda context: 1.0)
    assert (found.contexts, found.step_s, found.total_s) == ((), (), 0.0)


@pytest.mark.parametrize(("prompt_len", "generate_len"), [(128, 32), (100, 64), (64, 16), (250, 2)])
def test_streaming_is_what_the_link_takes_for_every_step(prompt_len, generate_len):
    workload = Workload(8, prompt_len, generate_len)
    plan = make_plan(SMALL, workload, LINK_ONLY, policy="stream", stream_weights=False)
    found = forecast(plan, SMALL, LINK_ONLY)
    block = plan.geometry.block_tokens
    tokens = sum((prompt_len + step) // block * block for step in range(generate_len - 1))
    size_bytes = 8 * tokens * kv_bytes_per_token(SMALL) * SMALL.num_layers
    assert found.decode_s == pytest.approx(size_bytes / 32e9, rel=1e-6)
    assert found.busy["load_kv"] == pytest.approx(1.0)


def test_the_split_is_kept_as_the_context_grows():
    workload = Workload(8, 128, 33)
    plan = make_plan(SMALL, workload, LINK_ONLY, policy="recompute", recompute_fraction=1.0)
    found = forecast(plan, SMALL, LINK_ONLY)
    x_bytes, kv_bytes = activation_bytes_per_token(SMALL), kv_bytes_per_token(SMALL)
    layers = 8 * SMALL.num_layers / 32e9
    first_s = 128 * x_bytes * layers
    assert found.contexts == (135, 151)
    assert found.step_s == pytest.approx((first_s, first_s + 16 * kv_bytes * layers))
    assert found.decode_s == pytest.approx(16 * sum(found.step_s))


@pytest.mark.parametrize("policy", ["stream", "kvpr", "recompute", "host", "resident", "auto"])
@pytest.mark.parametrize("batches", [1, 4])
def test_figures_are_consistent(policy, batches):
    workload = Workload(16, 128, 64, batches)
    plan = make_plan(SMALL, workload, A100, policy=policy)
    found = forecast(plan, SMALL, A100)
    each_s = [
        predicted_step_s(plan_program(plan, SMALL, context), A100, SMALL.dtype)
        for context in range(128, 128 + 63)
    ]
    assert found.decode_s == pytest.approx(sum(each_s), rel=0.02)
    assert found.total_s == found.ttft_s + found.decode_s
    assert found.tokens_per_s == pytest.approx(16 * 64 / found.total_s)
    assert 128 <= found.contexts[0] <= found.contexts[-1] < 128 + 63
    assert found.busy.keys() == {lane.value for lane in Lane}
    assert all(0 <= share <= 1 + 1e-9 for share in found.busy.values())
    data = found.to_json()
    assert data["total_s"] == data["ttft_s"] + data["decode_s"]
    assert [one["context"] for one in data["steps"]] == list(found.contexts)
    assert data["peak_gpu_bytes"] == plan.gpu_bytes
    assert data["peak_host_bytes"] == plan.host_bytes


def test_one_token_comes_from_the_prefill_alone():
    plan = make_plan(SMALL, Workload(4, 64, 1), A100, policy="stream")
    found = forecast(plan, SMALL, A100)
    assert (found.contexts, found.step_s, found.decode_s) == ((), (), 0.0)
    assert found.tokens_per_s == pytest.approx(4 / found.ttft_s)


def test_longer_generations_take_longer():
    seconds = [
        forecast(make_plan(SMALL, Workload(8, 128, new), A100, policy="stream"), SMALL, A100)
        for new in (2, 16, 17, 64)
    ]
    decode_s = [one.decode_s for one in seconds]
    assert decode_s == sorted(decode_s)
    assert len(set(decode_s)) == 4


def test_busy_shares_are_those_of_the_steps_in_the_middle():
    def step(number, start_s, busy_s):
        load = Span(Lane.LOAD_KV, "load_kv", number, 0, 0, start_s, start_s + busy_s)
        return load, Span(Lane.COMPUTE, "attend", number, 0, 0, start_s, start_s + 1.0)

    spans = (*step(0, 0.0, 1.0), *step(1, 1.0, 0.25), *step(2, 2.0, 1.0))
    shares = lane_shares(Timeline(Origin.PREDICTED, "", spans))
    assert (shares["load_kv"], shares["compute"], shares["store_kv"]) == (0.25, 1.0, 0.0)


def test_a_single_step_has_busy_shares_too():
    plan = make_plan(SMALL, Workload(4, 64, 2), A100, policy="stream")
    shares = lane_shares(simulate(plan_program(plan, SMALL), A100, SMALL.dtype, 1))
    assert 0 < shares["load_kv"] <= 1
