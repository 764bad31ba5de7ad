"""Pages of keys and values on the host as its cores attend to them: which row sees which.

Shape suffixes: B rows, E entries (a page as one row sees it), H key/value heads, G queries per
key/value head, T tokens of a page, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.runtime.attention import EntryTable, Partial, Scoring, attend, merge_entries
from headrace.runtime.pages import Page, PageKind, Row
from headrace.runtime.store import PageStore


@dataclass(frozen=True, eq=False)
class HostPages:
    """Entries of all rows, sorted by row; the same for all layers.

    Attributes:
        row_entry: int64 ``[B + 1]``; first entry of each row.
        page: int64 ``[E]``; number of each entry's page.
        length: int64 ``[E]``; tokens of each entry's page.
        visible: bool ``[E, T]``; places that hold a visible token, or None where all of a page's
            tokens are visible.
    """

    row_entry: NDArray[np.int64]
    page: NDArray[np.int64]
    length: NDArray[np.int64]
    visible: NDArray[np.bool_] | None

    @property
    def tokens(self) -> int:
        """Cached tokens, over all rows."""
        return int(self.length.sum())

    @cached_property
    def rows_of_entries(self) -> NDArray[np.int64]:
        """The row of each entry."""
        return np.repeat(np.arange(len(self.row_entry) - 1), np.diff(self.row_entry))

    @classmethod
    def of(
        cls, uses: Sequence[tuple[Page, int]], rows: Sequence[Row], block_tokens: int
    ) -> HostPages:
        """Return the entries of pages.

        Args:
            uses: pages with the row that sees each.
            rows: all rows.
            block_tokens: tokens of a page.
        """
        ordered = sorted(uses, key=lambda use: (use[1], use[0].number))
        counts = np.bincount([row for _, row in ordered], minlength=len(rows))
        length = np.array([len(page.tokens) for page, _ in ordered], dtype=np.int64)
        visible = None
        if any(rows[row].hidden for _, row in ordered):
            visible = np.zeros((len(ordered), block_tokens), dtype=np.bool_)
            for entry, (page, row) in enumerate(ordered):
                hidden = rows[row].hidden
                visible[entry, : len(page.tokens)] = [
                    int(token) not in hidden for token in page.tokens
                ]
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array([page.number for page, _ in ordered], dtype=np.int64),
            length,
            visible,
        )


class TorchHostKernel:
    """Attends with torch's own matrix products, where the native kernel is not to be had.

    Args:
        store: the pages.
    """

    def __init__(self, store: PageStore) -> None:
        self._store = store

    def attend(
        self, layer: int, query: Tensor, entries: HostPages, scoring: Scoring, result: Partial
    ) -> None:
        """Attend a layer's queries ``[B, H, G, D]`` to their entries; write into ``result``."""
        key, value = self._store.gather(PageKind.KV, layer, sorted(set(entries.page.tolist())))
        place = np.searchsorted(np.unique(entries.page), entries.page)
        index = torch.from_numpy(place)
        seen = np.arange(key.shape[2])[None] < entries.length[:, None]
        if entries.visible is not None:
            seen &= entries.visible
        visible = None if seen.all() else torch.from_numpy(seen)[:, None, None]
        rows = torch.from_numpy(entries.rows_of_entries)
        part = attend(
            query.index_select(0, rows),
            key.index_select(0, index),
            value.index_select(0, index),
            scoring,
            visible,
        )
        bounds = entries.row_entry.tolist()
        table = EntryTable.of(
            [list(range(first, end)) for first, end in pairwise(bounds)],
            query.device,
        )
        merged = merge_entries(part, table)
        result.output.copy_(merged.output)
        result.maximum.copy_(merged.maximum)
        result.total.copy_(merged.total)
