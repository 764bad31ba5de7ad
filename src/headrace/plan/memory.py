"""What a plan keeps in device and host memory, item by item.

Everything is counted: weights and the slots that streamed ones go through, K/V, staging, tails,
logits, and what the forward pass itself needs at its peak, in decoding or in the prefill.
"""

from __future__ import annotations

from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    feed_forward_width,
    host_embedding_bytes,
    kv_bytes_per_token,
    model_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.device_time import PARTIAL_BYTES
from headrace.plan.geometry import STORE_SLOTS as STORE_SLOTS
from headrace.plan.geometry import Geometry, usual_block_tokens
from headrace.plan.placement import Placement
from headrace.plan.weights import streamed_device_bytes
from headrace.plan.workload import Workload

_LOGIT_BYTES = 4
"""Logits are sampled from in float32."""


def cache_bytes_per_token(shape: ModelShape) -> int:
    """Return the bytes of a token's K/V in all layers that attend to the whole context."""
    return sum(group.layers * kv_bytes_per_token(group.shape) for group in shape.groups)


def fixed_gpu_items(
    shape: ModelShape, workload: Workload, weights_streamed: float, prefill_tokens: int
) -> dict[str, int]:
    """Return the bytes on the device that do not depend on how the cache is cut and divided.

    Args:
        shape: the model.
        workload: the batch, whose finished rows count.
        weights_streamed: share of the layers' weights that is streamed.
        prefill_tokens: tokens of prompts that go through the model at once.
    """
    window = min(shape.sliding_window or 0, workload.max_context)
    windowed = sum(
        group.layers * kv_bytes_per_token(group.shape)
        for group in shape.all_groups
        if group.windowed
    )
    return {
        **weight_items(shape, weights_streamed),
        "logits": workload.rows * shape.vocab_size * _LOGIT_BYTES,
        "windowed_kv": workload.rows * window * windowed,
        "forward": forward_bytes(shape, workload, prefill_tokens),
    }


def resident_bytes(shape: ModelShape, workload: Workload, prefill_tokens: int) -> int:
    """Return the bytes on the device where weights and cache are there as a whole.

    Args:
        shape: the model.
        workload: the batch.
        prefill_tokens: tokens of prompts that go through the model at once.
    """
    fixed = fixed_gpu_items(shape, workload, 0.0, prefill_tokens)
    return sum(fixed.values()) + workload.rows * workload.max_context * cache_bytes_per_token(shape)


def weight_items(shape: ModelShape, weights_streamed: float) -> dict[str, int]:
    """Return the bytes of weights that stay on the device, and of the slots for the others."""
    layers, kept = all_layers_weight_bytes(shape), device_weight_bytes(shape)
    return {
        "weights": round(kept - weights_streamed * layers),
        "weight_slots": round(weights_streamed * (layers + streamed_device_bytes(shape))),
    }


