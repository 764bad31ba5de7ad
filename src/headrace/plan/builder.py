"""Appends a step's operations to a program, layer by layer."""

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
    layer_read_bytes,
    layer_weight_bytes,
    rebuild_flops_per_token,
    rebuild_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.batches import BatchWork, StepOrder
from headrace.plan.demands import short_pages
from headrace.plan.device_time import PARTIAL_BYTES, mail_bytes
from headrace.plan.granules import GranuleSpec
from headrace.plan.operations import Kind, Operation, OperationList
from headrace.plan.policies import Policy
from headrace.plan.weight_loads import Turn, WeightLoads
from headrace.plan.weights import weight_slots
from headrace.timeline import Lane

_LANES = {
    Kind.LOAD_ACTIVATIONS: Lane.LOAD_ACTIVATIONS,
    Kind.LOAD_KV: Lane.LOAD_KV,
    Kind.STORE_KV: Lane.STORE_KV,
    Kind.STORE_ACTIVATIONS: Lane.STORE_ACTIVATIONS,
}


@dataclass(frozen=True)
class _LayerCosts:
    """What a layer's operations cost, for one token, row or query token each."""

    dense_flops: int
    weight_bytes: int
    kv_bytes: int
    rebuild_flops: int
    rebuild_bytes: int
    rebuild_weights: int
    attend_flops: int
    merge_bytes: int
    mail_bytes: int


@lru_cache(maxsize=64)
def _costs(shape: ModelShape, q_len: int) -> _LayerCosts:
    kv_bytes = kv_bytes_per_token(shape)
    return _LayerCosts(
        dense_flops=layer_dense_flops(shape, q_len),
        weight_bytes=layer_weight_bytes(shape),
        kv_bytes=kv_bytes,
        rebuild_flops=rebuild_flops_per_token(shape),
        rebuild_bytes=kv_bytes + activation_bytes_per_token(shape),
        rebuild_weights=rebuild_weight_bytes(shape),
        attend_flops=attention_flops(shape, q_len, 1),
        merge_bytes=2 * PARTIAL_BYTES * q_len * shape.num_heads * shape.head_dim,
        mail_bytes=q_len * mail_bytes(shape),
    )


