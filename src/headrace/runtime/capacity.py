"""The room for pages: the pools' numbers and the memory behind them, which grow together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headrace.errors import MemoryBudgetError
from headrace.runtime.pages import PageKind, PagePool
from headrace.runtime.settings import CacheSettings
from headrace.runtime.store import PageStore
from headrace.units import format_bytes


class Capacity:
    """Makes room for pages, within the limit of host memory.

    Args:
        pools: which pages are free.
        store: the memory of all pages.
        settings: how the cache is laid out, and its limits.
    """

    def __init__(
        self, pools: Mapping[PageKind, PagePool], store: PageStore, settings: CacheSettings
    ) -> None:
        self._pools = pools
        self._store = store
        self._settings = settings
        self._block = settings.geometry.block_tokens

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of keys and values, in all layers."""
        return self._store.bytes_of(PageKind.KV)

    def fits(self, rows: Sequence[tuple[int, int, int]]) -> bool:
        """Return whether host memory suffices for some rows until all of them have ended.

        Args:
            rows: of each, the tokens of its prompt, its tokens at the end, and how many rows share
                the prompt.
        """
        limit = self._settings.host_memory_bytes
        if limit is None:
            return True
        return sum(self._host_bytes_of(*row) for row in rows) <= limit

    def _host_bytes_of(self, prompt_len: int, end: int, samples: int) -> int:
        """Return the host memory that rows which share a prompt take at most."""
        rebuilt = self._settings.split.recompute * prompt_len
        pages = {
            PageKind.ACTIVATIONS: math.ceil(rebuilt / self._block) + 1 if rebuilt else 0,
            PageKind.KV: math.ceil((prompt_len - rebuilt) / self._block)
            + samples * (math.ceil((end - prompt_len) / self._block) + 1),
        }
        return sum(self._store.bytes_of(kind, count) for kind, count in pages.items())

    def reserve(self, pages: Mapping[PageKind, int]) -> None:
        """Make sure that so many pages of each kind are free.

        Raises:
            MemoryBudgetError: the host memory does not suffice.
        """
        for kind, needed in pages.items():
            pool = self._pools[kind]
            missing = needed - pool.free
            if missing <= 0:
                continue
            added = self._added(kind, missing)
            self._store.grow(kind, added)
            pool.grow(pool.capacity + added)

    def _added(self, kind: PageKind, missing: int) -> int:
        """Return by how many pages a pool grows: by a quarter, where the limits allow it."""
        added = max(missing, self._pools[kind].capacity // 4)
        if kind is PageKind.RESIDENT:
            return added if self._settings.resident_pages is None else missing
        limit = self._settings.host_memory_bytes
        if limit is None or self._host_bytes_with(kind, added) <= limit:
            return added
        asked = self._host_bytes_with(kind, missing)
        if asked > limit:
            raise MemoryBudgetError(
                f"the cache needs {format_bytes(asked)} of host memory, but host_memory "
                f"allows, or the host has free, {format_bytes(limit)}; allow more, or use "
                "fewer rows or tokens"
            )
        return missing

    def _host_bytes_with(self, kind: PageKind, added: int) -> int:
        return self._store.host_bytes + self._store.bytes_of(kind, added)
