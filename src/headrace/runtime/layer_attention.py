"""The attention of one layer, put together from its granules.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, T tokens of a page, D head
width, N pages of a granule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.runtime.attention import (
    Accumulator,
    EntryTable,
    Partial,
    Scoring,
    attend,
    concatenate,
    merge_entries,
    normalised,
)
from headrace.runtime.granules import Granule


class LayerAttention:
    """A layer's attention while it is put together.

    The partial results of few queries are kept as they are and merged once, at the end. Those of
    many queries would take too much memory and are merged granule by granule.

    Args:
        query: grouped queries ``[B, H, G, D]``.
        granules: all that will be added, in order.
        table: of their entries, and one or two more for each row (``layer_table``).
        workspace_bytes: bound on the partial results that are kept.
    """

    def __init__(
        self,
        query: Tensor,
        granules: Sequence[Granule],
        table: EntryTable,
        workspace_bytes: int,
    ) -> None:
        self._query = query
        self._table = table
        entries = sum(granule.entries for granule in granules)
        self._merge_once = entries * query[0].numel() * 4 <= workspace_bytes
        self._parts: list[Partial] = []
        self._accumulator: Accumulator | None = None
        self._whole: Tensor | None = None

    def add_granule(self, granule: Granule, part: Partial) -> None:
        """Add the attention of a granule's entries."""
        if self._merge_once:
            self._parts.append(part)
        else:
            self._accumulated.add(merge_entries(part, granule.table), granule.rows)

    def add_new(self, result: Partial | Tensor) -> None:
        """Add the attention of all rows to what is on the device anyway."""
        if isinstance(result, Tensor):
            self._whole = result
        elif self._parts:
            self._parts.append(result)
        else:
            self._accumulated.add(result)

    def add_host(self, part: Partial) -> None:
        """Add what the host's cores attended to, after all else."""
        if self._parts:
            self._parts.append(part)
        else:
            self._accumulated.add(part)

    @property
    def _accumulated(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = Accumulator(self._query)
        return self._accumulator

    def merge(self) -> None:
        """Merge all parts into the output."""
        if self._parts:
            merged = merge_entries(concatenate(self._parts), self._table)
            self._whole = normalised(merged, self._query.dtype)
        elif self._accumulator is not None:
            self._whole = self._accumulator.output(self._query.dtype)

    def output(self) -> Tensor:
        """Return the normalised output ``[B, H, G, D]``."""
        assert self._whole is not None
        return self._whole


def attend_granule(
    granule: Granule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    workspace_bytes: int,
) -> Partial:
    """Attend to a granule; return the result of each of its entries.

    Args:
        granule: which row sees which page.
        query: grouped queries of all rows ``[B, H, G, D]``.
        key: keys of the granule's pages ``[N, H, T, D]``.
        value: their values.
        scoring: scale and soft cap.
        workspace_bytes: bound on the scores that exist at once; queries are cut to keep it.
    """
    if granule.entry_page is not None:
        key = key.index_select(0, granule.entry_page)
        value = value.index_select(0, granule.entry_page)
    visible = None if granule.visible is None else granule.visible[:, None, None]
    entries, heads, tokens, width = key.shape
    grouped = query.shape[2]
    per_query = entries * heads * (tokens + 3 * width) * 4
    at_once = max(1, min(grouped, workspace_bytes // per_query))
    parts = []
    for start in range(0, grouped, at_once):
        some = query[:, :, start : start + at_once].index_select(0, granule.entry_row)
        parts.append(attend(some, key, value, scoring, visible))
    if len(parts) == 1:
        return parts[0]
    return Partial(
        torch.cat([part.output for part in parts], dim=2),
        torch.cat([part.maximum for part in parts], dim=2),
        torch.cat([part.total for part in parts], dim=2),
    )
