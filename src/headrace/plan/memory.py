"""What a plan keeps in device and host memory, item by item."""

from __future__ import annotations

from headrace.model.cost import (
    activation_bytes_per_token,
    kv_bytes_per_token,
    model_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry
from headrace.plan.policies import Split
from headrace.plan.workload import Workload

_LOGIT_BYTES = 4
"""Logits are sampled from in float32."""


def fixed_gpu_items(shape: ModelShape, workload: Workload, admission: Split) -> dict[str, int]:
    """Return the bytes on the device that do not depend on how the cache is cut.

    Args:
        shape: the model.
        workload: the batch, whose finished rows count.
        admission: the split of the prompt's tokens.
    """
    token_bytes = workload.rows * kv_bytes_per_token(shape)
    window = min(shape.sliding_window or 0, workload.max_context)
    all_resident = admission.resident == 1
    resident = workload.max_context if all_resident else workload.prompt_len * admission.resident
    return {
        "weights": model_weight_bytes(shape),
        "logits": workload.rows * shape.vocab_size * _LOGIT_BYTES,
        "windowed_kv": token_bytes * window * shape.windowed_layers,
        "resident_kv": round(token_bytes * resident * shape.full_layers),
    }


def gpu_items(
    shape: ModelShape, workload: Workload, admission: Split, geometry: Geometry
) -> dict[str, int]:
    """Return the bytes on the device by item: weights, staging, workspace, tail, K/V, logits."""
    items = fixed_gpu_items(shape, workload, admission)
    staged = admission.resident < 1
    rebuilt = admission.recompute > 0
    items["staging"] = geometry.ring_bytes if staged else 0
    items["rebuild_workspace"] = geometry.workspace_bytes(shape) if rebuilt else 0
    items["tail"] = geometry.tail_bytes(shape, workload.rows) if staged else 0
    return items


def host_items(
    shape: ModelShape, workload: Workload, admission: Split, geometry: Geometry
) -> dict[str, int]:
    """Return the bytes on the host by item, ``activations`` and ``kv``, in whole pages.

    X is kept instead of K/V for the tokens that are rebuilt.
    """
    block = geometry.block_tokens
    rebuilt = -(-round(admission.recompute * workload.prompt_len) // block) * block
    on_device = round(admission.resident * workload.prompt_len)
    kv = -(-max(0, workload.max_context - on_device - rebuilt) // block) * block
    if admission.resident == 1:
        kv = 0
    layers = workload.rows * shape.full_layers
    return {
        "activations": rebuilt * layers * activation_bytes_per_token(shape),
        "kv": kv * layers * kv_bytes_per_token(shape),
    }
