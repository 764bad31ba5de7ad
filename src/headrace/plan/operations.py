"""The operations of a program: plain data that the simulator and the conveyor both run.

A program is the work of one step (one forward pass of the model over the cache), in an order that
every lane keeps: a lane takes its operations in program order, one at a time. An operation starts
when its lane is free, when everything in ``waits_for`` has finished, and, for a load or a store,
when its direction of the link is free (the load lanes share one direction, the store lanes the
other, both in program order).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from headrace.timeline import H2D_LANES, Lane

WEIGHT_SLOTS = 2
"""Buffers on the device through which streamed layers go."""


class Kind(StrEnum):
    """What an operation does."""

    LOAD_WEIGHTS = "load_weights"
    """Bring a layer's weights, or the streamed share of them, into a slot."""
    LOAD_ACTIVATIONS = "load_activations"
    """Bring X of a granule into a staging slot."""
    LOAD_KV = "load_kv"
    """Bring keys and values of a granule into a staging slot."""
    DENSE = "dense"
    """The model's own work of a layer: norms, projections, feed-forward (or the head)."""
    REBUILD = "rebuild"
    """Make keys and values from a staged granule of X."""
    ATTEND = "attend"
    """Attend to a granule: staged, rebuilt, or resident on the device."""
    ATTEND_NEW = "attend_new"
    """Attend to what is on the device anyway: the tail of newest tokens, and the step's own."""
    HOST_ATTEND = "host_attend"
    """The host's cores attend to K/V where it lies; queries go down and results come up."""
    MERGE = "merge"
    """Merge the partial results by their log-sum-exp."""
    STORE_KV = "store_kv"
    """Bring keys and values of a granule to the host."""
    STORE_ACTIVATIONS = "store_activations"
    """Bring X of a granule to the host."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One piece of work on one lane.

    Attributes:
        index: position in the program.
        kind: what is done.
        lane: where it is done.
        layer: decoder layer, from 0; the number of layers stands for the head after the last one.
        granule: number of the granule in its layer's list, or -1.
        link_bytes: bytes that cross the link (loads and stores; queries and results of the host).
        memory_bytes: bytes of memory that are read and written: the device's, or, for
            ``HOST_ATTEND``, the host's.
        flops: floating-point operations (compute).
        tokens: cached tokens, summed over rows, that the operation concerns.
        load_number: for a load, its number among the loads of the step, from 0; for a rebuild or
            an attend that reads a staging slot, the number of the load that filled the slot; else
            -1. A ring of S slots puts load n of a step into slot (base + n) mod S.
        weights_number: number, from 0, among the step's loads of weights; for a load, its own; for
            the last operation that needs those weights, theirs; else -1. They go through
            ``Program.weight_slots`` slots as the loads of the cache go through the ring's.
        fixed_s: seconds that it takes besides, such as for exchanging results between devices.
        is_short: whether it belongs to a step that goes the short way, since all of the cache is on
            the device.
        waits_for: indices of operations of this program that must have finished. That a load may
            only refill a slot when the last reader of load ``n - S`` has finished is a property of
            the ring, and not listed here: who runs the program adds it.
        mail_bytes: for ``MERGE``, bytes of the queries and results of the host's attention: the
            device's own kernels write and read them, where that was measured.
        short_pages: for ``HOST_ATTEND``, how many more pages its heads have than if each had 64
            tokens.
    """

    index: int
    kind: Kind
    lane: Lane
    layer: int
    granule: int = -1
    link_bytes: int = 0
    memory_bytes: int = 0
    flops: int = 0
    tokens: int = 0
    load_number: int = -1
    weights_number: int = -1
    fixed_s: float = 0.0
    is_short: bool = False
    waits_for: tuple[int, ...] = ()
    mail_bytes: int = 0
    short_pages: float = 0.0


class OperationList(list[Operation]):
    """Operations of a program that is being built."""

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
        is_short: bool = False,
        waits_for: tuple[int, ...] = (),
        mail_bytes: int = 0,
        short_pages: float = 0.0,
    ) -> int:
        """Append an operation (see ``Operation``) and return its index."""
        index = len(self)
        self.append(
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
                is_short,
                waits_for,
                mail_bytes,
                short_pages,
            )
        )
        return index


@dataclass(frozen=True)
class Program:
    """The operations of one step, in order.

    Attributes:
        operations: all operations; ``operations[i].index == i``.
        num_layers: decoder layers; layer ``num_layers`` is the head.
        ring_slots: staging slots that the loads go through, round and round.
        weight_slots: slots that streamed weights go through.
        lookahead: whether loads of the next step may start before this step has ended, and loads of
            a layer before the layer above is done (the paper's schedule, ``kvpr``, has neither).
    """

    operations: tuple[Operation, ...]
    num_layers: int
    ring_slots: int
    lookahead: bool = True
    weight_slots: int = WEIGHT_SLOTS

    @cached_property
    def loads(self) -> tuple[Operation, ...]:
        """The loads of the cache, in program order."""
        kinds = (Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV)
        return tuple(op for op in self.operations if op.kind in kinds)

    @cached_property
    def link_loads(self) -> tuple[Operation, ...]:
        """The loads of the cache and of weights, in program order."""
        return tuple(op for op in self.operations if op.lane in H2D_LANES)

    @cached_property
    def compute(self) -> tuple[tuple[Operation, ...], ...]:
        """For each layer, and last the head, what runs on the compute lane, in program order."""
        layers: list[list[Operation]] = [[] for _ in range(self.num_layers + 1)]
        for op in self.operations:
            if op.lane is Lane.COMPUTE:
                layers[op.layer].append(op)
        return tuple(tuple(layer) for layer in layers)

    @cached_property
    def host(self) -> tuple[tuple[Operation, ...], ...]:
        """For each layer, what runs on the host's cores."""
        layers: list[list[Operation]] = [[] for _ in range(self.num_layers)]
        for op in self.operations:
            if op.lane is Lane.HOST_ATTEND:
                layers[op.layer].append(op)
        return tuple(tuple(layer) for layer in layers)

    @cached_property
    def link_bytes(self) -> int:
        """Bytes that the step brings to the device."""
        return sum(op.link_bytes for op in self.link_loads)
