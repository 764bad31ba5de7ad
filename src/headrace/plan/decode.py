"""A decode step of equal rows: its closed-form times, and its program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_weight_bytes,
    rebuild_flops_per_token,
)
from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry
from headrace.plan.granules import GranuleSpec, layer_granules, order_granules, path_pages
from headrace.plan.operations import Kind, Program
from headrace.plan.policies import LayerTimes, Policy, Split
from headrace.plan.schedule import BatchWork, StepOrder, build_step


def layer_times(
    shape: ModelShape, rows: int, context: int, profile: HardwareProfile, tail_len: int = 0
) -> LayerTimes:
    """Return what a full layer's cached tokens ask of link and device, latencies left out.

    The fixed work of all layers and of the head is divided over the full layers, because with
    look-ahead the link works for those during the others too.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row that are in pages.
        profile: the machine.
        tail_len: cached tokens of a row that are on the device besides.
    """
    kv_bytes = kv_bytes_per_token(shape)
    x_bytes = activation_bytes_per_token(shape)
    gemm_flops_per_s = profile.gemm_rate(shape.dtype)
    tokens = rows * context
    attend_s = max(attention_flops(shape, 1, 1) / gemm_flops_per_s, kv_bytes / profile.attend_rate)
    rebuild_s = max(
        rebuild_flops_per_token(shape) / profile.rebuild_rate(shape.dtype),
        (kv_bytes + x_bytes) / profile.device_bytes_per_s,
    )
    dense_s = max(
        layer_dense_flops(shape, rows) / gemm_flops_per_s,
        layer_weight_bytes(shape) / profile.dense_rate,
    )
    head_s = max(
        head_dense_flops(shape, rows) / gemm_flops_per_s,
        head_weight_bytes(shape) / profile.dense_rate,
    )
    on_device = shape.windowed_layers * _window(shape, context + tail_len)
    on_device += shape.full_layers * tail_len
    fixed_s = shape.num_layers * dense_s + head_s + rows * on_device * attend_s
    return LayerTimes(
        stream_link_s=tokens * kv_bytes / profile.h2d_bytes_per_s,
        recompute_link_s=tokens * x_bytes / profile.h2d_bytes_per_s,
        rebuild_gpu_s=tokens * rebuild_s,
        attend_gpu_s=tokens * attend_s,
        fixed_gpu_s=fixed_s / max(1, shape.full_layers),
    )


@dataclass(frozen=True)
class DecodeWork:
    """A decode step of equal rows, in whole pages.

    Attributes:
        shape: the model.
        rows: rows of each batch.
        context: cached tokens of a row.
        split: how those in pages are divided over the paths.
        geometry: how the cache is cut.
    """

    shape: ModelShape
    rows: tuple[int, ...]
    context: int
    split: Split
    geometry: Geometry


def decode_program(
    shape: ModelShape, rows: int, context: int, split: Split, geometry: Geometry, policy: Policy
) -> Program:
    """Return the program of a decode step over one batch, whose weights are on the device.

    See ``step_program``.
    """
    work = DecodeWork(shape, (rows,), context, split, geometry)
    return step_program(work, StepOrder(policy, geometry.ring_slots))


def step_program(work: DecodeWork, order: StepOrder) -> Program:
    """Return the program of a decode step over equal rows.

    Where all is resident, ``ATTEND_NEW`` attends to it all, and there are no granules. Blocks go to
    the host once they are full; here each step stores its share of them.
    """
    batches = [_batch_work(work, rows, order.policy) for rows in work.rows]
    return build_step(work.shape, batches, 1, order)


def _batch_work(work: DecodeWork, rows: int, policy: Policy) -> BatchWork:
    shape, geometry, context, split = work.shape, work.geometry, work.context, work.split
    staged = split.resident < 1
    paged = geometry.paged_tokens(context)
    on_device = context - paged if staged else context
    window = _window(shape, context)
    hosted = path_pages(split, rows, paged // geometry.block_tokens).host if staged else 0
    granules: dict[ModelShape, list[GranuleSpec]] = {}
    for group in shape.groups if staged else ():
        found = layer_granules(split, geometry, rows, context, group.shape)
        granules[group.shape] = order_granules(found, policy)
    by_layer: list[Sequence[GranuleSpec]] = []
    stores: list[Sequence[tuple[Kind, int]]] = []
    device_tokens, host_tokens = [], []
    for index, layer in enumerate(shape.layers):
        windowed = index in shape.windowed_indices
        by_layer.append(() if windowed else granules.get(layer, ()))
        store = staged and not windowed
        stores.append(((Kind.STORE_KV, rows * kv_bytes_per_token(layer)),) if store else ())
        device_tokens.append(rows * (1 + (window if windowed else on_device)))
        host_tokens.append(0 if windowed else hosted * geometry.block_tokens)
    return BatchWork(rows, by_layer, stores, device_tokens, host_tokens if hosted else ())


def _window(shape: ModelShape, context: int) -> int:
    return context if shape.sliding_window is None else min(shape.sliding_window, context)
