"""From granules to a program: which operations a step has, in which order, what waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
from headrace.plan.demands import PARTIAL_BYTES, Schedule, partial_bytes, query_bytes
from headrace.plan.granules import GranuleKind, GranuleSpec, layer_granules, order_granules
from headrace.plan.operations import Kind, Operation, Program
from headrace.plan.policies import Policy
from headrace.timeline import Lane

__all__ = [
    "BatchWork",
    "GranuleKind",
    "GranuleSpec",
    "StepOrder",
    "build_program",
    "build_step",
    "layer_granules",
    "order_granules",
]

Stores = Sequence[tuple[Kind, int]]

_LANES = {
    Kind.LOAD_ACTIVATIONS: Lane.LOAD_ACTIVATIONS,
    Kind.LOAD_KV: Lane.LOAD_KV,
    Kind.STORE_KV: Lane.STORE_KV,
    Kind.STORE_ACTIVATIONS: Lane.STORE_ACTIVATIONS,
}


@dataclass(frozen=True)
class BatchWork:
    """What a step has to do for one batch of rows.

    Attributes:
        rows: sequences.
        granules: of each layer, ordered; empty where a layer has none (windowed).
        stores: kind and bytes of each layer's stores.
        device_tokens: for each layer, the tokens that ``ATTEND_NEW`` attends to, summed over rows.
        host_tokens: for each layer, those that the host's cores attend to; empty for none.
    """

    rows: int
    granules: Sequence[Sequence[GranuleSpec]]
    stores: Sequence[Stores]
    device_tokens: Sequence[int]
    host_tokens: Sequence[int] = ()


@dataclass(frozen=True)
class StepOrder:
    """In which order a step's operations run, and what they wait for.

    Attributes:
        policy: the paper's schedule (``kvpr``) has no look-ahead.
        ring_slots: staging slots.
        schedule: the order, where there are several batches.
        weights_streamed: share of each layer's weights that is brought in for the layer.
        communication_s: seconds of each layer's exchange of results with other devices.
    """

    policy: Policy
    ring_slots: int
    schedule: Schedule = Schedule.ROW
    weights_streamed: float = 0.0
    communication_s: float = 0.0


def build_program(
    shape: ModelShape,
    layers: Sequence[Sequence[GranuleSpec]],
    rows: int,
    q_len: int,
    ring_slots: int,
    policy: Policy,
    stores: Sequence[Stores] | None = None,
    *,
    device_tokens: Sequence[int] | None = None,
) -> Program:
    """Return the program of one step of one batch whose weights are on the device.

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
    none: Sequence[Stores] = [()] * shape.num_layers
    own = [rows * q_len] * shape.num_layers
    work = BatchWork(
        rows,
        layers,
        none if stores is None else stores,
        own if device_tokens is None else device_tokens,
    )
    return build_step(shape, [work], q_len, StepOrder(policy, ring_slots))


def build_step(
    shape: ModelShape, batches: Sequence[BatchWork], q_len: int, order: StepOrder
) -> Program:
    """Return the program of one step.

    Each layer has the load of its weights, where they are streamed; its loads in granule order; its
    dense work; for each granule a rebuild (X only) and an attend; the attention to what is on the
    device anyway; the merge; its stores. A rebuild, or an attend to K/V, waits for its load; the
    host attends once the dense work has made the queries, and the merge waits for it; stores wait
    for the layer's ``ATTEND_NEW``, which comes after the layer's own K/V are made. The head comes
    last. Row-by-row, a batch goes through all of that before the next one. Column-by-column, all
    batches go through a layer before the next layer: its weights come once, and its dense work is
    one operation over all rows.

    The paper's schedule (``kvpr``) has no look-ahead: a layer's loads wait for the merge of the
    layer above, and all its rebuilds for its last load of X. If the ring is shorter than the X
    granules of the layer, they wait for the last one that fits the ring with them. Column-by-column
    it brings in the next batch's cache while it works on this one's.

    Args:
        shape: the model.
        batches: the work of each batch.
        q_len: new tokens of each row; 1 when decoding.
        order: what runs when.
    """
    builder = _Builder(shape, q_len, order)
    column = order.schedule is Schedule.COLUMN and len(batches) > 1
    if column:
        for layer in range(shape.num_layers):
            builder.begin_layer(layer, sum(batch.rows for batch in batches))
            for batch in batches:
                builder.add_batch(layer, batch, is_last=batch is batches[-1])
        builder.add_head(sum(batch.rows for batch in batches))
    else:
        for batch in batches:
            for layer in range(shape.num_layers):
                builder.begin_layer(layer, None)
                builder.add_batch(layer, batch, is_last=True)
            builder.add_head(batch.rows)
    lookahead = order.policy is not Policy.KVPR
    return Program(tuple(builder.operations), shape.num_layers, order.ring_slots, lookahead)


@dataclass(frozen=True)
class _LayerCosts:
    """What a layer's operations cost, for one token, row or query token each."""

    dense_flops: int
    dense_bytes: int
    kv_bytes: int
    rebuild_flops: int
    rebuild_bytes: int
    rebuild_weights: int
    attend_flops: int
    merge_bytes: int
    host_link_bytes: int


