"""From granules to a program: which operations a step has, in which order, what waits for what."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.model.cost import (
    activation_bytes_per_token,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_weight_bytes,
    rebuild_flops_per_token,
    rebuild_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.granules import GranuleKind, GranuleSpec, layer_granules, order_granules
from headrace.plan.operations import Kind, Operation, Program
from headrace.plan.policies import Policy
from headrace.timeline import Lane

__all__ = ["GranuleKind", "GranuleSpec", "build_program", "layer_granules", "order_granules"]

_LANES = {
    Kind.LOAD_ACTIVATIONS: Lane.LOAD_ACTIVATIONS,
    Kind.LOAD_KV: Lane.LOAD_KV,
    Kind.STORE_KV: Lane.STORE_KV,
    Kind.STORE_ACTIVATIONS: Lane.STORE_ACTIVATIONS,
}
_PARTIAL_BYTES = 4
"""Partial results are merged in float32."""


def build_program(
    shape: ModelShape,
    layers: Sequence[Sequence[GranuleSpec]],
    rows: int,
    q_len: int,
    ring_slots: int,
    policy: Policy,
    stores: Sequence[Sequence[tuple[Kind, int]]] | None = None,
    *,
    device_tokens: Sequence[int] | None = None,
) -> Program:
    """Return the program of one step.

    Each layer has its loads in granule order; its dense work; for each granule a rebuild (X only)
    and an attend; the attention to what is on the device anyway; the merge; its stores. The head
    comes last. A rebuild, or an attend to K/V, waits for its load; stores wait for the layer's
    ``ATTEND_NEW``, which comes after the layer's own K/V are made.

    The paper's schedule (``kvpr``) has no look-ahead: a layer's loads wait for the merge of the
    layer above, and all its rebuilds for its last load of X. If the ring is shorter than the X
    granules of the layer, they wait for the last one that fits the ring with them.

    Args:
        shape: the model.
        layers: the granules of each layer, ordered; empty where a layer has none (windowed).
        rows: sequences in the batch.
        q_len: new tokens of each row; 1 when decoding.
        ring_slots: staging slots.
        policy: decides what waits for what.
        stores: kind and bytes of each layer's stores.
        device_tokens: for each layer, the tokens that ``ATTEND_NEW`` attends to, summed over rows;
            by default the step's own.
    """
    if len(layers) != shape.num_layers:
        raise ValueError(f"{len(layers)} lists of granules for {shape.num_layers} layers")
    builder = _Builder(shape, rows, q_len, ring_slots, policy)
    for layer, granules in enumerate(layers):
        new_tokens = rows * q_len if device_tokens is None else device_tokens[layer]
        builder.add_layer(layer, granules, new_tokens, () if stores is None else stores[layer])
    builder.add(
        Kind.DENSE,
        Lane.COMPUTE,
        shape.num_layers,
        memory_bytes=head_weight_bytes(shape),
        flops=head_dense_flops(shape, rows),
        tokens=rows,
    )
    lookahead = policy is not Policy.KVPR
    return Program(tuple(builder.operations), shape.num_layers, ring_slots, lookahead)


class _Builder:
    """Appends operations; the costs that all layers share are computed once."""

    def __init__(
        self, shape: ModelShape, rows: int, q_len: int, ring_slots: int, policy: Policy
    ) -> None:
        self.operations: list[Operation] = []
        self._serial = policy is Policy.KVPR
        self._ring_slots = ring_slots
        self._loads = 0
        self._above: tuple[int, ...] = ()
        self._new_tokens = rows * q_len
        self._dense_flops = layer_dense_flops(shape, rows * q_len)
        self._dense_bytes = layer_weight_bytes(shape)
        self._kv_bytes = kv_bytes_per_token(shape)
        self._rebuild_flops = rebuild_flops_per_token(shape)
        self._rebuild_bytes = self._kv_bytes + activation_bytes_per_token(shape)
        self._rebuild_weights = rebuild_weight_bytes(shape)
        self._attend_flops = attention_flops(shape, q_len, 1)
        width = shape.num_heads * shape.head_dim
        self._merge_bytes = 2 * _PARTIAL_BYTES * rows * q_len * width

    def add(
        self,
        kind: Kind,
        lane: Lane,
        layer: int,
        granule: int = -1,
        link_bytes: int = 0,
        memory_bytes: int = 0,
        flops: int = 0,
        tokens: int = 0,
        load_number: int = -1,
        waits_for: tuple[int, ...] = (),
    ) -> int:
        """Append an operation and return its index."""
        index = len(self.operations)
        self.operations.append(
            Operation(
                index,
                kind,
                lane,
                layer,
                granule,
                link_bytes,
                memory_bytes,
                flops,
                tokens,
                load_number,
                waits_for,
            )
        )
        return index

    def add_layer(
        self,
        layer: int,
        granules: Sequence[GranuleSpec],
        new_tokens: int,
        stores: Sequence[tuple[Kind, int]],
    ) -> None:
        """Append all operations of a layer."""
        loads = self._add_loads(layer, granules)
        self.add(
            Kind.DENSE,
            Lane.COMPUTE,
            layer,
            memory_bytes=self._dense_bytes,
            flops=self._dense_flops,
            tokens=self._new_tokens,
        )
        ready = self._rebuild_waits(granules, loads)
        for number, granule in enumerate(granules):
            self._add_granule(layer, number, granule, loads[number], ready[number])
        attended = self._add_attend(Kind.ATTEND_NEW, layer, -1, new_tokens, -1, ())
        merged = self.add(
            Kind.MERGE,
            Lane.COMPUTE,
            layer,
            memory_bytes=self._merge_bytes,
            tokens=self._new_tokens,
        )
        for kind, size_bytes in stores:
            self.add(kind, _LANES[kind], layer, link_bytes=size_bytes, waits_for=(attended,))
        self._above = (merged,) if self._serial else ()

    def _add_loads(self, layer: int, granules: Sequence[GranuleSpec]) -> list[int]:
        """Append the loads; return for each granule its load's index, or -1."""
        indices = []
        for number, granule in enumerate(granules):
            if granule.kind == "resident":
                indices.append(-1)
                continue
            kind = Kind.LOAD_KV if granule.kind == "kv" else Kind.LOAD_ACTIVATIONS
            indices.append(
                self.add(
                    kind,
                    _LANES[kind],
                    layer,
                    number,
                    granule.link_bytes,
                    tokens=granule.tokens,
                    load_number=self._loads,
                    waits_for=self._above,
                )
            )
            self._loads += 1
        return indices

    def _rebuild_waits(self, granules: Sequence[GranuleSpec], loads: list[int]) -> list[int]:
        """Return for each granule the load that it waits for: its own, or a later one (kvpr)."""
        if not self._serial:
            return loads
        staged = [number for number, load in enumerate(loads) if load >= 0]
        rebuilt = [number for number in staged if granules[number].kind == "activations"]
        if rebuilt != staged[: len(rebuilt)]:
            raise ValueError("the paper's schedule loads all X of a layer before its K/V")
        waits = list(loads)
        for position, number in enumerate(rebuilt):
            batch_end = (position // self._ring_slots + 1) * self._ring_slots - 1
            waits[number] = loads[rebuilt[min(batch_end, len(rebuilt) - 1)]]
        return waits

    def _add_granule(
        self, layer: int, number: int, granule: GranuleSpec, load: int, ready: int
    ) -> None:
        """Append a granule's rebuild, if it is one of X, and its attend."""
        if granule.kind == "resident":
            self._add_attend(Kind.ATTEND, layer, number, granule.tokens, -1, ())
            return
        load_number = self.operations[load].load_number
        if granule.kind == "kv":
            self._add_attend(Kind.ATTEND, layer, number, granule.tokens, load_number, (ready,))
            return
        rebuilt = self.add(
            Kind.REBUILD,
            Lane.COMPUTE,
            layer,
            number,
            memory_bytes=self._rebuild_weights + granule.tokens * self._rebuild_bytes,
            flops=granule.tokens * self._rebuild_flops,
            tokens=granule.tokens,
            load_number=load_number,
            waits_for=(ready,),
        )
        self._add_attend(Kind.ATTEND, layer, number, granule.tokens, -1, (rebuilt,))

    def _add_attend(
        self,
        kind: Kind,
        layer: int,
        number: int,
        tokens: int,
        load_number: int,
        waits_for: tuple[int, ...],
    ) -> int:
        return self.add(
            kind,
            Lane.COMPUTE,
            layer,
            number,
            memory_bytes=tokens * self._kv_bytes,
            flops=tokens * self._attend_flops,
            tokens=tokens,
            load_number=load_number,
            waits_for=waits_for,
        )
