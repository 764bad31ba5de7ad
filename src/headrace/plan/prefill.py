"""The prefill as a program: prompts through all layers, and their cache to where it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_read_bytes,
    layer_weight_bytes,
    rebuild_flops_per_token,
    rebuild_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.demands import Schedule
from headrace.plan.operations import Kind, OperationList, Program
from headrace.plan.outcome import Plan
from headrace.plan.simulate import simulate
from headrace.timeline import Lane

_LAYERS_BEHIND = 2
"""Layers by which stores may be behind: then their buffers are all in use."""

_SLOTS = 2
"""Layers whose earlier tokens are staged at once; all of a layer's are taken to travel together."""


@dataclass(frozen=True)
class _Part:
    """What goes through the model at once.

    Attributes:
        rows: of so many prompts.
        first: tokens of each that went before.
        tokens: tokens of each.
    """

    rows: int
    first: int
    tokens: int

    @property
    def all_tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.tokens


def prefill_s(plan: Plan, shape: ModelShape, profile: HardwareProfile) -> float:
    """Return what a plan's prefill takes.

    Where prompts come in parts, a row's are as long as another's, and row-by-row one is simulated.
    """
    rows = plan.workload.rows
    if plan.prefill_tokens >= plan.workload.prompt_len or plan.schedule is Schedule.COLUMN:
        rows = 1
    else:
        plan = replace(plan, workload=replace(plan.workload, rows=1, batches=1))
    timeline = simulate(prefill_program(plan, shape), profile, shape.dtype)
    return rows * max(span.finish_s for span in timeline.select([Lane.COMPUTE]))


def prefill_program(plan: Plan, shape: ModelShape) -> Program:
    """Return the program of a plan's prefill.

    The prompts go through the model ``prefill_tokens`` at a time, several of them, or one in parts:
    row-by-row each through all layers, column-by-column all of them through a layer. A layer has
    the load of its weights, where they are streamed; its dense work; of what went before in the
    same prompt, loads of X and K/V from the host, rebuilding, and attention; causal attention; and
    the stores of X and K/V that are kept on the host, which may be two layers behind.
    """
    parts = list(_parts(plan))
    order = [(layer, batch) for batch in range(len(parts)) for layer in range(shape.num_layers)]
    if plan.schedule is Schedule.COLUMN:
        order.sort()
    builder = _Builder(plan, shape)
    for place, (layer, batch) in enumerate(order):
        if place == 0 or layer != order[place - 1][0]:
            builder.load_weights(layer)
        is_last = place + 1 == len(order) or order[place + 1][0] != layer
        builder.add_layer(layer, parts[batch], is_last)
    builder.add_head(plan.workload.rows)
    return Program(tuple(builder.operations), shape.num_layers, _SLOTS)


def _parts(plan: Plan) -> Iterator[_Part]:
    """Yield what goes through the model at once, in order."""
    workload, at_once = plan.workload, plan.prefill_tokens
    if at_once >= workload.prompt_len:
        rows = at_once // workload.prompt_len
        for first in range(0, workload.rows, rows):
            yield _Part(min(rows, workload.rows - first), 0, workload.prompt_len)
        return
    for _ in range(workload.rows):
        for first in range(0, workload.prompt_len, at_once):
            yield _Part(1, first, min(at_once, workload.prompt_len - first))


@dataclass
class _Builder:
    plan: Plan
    shape: ModelShape
    operations: OperationList = field(default_factory=OperationList)
    stores: list[tuple[int, ...]] = field(default_factory=list)
    weights: int = -1
    weights_load: tuple[int, ...] = ()
    loads: int = 0

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

    def add_layer(self, layer: int, part: _Part, is_last: bool) -> None:
        shape, tokens = self.shape.layers[layer], part.all_tokens
        windowed = layer in self.shape.windowed_indices
        stored = self.stores[-_LAYERS_BEHIND] if len(self.stores) >= _LAYERS_BEHIND else ()
        self.operations.add(
            Kind.DENSE,
            Lane.COMPUTE,
            layer,
            memory_bytes=layer_read_bytes(shape, tokens),
            flops=layer_dense_flops(shape, tokens),
            tokens=tokens,
            waits_for=(*self.weights_load, *stored),
        )
        if part.first and not windowed:
            self._attend_earlier(layer, part)
        window = self.shape.sliding_window if windowed else None
        # Pairs with what went before are those of the earlier tokens' attention.
        pairs = _pairs(part.first + part.tokens, window) - _pairs(part.first, window)
        pairs -= 0 if windowed else part.first * part.tokens
        attended = self.operations.add(
            Kind.ATTEND_NEW,
            Lane.COMPUTE,
            layer,
            memory_bytes=tokens * kv_bytes_per_token(shape),
            flops=attention_flops(shape, 1, part.rows * pairs),
            tokens=tokens,
            weights_number=self.weights if is_last else -1,
        )
        stores = [] if windowed else list(self._stores(layer, part, attended))
        self.stores.append(tuple(stores))

    def _attend_earlier(self, layer: int, part: _Part) -> None:
        """Append what brings to bear what a prompt has in the cache already."""
        shape, split = self.shape.layers[layer], self.plan.admission
        earlier = part.rows * self.plan.geometry.paged_tokens(part.first)
        kv_bytes = kv_bytes_per_token(shape)
        for kind, lane, share, token_bytes in (
            (
                Kind.LOAD_ACTIVATIONS,
                Lane.LOAD_ACTIVATIONS,
                split.recompute,
                activation_bytes_per_token(shape),
            ),
            (Kind.LOAD_KV, Lane.LOAD_KV, split.stream + split.host, kv_bytes),
        ):
            tokens = round(share * earlier)
            if not tokens:
                continue
            number, self.loads = self.loads, self.loads + 1
            reads = self.operations.add(
                kind, lane, layer, link_bytes=tokens * token_bytes, load_number=number
            )
            if kind is Kind.LOAD_ACTIVATIONS:
                reads = self.operations.add(
                    Kind.REBUILD,
                    Lane.COMPUTE,
                    layer,
                    memory_bytes=rebuild_weight_bytes(shape) + tokens * (token_bytes + kv_bytes),
                    flops=tokens * rebuild_flops_per_token(shape),
                    tokens=tokens,
                    load_number=number,
                    waits_for=(reads,),
                )
            self._attend(layer, part, tokens, number, (reads,))
        resident = round(split.resident * earlier)
        if resident:
            self._attend(layer, part, resident, -1, ())

    def _attend(
        self, layer: int, part: _Part, tokens: int, load_number: int, waits_for: Sequence[int]
    ) -> None:
        """Append the attention of a part to earlier tokens, of all its rows."""
        shape = self.shape.layers[layer]
        self.operations.add(
            Kind.ATTEND,
            Lane.COMPUTE,
            layer,
            memory_bytes=tokens * kv_bytes_per_token(shape),
            flops=attention_flops(shape, 1, part.tokens * tokens),
            tokens=tokens,
            load_number=load_number,
            waits_for=tuple(waits_for),
        )

    def _stores(self, layer: int, part: _Part, attended: int) -> Iterator[int]:
        """Append the stores of what goes to the host: whole pages; the rest stays in the tail."""
        shape, plan = self.shape.layers[layer], self.plan
        split, paged = plan.admission, plan.geometry.paged_tokens
        tokens = part.rows * (paged(part.first + part.tokens) - paged(part.first))
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
