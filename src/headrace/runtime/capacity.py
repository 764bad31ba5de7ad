"""The room for pages: the pools' numbers and the memory behind them, which grow together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import MemoryBudgetError
from headrace.plan.policies import Split
from headrace.runtime.pages import HOST_KINDS, PageKind, PagePool
from headrace.runtime.settings import CacheSettings
from headrace.runtime.store import PageStore
from headrace.units import format_bytes


@dataclass(frozen=True)
class RowNeed:
    """What a row will have in the cache.

    Attributes:
        prompt_len: tokens of its prompt.
        end: tokens when it has ended, at most.
        samples: rows that will share the prompt; 0 where nothing is generated.
        cached: tokens that are in the cache already.
        split: shares of its prompt's tokens on each path; None: as planned.
    """

    prompt_len: int
    end: int
    samples: int = 1
    cached: int = 0
    split: Split | None = None

    def host_pages(self, split: Split, block_tokens: int) -> dict[PageKind, int]:
        """Return the pages on the host that its further tokens take, at most.

        Args:
            split: of its prompt.
            block_tokens: tokens of a page.
        """
        prompt = max(0, self.prompt_len - self.cached)
        further = max(0, self.end - max(self.prompt_len, self.cached))
        rebuilt = split.recompute * prompt
        return {
            PageKind.ACTIVATIONS: math.ceil(rebuilt / block_tokens) + 1 if rebuilt else 0,
            PageKind.KV: math.ceil((prompt - rebuilt) / block_tokens)
            + self.samples * (math.ceil(further / block_tokens) + 1),
        }


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

    def fits(self, rows: Sequence[RowNeed]) -> bool:
        """Return whether host memory suffices for all of some rows until all of them have ended."""
        limit = self._settings.host_memory_bytes
        if limit is None:
            return True
        return sum(self._host_bytes_of(row) for row in rows) <= limit

    def _host_bytes_of(self, row: RowNeed) -> int:
        """Return the host memory that rows which share a prompt take at most."""
        whole = RowNeed(row.prompt_len, row.end, row.samples)
        pages = whole.host_pages(row.split or self._settings.split, self._block)
        return sum(self._store.bytes_of(kind, count) for kind, count in pages.items())

    def suffices(self, pages: Mapping[PageKind, int]) -> bool:
        """Return whether so many pages on the host are free, or may be added, of all kinds at once.

        What a pool has cannot be lent to another.
        """
        limit = self._settings.host_memory_bytes
        missing = {kind: max(0, pages.get(kind, 0) - self._pools[kind].free) for kind in HOST_KINDS}
        if limit is None or not any(missing.values()):
            return True
        added = sum(self._store.bytes_of(kind, count) for kind, count in missing.items())
        return self._store.host_bytes + added <= limit

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
