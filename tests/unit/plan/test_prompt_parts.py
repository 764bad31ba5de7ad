from dataclasses import replace

import pytest
from tests.unit.plan.shapes import SMALL

from headrace.errors import ConfigurationError
from headrace.hardware.catalog import machine
from headrace.model.cost import (
    all_layers_weight_bytes,
    layer_dense_flops,
    model_weight_bytes,
)
from headrace.model.published import published_shape
from headrace.plan.geometry import prompt_granule_bytes
from headrace.plan.memory import cache_bytes_per_token, forward_bytes, hidden_bytes_per_token
from headrace.plan.plan import make_plan
from headrace.plan.prompt_parts import PREFILL_SHARE, prefill_tokens
from headrace.plan.workload import Workload

A100 = machine("a100-40gb-pcie4")
LLAMA = replace(published_shape("llama-3-8b"), max_context=200_000)
LONG = Workload(4, 32_768, 32)
GIB = 2**30


def tokens(shape, workload, budget, streams_weights=False):
    return prefill_tokens(shape, workload, A100, budget, streams_weights=streams_weights)


def test_where_all_fits_a_twentieth_of_the_budget_is_for_prompts():
    workload = Workload(64, 512, 32)
    most = PREFILL_SHARE * 40 * GIB / hidden_bytes_per_token(LLAMA)
    assert tokens(LLAMA, workload, 40 * GIB) == int(most) // 512 * 512
    assert tokens(LLAMA, Workload(4, 512, 32), 40 * GIB) == 4 * 512


def test_where_it_does_not_a_prompt_comes_in_parts_that_keep_the_device_busy():
    part = tokens(LLAMA, LONG, 24 * GIB)
    assert part % 256 == 0
    assert 1024 <= part <= LONG.prompt_len / 8
    compute_s = (
        part * sum(layer_dense_flops(one, 1) for one in LLAMA.layers) / A100.gemm_rate(LLAMA.dtype)
    )
    read_s = all_layers_weight_bytes(LLAMA) / A100.device_bytes_per_s
    bring_s = LONG.prompt_len / 2 * cache_bytes_per_token(LLAMA) / A100.h2d_bytes_per_s
    assert compute_s >= 7.9 * read_s
    assert compute_s >= 0.99 * bring_s


def test_streamed_weights_come_with_as_many_tokens_as_there_is_memory_for():
    few = tokens(LLAMA, LONG, 24 * GIB)
    many = tokens(LLAMA, LONG, 24 * GIB, streams_weights=True)
    assert many > 3 * few
    assert many * hidden_bytes_per_token(LLAMA) <= PREFILL_SHARE * 24 * GIB


@pytest.mark.parametrize("prompt_len", [1, 100, 255, 256, 257, 700, 5000, 32_768])
@pytest.mark.parametrize("budget", [1e6, 1e8, 17e9, 24e9, 1e12])
@pytest.mark.parametrize("streams_weights", [False, True])
def test_parts_are_of_one_size_and_prompts_are_whole(prompt_len, budget, streams_weights):
    workload = Workload(3, prompt_len, 8)
    found = tokens(LLAMA, workload, budget, streams_weights)
    if found >= prompt_len:
        assert found in (prompt_len, 2 * prompt_len, 3 * prompt_len)
    else:
        assert found % 256 == 0
        parts = -(-prompt_len // found)
        assert found - 256 < prompt_len / parts


def test_a_plan_keeps_more_of_a_long_context_on_the_device():
    budget = 24 * GIB
    parts = make_plan(LLAMA, LONG, A100, gpu_memory_bytes=budget)
    whole = make_plan(LLAMA, LONG, A100, gpu_memory_bytes=budget, prefill_tokens=LONG.prompt_len)
    assert parts.prefill_tokens < whole.prefill_tokens == LONG.prompt_len
    assert parts.gpu_items["forward"] < whole.gpu_items["forward"] / 8
    assert parts.split.resident > 1.5 * whole.split.resident
    assert parts.step_s < 0.85 * whole.step_s
    assert sum(parts.gpu_items.values()) <= budget


def test_weights_that_are_streamed_leave_prompts_their_memory():
    shape = published_shape("opt-30b")
    workload, budget = Workload(32, 512, 32), 24 * GIB
    assert model_weight_bytes(shape) > budget
    plan = make_plan(shape, workload, A100, gpu_memory_bytes=budget)
    assert plan.weights_streamed > 0
    assert plan.prefill_tokens == tokens(shape, workload, budget, streams_weights=True)
    assert plan.gpu_items["forward"] == forward_bytes(shape, workload, plan.prefill_tokens)
    # What is settled is planned again to about the same end.
    settled = make_plan(
        shape, workload, A100, gpu_memory_bytes=budget, weights_streamed=plan.weights_streamed
    )
    assert settled.feasible
    assert settled.prefill_tokens >= 0.4 * plan.prefill_tokens


def test_where_memory_lacks_for_more_tokens_with_streamed_weights_fewer_do():
    shape, workload = published_shape("opt-30b"), Workload(1, 1900, 8)
    least = next(
        budget
        for budget in range(3 * GIB, 60 * GIB, GIB // 16)
        if make_plan(shape, workload, A100, gpu_memory_bytes=budget).feasible
    )
    plan = make_plan(shape, workload, A100, gpu_memory_bytes=least)
    assert plan.weights_streamed > 0.9
    assert sum(plan.gpu_items.values()) <= least


@pytest.mark.parametrize("policy", ["host", "stream", "auto"])
def test_granules_hold_much_of_what_a_part_needs(policy):
    plan = make_plan(LLAMA, LONG, A100, policy=policy, gpu_memory_bytes=24 * GIB)
    assert plan.prefill_tokens < LONG.prompt_len
    least = prompt_granule_bytes(LLAMA, plan.prefill_tokens)
    assert plan.geometry.granule_bytes >= least > 2**22


def test_where_granules_for_parts_do_not_fit_smaller_ones_do():
    """With them a prompt's parts take more calls, which is better than no plan."""

    def plan(budget):
        workload = Workload(1, 8000, 8)
        return make_plan(
            LLAMA, workload, A100, policy="stream", gpu_memory_bytes=budget, stream_weights=False
        )

    low, high = int(model_weight_bytes(LLAMA)), 24 * GIB
    while high - low > 2**20:
        middle = (low + high) // 2
        low, high = (low, middle) if plan(middle).feasible else (middle, high)
    tight, roomy = plan(high), plan(high + 2**28)
    least = prompt_granule_bytes(LLAMA, tight.prefill_tokens)
    assert tight.prefill_tokens == roomy.prefill_tokens < 8000
    assert tight.geometry.granule_bytes < least <= roomy.geometry.granule_bytes


def test_no_tokens_at_all_are_refused():
    with pytest.raises(ConfigurationError, match="prefill_tokens is 0"):
        make_plan(SMALL, Workload(2, 200, 8), A100, prefill_tokens=0)


def test_short_prompts_are_never_divided():
    assert tokens(SMALL, Workload(2, 200, 8), 1e6) == 200
