"""Weights that live on the host and come to the device layer by layer, through a few slots.

The layers take turns, round and round. While a layer is in use its tensors are views of a slot; the
weights of the layers after it come into the other slots meanwhile. Who runs a program says when
they come (``bring``); without one, each layer's weights come as soon as a slot is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend, Copy, Event
from headrace.runtime.staging import POISON
from headrace.timeline import Lane

_ALIGNMENT = 256
"""Bytes; vector loads of weights want their beginnings aligned."""


@dataclass(frozen=True)
class Unit:
    """Tensors that are kept side by side, in this order and without gaps.

    Attributes:
        tensors: of one dtype. Those that are the same memory (tied) are named once.
    """

    tensors: tuple[Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in its layer's buffer."""

    tensor: Tensor
    offset: int
    size_bytes: int

    def view(self, buffer: Tensor) -> Tensor:
        """Return the tensor's part of a flat buffer of bytes."""
        part = buffer[self.offset : self.offset + self.size_bytes]
        return part.view(self.tensor.dtype).view(self.tensor.shape)


def _aligned(size_bytes: int) -> int:
    return math.ceil(size_bytes / _ALIGNMENT) * _ALIGNMENT


class _LayerWeights:
    """One layer's streamed tensors, in one buffer on the host."""

    def __init__(self, backend: Backend, units: Sequence[Unit]) -> None:
        self.places: list[_Place] = []
        offset = 0
        for unit in units:
            offset = _aligned(offset)
            for tensor in unit.tensors:
                size_bytes = tensor.numel() * tensor.element_size()
                self.places.append(_Place(tensor, offset, size_bytes))
                offset += size_bytes
        self.size_bytes = offset
        self.host = backend.host_buffer((self.size_bytes,), torch.uint8)
        for place in self.places:
            place.view(self.host).copy_(place.tensor.detach())

    def bind(self, slot: Tensor) -> None:
        """Let the tensors be views of a slot."""
        for place in self.places:
            place.tensor.data = place.view(slot)