def device_weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of all weights but those that stay on the host and are never brought."""
    return model_weight_bytes(shape) - host_embedding_bytes(shape)


def forward_bytes(shape: ModelShape, workload: Workload, prefill_tokens: int) -> int:
    """Return the peak of what a forward pass allocates: in the prefill, or in a decode step.

    In the prefill it is the feed-forward block's or the attention's intermediate results of all its
    tokens, whichever is larger; in a decode step, those of its rows and the partial results of
    attention, one for each page of each row, which exist twice while they are merged.
    """
    per_token = hidden_bytes_per_token(shape)
    if prefill_tokens < workload.prompt_len:
        per_token = max(per_token, _merging_bytes_per_token(shape))
    prefill = prefill_tokens * per_token
    partial = PARTIAL_BYTES * shape.num_heads * (max_head_dim(shape) + 2)
    pages = -(-workload.max_context // usual_block_tokens(workload.max_context))
    decode = workload.rows * (hidden_bytes_per_token(shape) + 2 * pages * partial)
    return max(prefill, decode)


def _merging_bytes_per_token(shape: ModelShape) -> int:
    """Return the bytes of a token while attention of a prompt's part is merged, at their peak.

    What is held for the layer, queries and a result in the cache's type, and in float32 the sum so
    far and the result that is added to it.
    """
    width = shape.num_heads * max_head_dim(shape)
    d_kv = max(group.shape.d_kv for group in shape.all_groups)
    held = 5 * shape.d_model + 2 * d_kv
    return shape.dtype_bytes * (held + 3 * width) + 2 * PARTIAL_BYTES * width


def hidden_bytes_per_token(shape: ModelShape) -> int:
    """Return the bytes of a token's intermediate results in a layer, at their peak.

    The residual; X, keys and values, which are held until they are stored; another normed input;
    what attention reorders; and queries and the attention's output, or the feed-forward block's
    inner results.
    """
    width = shape.num_heads * max_head_dim(shape)
    d_kv = max(group.shape.d_kv for group in shape.all_groups)
    held = 5 * shape.d_model + 2 * d_kv
    return shape.dtype_bytes * (held + max(2 * width, feed_forward_width(shape)))


def max_head_dim(shape: ModelShape) -> int:
    """Return the width of the widest head."""
    return max(group.shape.head_dim for group in shape.all_groups)


def gpu_items(
    shape: ModelShape,
    workload: Workload,
    placement: Placement,
    geometry: Geometry,
    weights_streamed: float = 0.0,
    prefill_tokens: int | None = None,
) -> dict[str, int]:
    """Return the bytes on the device by item, at the end of the generation.

    Args:
        shape: the model.
        workload: the batch.
        placement: where cached tokens are kept.
        geometry: how the cache is cut.
        weights_streamed: share of the layers' weights that is streamed.
        prefill_tokens: tokens of prompts that go through the model at once; None: all.
    """
    rows = workload.rows
    everything = rows * workload.prompt_len
    items = fixed_gpu_items(
        shape, workload, weights_streamed, everything if prefill_tokens is None else prefill_tokens
    )
    block = geometry.block_tokens
    token_bytes = cache_bytes_per_token(shape)
    staged = not placement.all_resident
    if placement.resident_pages is None:
        on_host = round(placement.recompute * workload.prompt_len)
        pages = rows * -(-(workload.max_context - on_host) // block)
    else:
        pages = min(placement.resident_pages, rows * -(-workload.max_context // block))
    if placement.all_resident:
        items["resident_kv"] = rows * workload.max_context * token_bytes
    else:
        items["resident_kv"] = pages * block * token_bytes
    items["staging"] = geometry.ring_bytes if staged else 0
    items["store_ring"] = STORE_SLOTS * geometry.granule_bytes if staged else 0
    items["rebuild_workspace"] = geometry.workspace_bytes(shape) if placement.recompute else 0
    items["tail"] = geometry.tail_bytes(shape, rows) if staged else 0
    return items


def host_items(
    shape: ModelShape,
    workload: Workload,
    placement: Placement,
    geometry: Geometry,
    weights_streamed: float = 0.0,
) -> dict[str, int]:
    """Return the bytes on the host by item: ``activations``, ``kv``, ``weights``, ``embedding``.

    The cache is counted at the end of the generation, in whole pages. X is kept instead of K/V for
    the tokens that are rebuilt.
    """
    weights = round(weights_streamed * all_layers_weight_bytes(shape))
    items = {"weights": weights, "embedding": host_embedding_bytes(shape)}
    if placement.all_resident:
        return {"activations": 0, "kv": 0, **items}
    block, rows = geometry.block_tokens, workload.rows
    rebuilt = round(placement.recompute * workload.prompt_len)
    x_pages = rows * -(-rebuilt // block)
    kv = rows * -(-(workload.max_context - rebuilt) // block)
    kv = 0 if placement.resident_pages is None else max(0, kv - placement.resident_pages)
    x_bytes = sum(group.layers * activation_bytes_per_token(group.shape) for group in shape.groups)
    return {
        "activations": x_pages * block * x_bytes,
        "kv": kv * block * cache_bytes_per_token(shape),
        **items,
    }