class StepBuilder:
    """Appends a step's operations, layer by layer.

    Args:
        shape: the model.
        q_len: new tokens of each row; 1 when decoding.
        order: what runs when.
        turns: in turn, a layer and the batches that are worked on together.
    """

    def __init__(
        self,
        shape: ModelShape,
        q_len: int,
        order: StepOrder,
        turns: Sequence[tuple[int, Sequence[BatchWork]]],
    ) -> None:
        self.operations = OperationList()
        self._shape = shape
        self._q_len = q_len
        self._order = order
        self._turns = turns
        self._all_rows = sum(
            batch.rows for layer, batches in turns if not layer for batch in batches
        )
        self._serial = order.policy is Policy.KVPR
        self._loads = 0
        self._dense = -1
        self._merges: list[int] = []
        self._costs = _costs(shape, q_len)
        weights = [self._weights_turn(layer, batches) for layer, batches in turns]
        # Where weights are streamed, no step goes the short way.
        self._is_short = not any(turn.weight_bytes for turn in weights) and not any(
            batch.granules[layer] or (batch.host_tokens and batch.host_tokens[layer])
            for layer, batches in turns
            for batch in batches
        )
        self._weights = WeightLoads(
            self.operations.add,
            weights,
            order.ring_slots,
            weight_slots(shape),
            order.weights_ahead,
        )

    def _weights_turn(self, layer: int, batches: Sequence[BatchWork]) -> Turn:
        size_bytes = _costs(self._shape.layers[layer], self._q_len).weight_bytes
        granules = [granule for batch in batches for granule in batch.granules[layer]]
        loads = [granule.link_bytes for granule in granules if granule.kind != "resident"]
        return Turn(layer, self._order.weight_bytes(layer, size_bytes), loads)

    def build(self) -> tuple[Operation, ...]:
        """Append all operations and return them."""
        for layer, batches in self._turns:
            self._add_layer(layer, batches)
            if layer == self._shape.num_layers - 1:
                self._add_head(sum(batch.rows for batch in batches))
        return tuple(self.operations)

    def _add_layer(self, layer: int, batches: Sequence[BatchWork]) -> None:
        """Append a layer's operations for batches whose dense work is one operation."""
        self._costs = _costs(self._shape.layers[layer], self._q_len)
        self._weights.begin_turn()
        together = len(batches) > 1
        rows = sum(batch.rows for batch in batches)
        self._dense = self._add_dense(layer, rows) if together else -1
        open_ends = []
        for batch in batches:
            open_ends.append((batch, *self._add_batch(layer, batch)))
            if self._serial:
                self._end_batch(layer, *open_ends.pop(), is_last=batch is batches[-1])
        # After all batches' granules, so that these need not wait for the host.
        for batch, attended, host in open_ends:
            self._end_batch(layer, batch, attended, host, is_last=batch is batches[-1])

    def _add_head(self, rows: int) -> None:
        """Append the head."""
        self.operations.add(
            Kind.DENSE,
            Lane.COMPUTE,
            self._shape.num_layers,
            memory_bytes=head_weight_bytes(self._shape),
            flops=head_dense_flops(self._shape, rows),
            tokens=rows,
            is_short=self._is_short,
        )

    def _add_dense(self, layer: int, rows: int) -> int:
        return self.operations.add(
            Kind.DENSE,
            Lane.COMPUTE,
            layer,
            memory_bytes=layer_read_bytes(self._shape.layers[layer], rows * self._q_len),
            flops=rows * self._costs.dense_flops,
            tokens=rows * self._q_len,
            fixed_s=self._order.communication_s * rows / self._all_rows,
            is_short=self._is_short,
            waits_for=self._weights.loads,
        )

    def _add_batch(self, layer: int, batch: BatchWork) -> tuple[int, tuple[int, ...]]:
        """Append a batch's operations of a layer up to its merge.

        Return the one after which the new K/V are there, and what the merge waits for.
        """
        granules = batch.granules[layer]
        loads = self._add_loads(layer, granules)
        dense = self._dense if self._dense >= 0 else self._add_dense(layer, batch.rows)
        host_tokens = batch.host_tokens[layer] if batch.host_tokens else 0
        host = self._add_host(layer, batch, host_tokens, dense) if host_tokens else ()
        ready = self._rebuild_waits(granules, loads)
        # While the first load may be under way. In the paper's schedule attention comes at the end.
        attended = -1 if self._serial else self._add_new(layer, batch)
        for number, granule in enumerate(granules):
            self._add_granule(layer, number, granule, loads[number], ready[number])
        return self._add_new(layer, batch) if self._serial else attended, host

    def _add_new(self, layer: int, batch: BatchWork) -> int:
        """Append the attention to what is on the device anyway."""
        return self._add_attend(Kind.ATTEND_NEW, layer, -1, batch.device_tokens[layer], -1, ())

    def _end_batch(
        self, layer: int, batch: BatchWork, attended: int, host: tuple[int, ...], *, is_last: bool
    ) -> None:
        """Append a batch's merge and stores; after the last one, the layer's weights may go."""
        merged = self.operations.add(
            Kind.MERGE,
            Lane.COMPUTE,
            layer,
            memory_bytes=batch.rows * self._costs.merge_bytes,
            tokens=batch.rows * self._q_len,
            weights_number=self._weights.number if is_last else -1,
            waits_for=host,
            mail_bytes=batch.rows * self._costs.mail_bytes if host else 0,
        )
        self._merges.append(merged)
        for kind, size_bytes in batch.stores[layer]:
            lane = _LANES[kind]
            self.operations.add(kind, lane, layer, link_bytes=size_bytes, waits_for=(attended,))

    def _add_host(self, layer: int, batch: BatchWork, tokens: int, dense: int) -> tuple[int, ...]:
        head_tokens = tokens * self._shape.layers[layer].num_kv_heads
        attended = self.operations.add(
            Kind.HOST_ATTEND,
            Lane.HOST_ATTEND,
            layer,
            link_bytes=batch.rows * self._costs.mail_bytes,
            memory_bytes=tokens * self._costs.kv_bytes,
            flops=tokens * self._costs.attend_flops,
            tokens=tokens,
            waits_for=(dense,),
            short_pages=short_pages(head_tokens, batch.page_tokens),
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
                self.operations.add(
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
            self._weights.after_load()
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
        rebuilt = self.operations.add(
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
        return self.operations.add(
            kind,
            Lane.COMPUTE,
            layer,
            number,
            memory_bytes=tokens * self._costs.kv_bytes,
            flops=tokens * self._costs.attend_flops,
            tokens=tokens,
            is_short=self._is_short,
            load_number=load_number,
            waits_for=waits_for,
        )