@lru_cache(maxsize=64)
def _costs(shape: ModelShape, q_len: int) -> _LayerCosts:
    kv_bytes = kv_bytes_per_token(shape)
    return _LayerCosts(
        dense_flops=layer_dense_flops(shape, q_len),
        dense_bytes=layer_weight_bytes(shape),
        kv_bytes=kv_bytes,
        rebuild_flops=rebuild_flops_per_token(shape),
        rebuild_bytes=kv_bytes + activation_bytes_per_token(shape),
        rebuild_weights=rebuild_weight_bytes(shape),
        attend_flops=attention_flops(shape, q_len, 1),
        merge_bytes=2 * PARTIAL_BYTES * q_len * shape.num_heads * shape.head_dim,
        host_link_bytes=q_len * (query_bytes(shape) + partial_bytes(shape)),
    )


class _Builder:
    """Appends operations."""

    def __init__(self, shape: ModelShape, q_len: int, order: StepOrder) -> None:
        self.operations: list[Operation] = []
        self._shape = shape
        self._q_len = q_len
        self._order = order
        self._serial = order.policy is Policy.KVPR
        self._loads = 0
        self._weights = 0
        self._layer_weights = -1
        self._weights_load: tuple[int, ...] = ()
        self._dense = -1
        self._merges: list[int] = []
        self._costs = _costs(shape, q_len)

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
        weights_number: int = -1,
        fixed_s: float = 0.0,
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
                weights_number,
                fixed_s,
                waits_for,
            )
        )
        return index

    def begin_layer(self, layer: int, rows: int | None) -> None:
        """Begin a layer: load its weights; where ``rows`` is given, do all their dense work."""
        self._costs = _costs(self._shape.layers[layer], self._q_len)
        self._layer_weights, self._weights_load = -1, ()
        if self._order.weights_streamed > 0:
            self._layer_weights = self._weights
            self._weights += 1
            load = self.add(
                Kind.LOAD_WEIGHTS,
                Lane.LOAD_WEIGHTS,
                layer,
                link_bytes=round(self._order.weights_streamed * self._costs.dense_bytes),
                weights_number=self._layer_weights,
            )
            self._weights_load = (load,)
        self._dense = -1 if rows is None else self._add_dense(layer, rows)

    def add_head(self, rows: int) -> None:
        """Append the head."""
        self.add(
            Kind.DENSE,
            Lane.COMPUTE,
            self._shape.num_layers,
            memory_bytes=head_weight_bytes(self._shape),
            flops=head_dense_flops(self._shape, rows),
            tokens=rows,
        )

    def _add_dense(self, layer: int, rows: int) -> int:
        return self.add(
            Kind.DENSE,
            Lane.COMPUTE,
            layer,
            memory_bytes=self._costs.dense_bytes,
            flops=rows * self._costs.dense_flops,
            tokens=rows * self._q_len,
            fixed_s=self._order.communication_s,
            waits_for=self._weights_load,
        )

    def add_batch(self, layer: int, batch: BatchWork, *, is_last: bool) -> None:
        """Append a batch's operations of a layer; after the last one, its weights may go."""
        granules = batch.granules[layer]
        loads = self._add_loads(layer, granules)
        dense = self._dense if self._dense >= 0 else self._add_dense(layer, batch.rows)
        host_tokens = batch.host_tokens[layer] if batch.host_tokens else 0
        host = self._add_host(layer, batch.rows, host_tokens, dense) if host_tokens else ()
        ready = self._rebuild_waits(granules, loads)
        for number, granule in enumerate(granules):
            self._add_granule(layer, number, granule, loads[number], ready[number])
        attended = self._add_attend(
            Kind.ATTEND_NEW, layer, -1, batch.device_tokens[layer], -1, ()
        )
        merged = self.add(
            Kind.MERGE,
            Lane.COMPUTE,
            layer,
            memory_bytes=batch.rows * self._costs.merge_bytes,
            tokens=batch.rows * self._q_len,
            weights_number=self._layer_weights if is_last else -1,
            waits_for=host,
        )
        for kind, size_bytes in batch.stores[layer]:
            self.add(kind, _LANES[kind], layer, link_bytes=size_bytes, waits_for=(attended,))
        self._merges.append(merged)

    def _add_host(self, layer: int, rows: int, tokens: int, dense: int) -> tuple[int, ...]:
        attended = self.add(
            Kind.HOST_ATTEND,
            Lane.HOST_ATTEND,
            layer,
            link_bytes=rows * self._costs.host_link_bytes,
            memory_bytes=tokens * self._costs.kv_bytes,
            flops=tokens * self._costs.attend_flops,
            tokens=tokens,
            waits_for=(dense,),
        )
        return (attended,)

    def _add_loads(self, layer: int, granules: Sequence[GranuleSpec]) -> list[int]:
        """Append the loads; return for each granule its load's index, or -1."""
        above: tuple[int, ...] = ()
        if self._serial:
            # Column-by-column, one batch's cache is brought in ahead.
            ahead = 2 if self._dense >= 0 else 1
            above = tuple(self._merges[-ahead : -ahead + 1 or None])
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
                    waits_for=above,
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
        slots = self._order.ring_slots
        for position, number in enumerate(rebuilt):
            batch_end = (position // slots + 1) * slots - 1
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
            memory_bytes=self._costs.rebuild_weights + granule.tokens * self._costs.rebuild_bytes,
            flops=granule.tokens * self._costs.rebuild_flops,
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
            memory_bytes=tokens * self._costs.kv_bytes,
            flops=tokens * self._costs.attend_flops,
            tokens=tokens,
            load_number=load_number,
            waits_for=waits_for,
        )
