"""The prefill as a program: prompts through all layers, and their cache to where it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.model.cost import (
    activation_bytes_per_token,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.demands import Schedule
from headrace.plan.operations import Kind, OperationList, Program
from headrace.plan.outcome import Plan
from headrace.timeline import Lane

_LAYERS_BEHIND = 2
"""Layers by which stores may be behind: then their buffers are all in use."""


def prefill_program(plan: Plan, shape: ModelShape) -> Program:
    """Return the program of a plan's prefill.

    The prompts go through the model in batches of ``prefill_rows``: row-by-row a batch through all
    layers, column-by-column all batches through a layer. A layer has the load of its weights, where
    they are streamed; its dense work and its causal attention; and the stores of X and K/V that are
    kept on the host, which may be two layers behind.
    """
    workload = plan.workload
    rows = [
        min(plan.prefill_rows, workload.rows - first)
        for first in range(0, workload.rows, plan.prefill_rows)
    ]
    order = [(layer, batch) for batch in range(len(rows)) for layer in range(shape.num_layers)]
    if plan.schedule is Schedule.COLUMN:
        order.sort()
    builder = _Builder(plan, shape)
    for place, (layer, batch) in enumerate(order):
        if place == 0 or layer != order[place - 1][0]:
            builder.load_weights(layer)
        is_last = place + 1 == len(order) or order[place + 1][0] != layer
        builder.add_layer(layer, rows[batch], is_last)
    builder.add_head(workload.rows)
    return Program(tuple(builder.operations), shape.num_layers, plan.geometry.ring_slots)


@dataclass
class _Builder:
    plan: Plan
    shape: ModelShape
    operations: OperationList = field(default_factory=OperationList)
    stores: list[tuple[int, ...]] = field(default_factory=list)
    weights: int = -1
    weights_load: tuple[int, ...] = ()

    def load_weights(self, layer: int) -> None:
        if self.plan.weights_streamed > 0:
            self.weights += 1
            size_bytes = layer_weight_bytes(self.shape.layers[layer])
            load = self.operations.add(
                Kind.LOAD_WEIGHTS,
                Lane.LOAD_WEIGHTS,
                layer,
                link_bytes=round(self.plan.weights_streamed * size_bytes),
                weights_number=self.weights,
            )
            self.weights_load = (load,)

    def add_layer(self, layer: int, rows: int, is_last: bool) -> None:
        shape, prompt_len = self.shape.layers[layer], self.plan.workload.prompt_len
        windowed = layer in self.shape.windowed_indices
        tokens = rows * prompt_len
        stored = self.stores[-_LAYERS_BEHIND] if len(self.stores) >= _LAYERS_BEHIND else ()
        self.operations.add(
            Kind.DENSE,
            Lane.COMPUTE,
            layer,
            memory_bytes=layer_weight_bytes(shape),
            flops=layer_dense_flops(shape, tokens),
            tokens=tokens,
            waits_for=(*self.weights_load, *stored),
        )
        window = self.shape.sliding_window if windowed else None
        attended = self.operations.add(
            Kind.ATTEND_NEW,
            Lane.COMPUTE,
            layer,
            memory_bytes=tokens * kv_bytes_per_token(shape),
            flops=attention_flops(shape, 1, rows * _pairs(prompt_len, window)),
            tokens=tokens,
            weights_number=self.weights if is_last else -1,
        )
        stores = [] if windowed else list(self._stores(layer, rows, attended))
        self.stores.append(tuple(stores))

    def _stores(self, layer: int, rows: int, attended: int) -> Iterator[int]:
        """Append the stores of what goes to the host: whole pages; the rest stays in the tail."""
        shape, plan = self.shape.layers[layer], self.plan
        split = plan.admission
        tokens = rows * plan.geometry.paged_tokens(plan.workload.prompt_len)
        for kind, lane, share, token_bytes in (
            (
                Kind.STORE_ACTIVATIONS,
                Lane.STORE_ACTIVATIONS,
                split.recompute,
                activation_bytes_per_token(shape),
            ),
            (
                Kind.STORE_KV,
                Lane.STORE_KV,
                split.stream + split.host,
                kv_bytes_per_token(shape),
            ),
        ):
            if share * tokens > 0:
                size_bytes = round(share * tokens * token_bytes)
                yield self.operations.add(
                    kind, lane, layer, link_bytes=size_bytes, waits_for=(attended,)
                )

    def add_head(self, rows: int) -> None:
        self.operations.add(
            Kind.DENSE,
            Lane.COMPUTE,
            self.shape.num_layers,
            memory_bytes=head_weight_bytes(self.shape),
            flops=head_dense_flops(self.shape, rows),
            tokens=rows,
        )


def _pairs(prompt_len: int, window: int | None) -> int:
    """Return the pairs of a token and an earlier one, or itself, that it attends to."""
    if window is None or window >= prompt_len:
        return prompt_len * (prompt_len + 1) // 2
    return window * (window + 1) // 2 + (prompt_len - window) * window
