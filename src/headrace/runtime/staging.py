"""Staging: the ring of device buffers that loads fill, and the buffers that stores empty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend, Event

POISON = 3.0e3
"""What a poisoned buffer holds: finite, and far from any real key, value or activation."""


_VIEWS_KEPT = 1024
"""Views of slots: made once for all layers and steps that stage granules of a size."""


class StagingRing:
    """Slots of device memory that are filled and read in turn.

    A slot may be refilled only after its last reader has finished: ``reader_done`` of the slot.

    Args:
        backend: whose memory.
        slots: number of slots.
        elements: elements of a slot.
        dtype: dtype of the elements.
        poison: fill a slot with ``POISON`` as soon as it has been read, so that a load that is
            missing or late shows in the output (tests).
    """

    def __init__(
        self,
        backend: Backend,
        slots: int,
        elements: int,
        dtype: torch.dtype,
        poison: bool = False,
    ) -> None:
        self._backend = backend
        self._buffer = backend.device_buffer((slots, elements), dtype)
        self._readers: list[Event | None] = [None] * slots
        self._views: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._poison = poison
        if poison:
            self._buffer.fill_(POISON)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._buffer.shape[0]

    @property
    def size_bytes(self) -> int:
        """Device memory of all slots."""
        return self._buffer.numel() * self._buffer.element_size()

    def views(self, slot: int, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Return contiguous tensors of these shapes that lie one after the other in a slot."""
        key = (slot, *map(tuple, shapes))
        if key not in self._views:
            flat, views, offset = self._buffer[slot], [], 0
            for shape in shapes:
                count = math.prod(shape)
                views.append(flat[offset : offset + count].view(tuple(shape)))
                offset += count
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            self._views[key] = tuple(views)
        return self._views[key]

    def reader_done(self, slot: int) -> Event | None:
        """Return the event of the last reading of a slot, or None if it was never read."""
        return self._readers[slot]

    def release(self, slot: int, done: Event | None = None) -> None:
        """Say that a slot has been read once ``done`` (default: all compute so far) happened."""
        if self._poison:
            if done is not None:
                self._backend.wait(done)
            self._buffer[slot].fill_(POISON)
            done = None
        self._readers[slot] = done if done is not None else self._backend.mark()


class StoreRing:
    """Device buffers that compute fills and that stores bring to the host.

    Args:
        backend: whose memory.
        slots: number of slots.
        elements: elements of a slot.
        dtype: dtype of the elements.
    """

    def __init__(self, backend: Backend, slots: int, elements: int, dtype: torch.dtype) -> None:
        self._backend = backend
        self._buffer = backend.device_buffer((slots, elements), dtype)
        self._stored: list[Event | None] = [None] * slots
        self._next = 0

    @property
    def elements(self) -> int:
        """Elements of a slot."""
        return self._buffer.shape[1]

    @property
    def size_bytes(self) -> int:
        """Device memory of all slots."""
        return self._buffer.numel() * self._buffer.element_size()

    def take(self) -> tuple[int, Tensor]:
        """Return the next slot, flat; compute waits until it has been stored."""
        slot = self._next
        self._next = (slot + 1) % len(self._stored)
        stored = self._stored[slot]
        if stored is not None:
            self._backend.wait(stored)
        return slot, self._buffer[slot]

    def stored(self, slot: int, event: Event) -> None:
        """Say which event ends the store of a slot."""
        self._stored[slot] = event