class StreamedWeights:
    """The streamed weights of a model's layers.

    From its making on, the tensors that it is given are views of its slots, and mean something only
    between ``use`` and ``done`` of their layer. ``release`` gives them memory of their own again.

    Args:
        backend: device and link.
        layers: for each layer, in the order in which the model goes through them, what is streamed
            of it; empty for a layer whose weights stay where they are.
        slots: buffers on the device; two or more.
        poison: overwrite slots once they have been read (tests).
    """

    def __init__(
        self, backend: Backend, layers: Sequence[Sequence[Unit]], slots: int, poison: bool = False
    ) -> None:
        self._backend = backend
        self._layers: list[_LayerWeights] = []
        largest = max(sum(_aligned(unit.size_bytes) for unit in units) for units in layers)
        self._slots = backend.device_buffer((slots, largest), torch.uint8)
        self._readers: list[Event | None] = [None] * slots
        self._poison = poison
        self.driver: Callable[[], None] | None = None
        """Brings weights as a program says, and is called when a slot has become free. None: they
        come by themselves."""
        self.loads_started = 0
        for units in layers:
            # One after the other: what a layer had is let go of before the next one is copied.
            self._layers.append(_LayerWeights(backend, units))
            self._layers[-1].bind(self._slots[0])
        # Turns are counted over all passes; turn n is of layer n mod the number of layers.
        self._coming = self._next = self._finished = 0
        self._brought = 0
        self._in_use = False
        """Whether a layer has begun that is not done: one that was interrupted never is."""
        self._last: dict[int, Event] = {}

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes that are streamed of each layer."""
        return tuple(layer.size_bytes for layer in self._layers)

    @property
    def device_bytes(self) -> int:
        """Device memory of all slots."""
        return self._slots.numel()

    @property
    def host_bytes(self) -> int:
        """Host memory of all layers."""
        return sum(self.layer_bytes)

    def begin_pass(self) -> int:
        """Return the turn of the first layer in the pass that begins."""
        if self._next % len(self._layers) or self._in_use:
            self._start_at(0)
        return self._next

    def bring(self, turn: int, until_bytes: int) -> Event | None:
        """Start loading a turn's weights, as far as that has not happened yet.

        Turns are brought in their order, each one in as many pieces as one likes.

        Args:
            turn: whose weights.
            until_bytes: how many of them, from the first byte on.

        Returns:
            The event after which they are there, or None where no slot is free.
        """
        if turn < self._coming:
            return self._last.get(turn) or self._backend.mark()
        while self._coming < turn:
            if self._load(self._bytes_of(self._coming)) is None:
                return None
            self._coming, self._brought = self._coming + 1, 0
        return self._load(until_bytes)

    def _load(self, until_bytes: int) -> Event | None:
        """Load the coming turn's weights up to a byte."""
        turn, layer = self._coming, self._layers[self._coming % len(self._layers)]
        if turn >= self._finished + len(self._readers):
            return None
        if until_bytes <= self._brought:
            return self._last.get(turn) or self._backend.mark()
        slot = turn % len(self._readers)
        reader = self._readers[slot]
        part = slice(self._brought, until_bytes)
        event = self._backend.transfer(
            Lane.LOAD_WEIGHTS,
            [Copy(self._slots[slot, part], layer.host[part])],
            [] if reader is None else [reader],
        )
        self._brought, self._last[turn] = until_bytes, event
        self.loads_started += 1
        return event

    def _bytes_of(self, turn: int) -> int:
        return self._layers[turn % len(self._layers)].size_bytes

    def use(self, layer: int) -> None:
        """Let a layer's tensors be its weights, for compute that is called from now on."""
        if self._next % len(self._layers) != layer or self._in_use:
            self._start_at(layer)
        turn = self._next
        self._in_use = True
        if self._bytes_of(turn) == 0:
            return
        event = self.bring(turn, self._bytes_of(turn))
        assert event is not None, "all slots are taken by layers that are not done"
        self._backend.wait(event)
        self._layers[layer].bind(self._slots[turn % len(self._readers)])
        if self.driver is None:
            self._bring_ahead()

    def done(self, layer: int) -> None:
        """Say that a layer's weights have been read by all compute that was called so far."""
        turn = self._next
        if turn % len(self._layers) != layer:
            return
        slot = turn % len(self._readers)
        if self._bytes_of(turn):
            if self._poison:
                self._slots[slot].view(torch.float32)[...] = POISON
            self._readers[slot] = self._backend.mark()
        self._last.pop(turn, None)
        self._in_use = False
        self._next = self._finished = turn + 1
        self._coming, self._brought = (
            (self._next, 0) if self._coming < self._next else (self._coming, self._brought)
        )
        if self.driver is None:
            self._bring_ahead()
        else:
            self.driver()

    def _bring_ahead(self) -> None:
        """Bring the weights of the next turns, as far as slots are free."""
        for turn in range(self._next + 1, self._finished + len(self._readers)):
            self.bring(turn, self._bytes_of(turn))

    def _start_at(self, layer: int) -> None:
        """Go on at a layer that is not the next one, or anew: a pass has ended half-way.

        What was brought for others is overwritten: loads keep their order, and wait for whatever
        still reads a slot.
        """
        self._readers = [self._backend.mark() for _ in self._readers]
        count = len(self._layers)
        turn = (self._coming // count + 1) * count + layer
        self._coming = self._next = self._finished = turn
        self._brought = 0
        self._in_use = False
        self._last.clear()

    def release(self) -> None:
        """Give every tensor memory of its own on the device, with its weights in it."""
        self._backend.synchronize()
        for layer in self._layers:
            for place in layer.places:
                place.tensor.data = place.view(layer.host).to(self._backend.device, copy=True)
            self._backend.free_host(layer.host)
        self._layers = []
