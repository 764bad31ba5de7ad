"""A decode step of equal rows: its closed-form times, and its program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import kv_bytes_per_token
from headrace.model.shape import ModelShape
from headrace.plan.batches import BatchWork, StepOrder
from headrace.plan.demands import cache_loads
from headrace.plan.device_time import DeviceTime
from headrace.plan.geometry import Geometry
from headrace.plan.granules import GranuleSpec, layer_granules, order_granules, path_pages
from headrace.plan.operations import Kind, Program
from headrace.plan.policies import LayerTimes, Policy, Split
from headrace.plan.resources import Term
from headrace.plan.schedule import build_step
from headrace.plan.step_work import StepWork


def layer_times(
    shape: ModelShape, rows: int, context: int, profile: HardwareProfile, tail_len: int = 0
) -> LayerTimes:
    """Return what a full layer's cached tokens ask of link and device, latencies left out.

    All of a step is divided over the full layers.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row that are in pages.
        profile: the machine.
        tail_len: cached tokens of a row that are on the device besides.
    """
    work = StepWork(shape, rows, context + tail_len, context)
    device = DeviceTime(work, profile)

    def per_layer_s(terms: Iterable[Term]) -> float:
        return sum(term.seconds for term in terms) / max(1, shape.full_layers)

    streamed, rebuilt = (list(device.cached((path,))) for path in ("stream", "recompute"))
    return LayerTimes(
        stream_link_s=per_layer_s(cache_loads(work, profile, ("stream",))),
        recompute_link_s=per_layer_s(cache_loads(work, profile, ("recompute",))),
        rebuild_gpu_s=per_layer_s(rebuilt) - per_layer_s(streamed),
        attend_gpu_s=per_layer_s(streamed),
        fixed_gpu_s=per_layer_s(device.dense_layers(windowed=False)),
        last_gpu_s=per_layer_s(device.unhidden()),
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
    hosts = host_tokens if hosted else ()
    return BatchWork(rows, by_layer, stores, device_tokens, hosts, geometry.block_tokens)


def _window(shape: ModelShape, context: int) -> int:
    return context if shape.sliding_window is None else min(shape.sliding_window, context)
