"""How many tokens of prompts go through the model at once.

What a forward holds of each of its tokens is memory that the cache lacks for the whole generation.
A prompt may come in parts: a later part attends to what is cached of the earlier ones, which
travels to the device once more if it is on the host. So where the cache does not fit on the device
as a whole, a forward takes as few tokens as keep the device busy. That is long compared with
reading the weights, and as long as the earlier parts travel. Where weights are streamed, every
forward brings them again, and as many tokens as there is memory for go at once.
"""

from __future__ import annotations

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    all_layers_weight_bytes,
    layer_dense_flops,
)
from headrace.model.shape import ModelShape
from headrace.plan.memory import cache_bytes_per_token, hidden_bytes_per_token, resident_bytes
from headrace.plan.workload import Workload

PREFILL_SHARE = 0.05
"""Share of the device's budget that the prompts which go through the model at once may take."""

_TIMES_READING = 8
"""How many times as long as reading the weights a forward is to multiply."""

_UNIT_TOKENS = 256
"""Parts of a prompt are of so many tokens, or of some times as many."""


def prefill_tokens(
    shape: ModelShape,
    workload: Workload,
    profile: HardwareProfile,
    budget_bytes: float,
    *,
    streams_weights: bool,
) -> int:
    """Return how many tokens of prompts go through the model at once: whole prompts, or a part.

    Args:
        shape: the model.
        workload: the batch.
        profile: the machine.
        budget_bytes: device memory that may be used.
        streams_weights: whether weights are streamed.

    Raises:
        ProfileError: the machine has no rate for the model's element type.
    """
    most = _most_tokens(shape, budget_bytes)
    if not streams_weights and not everything_fits(shape, workload, budget_bytes):
        most = min(most, _busy_tokens(shape, workload, profile))
    return _whole(workload, most)


def fewer_tokens(workload: Workload, tokens: int) -> int:
    """Return about half as many tokens, of which the same holds."""
    return _whole(workload, tokens // 2)


def everything_fits(shape: ModelShape, workload: Workload, budget_bytes: float) -> bool:
    """Return whether model and cache fit on the device, with as many tokens at once as may be.

    Args:
        shape: the model.
        workload: the batch.
        budget_bytes: device memory that may be used.
    """
    prompts = workload.rows * workload.prompt_len
    tokens = min(prompts, _most_tokens(shape, budget_bytes))
    return resident_bytes(shape, workload, tokens) <= budget_bytes


def _most_tokens(shape: ModelShape, budget_bytes: float) -> int:
    """Return the most tokens of prompts that may take their share of the budget."""
    return int(PREFILL_SHARE * budget_bytes / hidden_bytes_per_token(shape))


def _busy_tokens(shape: ModelShape, workload: Workload, profile: HardwareProfile) -> int:
    """Return how many tokens keep the device busy."""
    flops = sum(layer_dense_flops(layer, 1) for layer in shape.layers)
    token_s = flops / profile.gemm_rate(shape.dtype)
    read_s = all_layers_weight_bytes(shape) / profile.device_bytes_per_s
    tokens = _TIMES_READING * read_s / token_s
    if tokens < workload.prompt_len:
        earlier = workload.prompt_len / 2
        bring_s = earlier * cache_bytes_per_token(shape) / profile.h2d_bytes_per_s
        tokens = max(tokens, bring_s / token_s)
    return -int(-tokens // _UNIT_TOKENS) * _UNIT_TOKENS


def _whole(workload: Workload, tokens: int) -> int:
    """Return about so many tokens: as many whole prompts, or a prompt's parts of one size."""
    prompt_len = workload.prompt_len
    if tokens >= prompt_len:
        return min(workload.rows, tokens // prompt_len) * prompt_len
    parts = -(-prompt_len // max(tokens, _UNIT_TOKENS))
    of_part = -(-prompt_len // parts)
    return min(prompt_len, -(-of_part // _UNIT_TOKENS) * _UNIT_TOKENS)
