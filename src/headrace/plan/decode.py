"""A decode step of equal rows: its closed-form times, and its program."""

from __future__ import annotations

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
from headrace.plan.operations import Kind, Program
from headrace.plan.policies import LayerTimes, Policy, Split
from headrace.plan.schedule import build_program, layer_granules, order_granules


def windowed_indices(shape: ModelShape) -> frozenset[int]:
    """Return which layers are taken to be windowed: as many as there are, spread evenly."""
    count, layers = shape.windowed_layers, shape.num_layers
    return frozenset(
        layer for layer in range(layers) if (layer + 1) * count // layers > layer * count // layers
    )


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


def decode_program(
    shape: ModelShape, rows: int, context: int, split: Split, geometry: Geometry, policy: Policy
) -> Program:
    """Return the program of a decode step over equal rows.

    Where all is resident, ``ATTEND_NEW`` attends to it all, and there are no granules. Blocks go to
    the host once they are full; here each step stores its share of them.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row.
        split: how those in pages are divided over the paths.
        geometry: how the cache is cut.
        policy: the order of the granules, and the look-ahead.
    """
    staged = split.resident < 1
    granules = layer_granules(split, geometry, rows, context, shape) if staged else []
    granules = order_granules(granules, policy)
    on_device = context - geometry.paged_tokens(context) if staged else context
    windowed = windowed_indices(shape)
    layers = range(shape.num_layers)
    store = ((Kind.STORE_KV, rows * kv_bytes_per_token(shape)),) if staged else ()
    window = _window(shape, context)
    return build_program(
        shape,
        [() if layer in windowed else granules for layer in layers],
        rows,
        1,
        geometry.ring_slots,
        policy,
        [() if layer in windowed else store for layer in layers],
        device_tokens=[
            rows * (1 + (window if layer in windowed else on_device)) for layer in layers
        ],
    )


def _window(shape: ModelShape, context: int) -> int:
    return context if shape.sliding_window is None else min(shape.sliding_window, context)
