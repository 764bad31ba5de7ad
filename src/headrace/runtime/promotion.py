"""Pages that move from the host to the device, for good: their rows are still there, others not.

Shape suffixes: P pages, T tokens of a page, M model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from headrace.runtime.conveyor import Rebuild
from headrace.runtime.lanes import Backend, Copy, Event
from headrace.runtime.pages import PageKind, PageMove
from headrace.runtime.staging import StagingRing
from headrace.runtime.store import LayerWidths, PageStore
from headrace.runtime.writer import Writer
from headrace.timeline import Lane


class Promoter:
    """Brings pages from the host to the device, between two steps.

    Keys and values are copied to their new place. X comes through the staging ring, of which no
    slot may be loaded ahead, and is rebuilt for the last time.

    Args:
        backend: whose link.
        store: whose pages.
        ring: staging for X.
        writer: what stores pages on the host.
        widths: of each paged layer.
        rebuild: makes keys and values from X.
        pages_at_once: most pages of X in a slot.
    """

    def __init__(
        self,
        backend: Backend,
        store: PageStore,
        ring: StagingRing,
        writer: Writer,
        widths: dict[int, LayerWidths],
        rebuild: Rebuild,
        pages_at_once: int,
    ) -> None:
        self._backend = backend
        self._store = store
        self._ring = ring
        self._writer = writer
        self._widths = widths
        self._rebuild = rebuild
        self._pages_at_once = pages_at_once

    def bring(self, moves: Sequence[PageMove]) -> Iterator[tuple[int, Lane, Event, int]]:
        """Bring all layers of some pages.

        What is computed afterwards finds them there. Their old places may be filled by any step
        after it, since its stores wait for its compute.

        Yields:
            Layer, lane, event and bytes of each transfer.
        """
        stored = sorted((one for one in moves if one.kind is PageKind.KV), key=_number)
        rebuilt = sorted((one for one in moves if one.kind is PageKind.ACTIVATIONS), key=_number)
        at_once = self._pages_at_once
        chunks = [rebuilt[at : at + at_once] for at in range(0, len(rebuilt), at_once)]
        for layer in self._widths:
            if stored:
                yield self._copy(layer, stored)
            yield from self._rebuild_all(layer, chunks)

    def _after(self, layer: int, reader: Event | None = None) -> list[Event]:
        """Return what a load waits for: the pages are stored, and nobody reads their new places."""
        events = (self._backend.mark(), self._writer.last_store(layer), reader)
        return [event for event in events if event is not None]

    def _copy(self, layer: int, moves: Sequence[PageMove]) -> tuple[int, Lane, Event, int]:
        copies = []
        for one in moves:
            new = self._store.pages(PageKind.RESIDENT, layer, one.page.number, 1)
            old = self._store.pages(PageKind.KV, layer, one.number, 1)
            copies += [Copy(*both) for both in zip(new, old, strict=True)]
        event = self._backend.transfer(Lane.LOAD_KV, copies, self._after(layer))
        self._backend.wait(event)
        return layer, Lane.LOAD_KV, event, sum(copy.size_bytes for copy in copies)

    def _rebuild_all(
        self, layer: int, chunks: Sequence[Sequence[PageMove]]
    ) -> Iterator[tuple[int, Lane, Event, int]]:
        """Bring chunks of X through the slots in turn, so that loads run beside rebuilding."""
        under_way: deque[tuple[int, Sequence[PageMove], Tensor, Event]] = deque()
        for number, chunk in enumerate(chunks):
            slot = number % self._ring.slots
            if len(under_way) == self._ring.slots:
                self._finish(layer, *under_way.popleft())
            view, event, size_bytes = self._load(layer, slot, chunk)
            under_way.append((slot, chunk, view, event))
            yield layer, Lane.LOAD_ACTIVATIONS, event, size_bytes
        while under_way:
            self._finish(layer, *under_way.popleft())

    def _load(self, layer: int, slot: int, chunk: Sequence[PageMove]) -> tuple[Tensor, Event, int]:
        shape = (len(chunk), self._store.block_tokens, self._widths[layer].d_model)
        (view_PTM,) = self._ring.views(slot, [shape])
        copies = [
            Copy(view_PTM[place], self._store.pages(one.kind, layer, one.number, 1)[0][0])
            for place, one in enumerate(chunk)
        ]
        after = self._after(layer, self._ring.reader_done(slot))
        event = self._backend.transfer(Lane.LOAD_ACTIVATIONS, copies, after)
        return view_PTM, event, sum(copy.size_bytes for copy in copies)

    def _finish(
        self, layer: int, slot: int, chunk: Sequence[PageMove], view_PTM: Tensor, event: Event
    ) -> None:
        """Rebuild a chunk that has come, and put its keys and values into their places."""
        self._backend.wait(event)
        positions = self._store.positions[[one.number for one in chunk]]
        key, value, _ = self._rebuild(layer, view_PTM, positions)
        self._ring.release(slot)
        for place, one in enumerate(chunk):
            pages = self._store.pages(PageKind.RESIDENT, layer, one.page.number, 1)
            for page, part in zip(pages, (key, value), strict=True):
                page[0].copy_(part[place])


def _number(move: PageMove) -> int:
    return move.number
