"""A cache's pages of keys and values, as the host's cores attend to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from headrace.runtime.attention import Partial, Scoring
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.native_lane import NativeLane, PreparedCall
from headrace.runtime.pages import Page, PageKind, Row
from headrace.runtime.store import PageStore

_CORES_PER_SPARE = 8
"""Of so many cores one is left to the link and to the thread that launches the device's work."""


def row_entries(
    uses: Sequence[tuple[Page, int]], rows: Sequence[Row], block_tokens: int
) -> RowEntries:
    """Return which row sees which pages.

    Args:
        uses: pages with the row that sees each.
        rows: all rows.
        block_tokens: tokens of a page.
    """
    visible = None
    if any(rows[row].hidden for _, row in uses):
        visible = np.zeros((len(uses), block_tokens), dtype=np.bool_)
        for entry, (page, row) in enumerate(uses):
            hidden = rows[row].hidden
            visible[entry, : len(page.tokens)] = [int(one) not in hidden for one in page.tokens]
    return RowEntries.of(
        len(rows),
        [row for _, row in uses],
        [page.number for page, _ in uses],
        [len(page.tokens) for page, _ in uses],
        visible,
    )


class StoreKernel:
    """Attends to the pages of a store.

    Args:
        store: the pages.
        attention: the cores; by default those that all caches of the process share.
    """

    def __init__(self, store: PageStore, attention: HostAttention | None = None) -> None:
        self._store = store
        self._attention = attention or shared_attention()
        self._pages: dict[int, tuple[int, LayerPages]] = {}
        self._prepared: dict[int, tuple[tuple[object, ...], PreparedCall]] = {}

    @property
    def reason(self) -> str | None:
        """Why the native kernel is not used, or None if it is."""
        return self._attention.reason

    def attend(
        self, layer: int, query: Tensor, entries: RowEntries, scoring: Scoring, result: Partial
    ) -> None:
        """Attend a layer's queries ``[B, H, G, D]`` to their entries; write into ``result``."""
        self._attention.attend(query, self._pages_of(layer), entries, scoring, result)

    def lane(self) -> NativeLane | None:
        """Return a lane of the cores that needs no interpreter, or None where there is none."""
        return self._attention.lane()

    def prepare(
        self, layer: int, query: Tensor, entries: RowEntries, scoring: Scoring, result: Partial
    ) -> PreparedCall:
        """Return a call of ``attend`` for a lane; in most steps it is that of the step before."""
        key = (entries, self._store.growths, scoring, query.shape, query.data_ptr())
        known = self._prepared.get(layer)
        if known is None or known[0] != key:
            made = self._attention.prepare(query, self._pages_of(layer), entries, scoring, result)
            known = self._prepared[layer] = key, made
        return known[1]

    def _pages_of(self, layer: int) -> LayerPages:
        known = self._pages.get(layer)
        if known is None or known[0] != self._store.growths:
            extents = self._store.extents(PageKind.KV)
            keys, values = zip(*(extent.tensors[layer] for extent in extents), strict=True)
            known = self._pages[layer] = self._store.growths, LayerPages.of(keys, values)
        return known[1]


@lru_cache(maxsize=1)
def shared_attention() -> HostAttention:
    """Return what attends for all caches of the process, which take turns."""
    cores = len(os.sched_getaffinity(0))
    return HostAttention(threads=cores - cores // _CORES_PER_SPARE)
