"""Stores: new tokens go to their pages, in blocks, beside the compute that follows.

Shape suffixes: B rows, H key/value heads, D head width, M model width, N pages, T tokens of a page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from headrace.runtime.lanes import Backend, Copy, Event
from headrace.runtime.moves import FillBatch
from headrace.runtime.pages import PageKind
from headrace.runtime.staging import StoreRing
from headrace.runtime.store import LayerWidths, PageStore
from headrace.timeline import Lane

_LANES = {PageKind.ACTIVATIONS: Lane.STORE_ACTIVATIONS, PageKind.KV: Lane.STORE_KV}


class Writer:
    """Brings filled pages from the device to their place.

    Args:
        backend: whose lanes.
        store: whose pages.
        ring: device buffers that hold what is on its way.
        widths: by layer.
        block_tokens: tokens of a page.
        note: told of every store: layer, kind, event, bytes.
    """

    def __init__(
        self,
        backend: Backend,
        store: PageStore,
        ring: StoreRing,
        widths: dict[int, LayerWidths],
        block_tokens: int,
        note: Callable[[int, PageKind, Event, int], None],
    ) -> None:
        self._backend = backend
        self._store = store
        self._ring = ring
        self._widths = widths
        self._block_tokens = block_tokens
        self._note = note
        self._last: dict[int, Event] = {}

    def last_store(self, layer: int) -> Event | None:
        """Return the event of the end of the layer's newest store, which ends after the others."""
        return self._last.get(layer)

    @cached_property
    def pages_at_once(self) -> dict[PageKind, int]:
        """Return how many pages of each kind fit a buffer, whichever the layer."""
        return {
            kind: min(
                (
                    self._ring.elements // width.page_elements(kind, self._block_tokens)
                    for width in self._widths.values()
                ),
                default=1,
            )
            for kind in PageKind
        }

    def write(self, layer: int, batch: FillBatch, sources: tuple[Tensor, ...]) -> None:
        """Gather a batch of pages and start their store.

        Args:
            layer: whose cache.
            batch: pages, and where their tokens are.
            sources: (X,) ``[B, q, M]``, or keys and values of the tail followed by the new
                tokens, ``[B, H, tail + q, D]``.
        """
        gathered = tuple(self._gather(batch, source) for source in sources)
        if batch.kind is PageKind.RESIDENT:
            self._write_resident(layer, batch, gathered)
            return
        slot, flat = self._ring.take()
        staged, offset = [], 0
        for part in gathered:
            view = flat[offset : offset + part.numel()].view(part.shape)
            view.copy_(part)
            staged.append(view)
            offset += part.numel()
        copies = self._copies(layer, batch, staged)
        event = self._backend.transfer(_LANES[batch.kind], copies, [self._backend.mark()])
        self._ring.stored(slot, event)
        self._last[layer] = event
        self._note(layer, batch.kind, event, sum(copy.size_bytes for copy in copies))

    def _gather(self, batch: FillBatch, source: Tensor) -> Tensor:
        """Return the tokens of the pages: X ``[N, T, M]``, or heads ``[N, H, T, D]``."""
        if batch.kind is PageKind.ACTIVATIONS:
            return source[batch.rows_NT, batch.sources_NT]
        return source[batch.rows_NT, :, batch.sources_NT].transpose(1, 2)

    def _write_resident(self, layer: int, batch: FillBatch, gathered: tuple[Tensor, ...]) -> None:
        done = 0
        for first, count in self._store.runs(batch.kind, batch.pages):
            pages = self._store.pages(batch.kind, layer, first, count)
            for page, part in zip(pages, gathered, strict=True):
                page.copy_(part[done : done + count])
            done += count

    def _copies(self, layer: int, batch: FillBatch, staged: list[Tensor]) -> list[Copy]:
        """Return one copy for each run of pages; pages that are filled further go by themselves."""
        if any(batch.offsets):
            return self._single_copies(layer, batch, staged[0])
        copies, done = [], 0
        for first, count in self._store.runs(batch.kind, batch.pages):
            pages = self._store.pages(batch.kind, layer, first, count)
            for page, part in zip(pages, staged, strict=True):
                copies.append(Copy(page, part[done : done + count]))
            done += count
        return copies

    def _single_copies(self, layer: int, batch: FillBatch, staged: Tensor) -> list[Copy]:
        copies = []
        for place, (number, offset, count) in enumerate(
            zip(batch.pages, batch.offsets, batch.counts, strict=True)
        ):
            (page,) = self._store.pages(batch.kind, layer, number, 1)
            copies.append(Copy(page[0, offset : offset + count], staged[place, :count]))
        return copies
