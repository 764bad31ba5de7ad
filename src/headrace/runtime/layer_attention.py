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
    empty_partial,
    merge_entries,
    normalised,
)
from headrace.runtime.gpu_kernels import kernels_for
from headrace.runtime.granules import Granule


class LayerAttention:
    """A layer's attention while it is put together.

    The partial results of few queries are kept as they are and merged once, at the end. Those of
    many queries would take too much memory and are merged granule by granule.

    Args:
        query: grouped queries ``[B, H, G, D]``.
        granules: all that will be attended to, in order, or none of them (windowed layers).
        table: of their entries, and one or two more for each row (``layer_table``).
        scoring: scale and soft cap.
        workspace_bytes: bound on the partial results that are kept, and on scores.
    """

    def __init__(
        self,
        query: Tensor,
        granules: Sequence[Granule],
        table: EntryTable,
        scoring: Scoring,
        workspace_bytes: int,
    ) -> None:
        self._query = query
        self._table = table
        self._scoring = scoring
        self._workspace_bytes = workspace_bytes
        self._entries = sum(granule.entries for granule in granules)
        self._merge_once = self._entries * query[0].numel() * 4 <= workspace_bytes
        self._kernels = kernels_for(query) if self._merge_once else None
        self._buffer: Partial | None = None
        self._filled = 0
        self._parts: list[Partial] = []
        self._new: Partial | None = None
        self._host: Partial | None = None
        self._accumulator: Accumulator | None = None
        self._whole: Tensor | None = None

    def attend_granule(self, granule: Granule, key: Tensor, value: Tensor) -> None:
        """Attend to a granule's pages ``[N, H, T, D]``."""
        room = None if self._kernels is None else self._room(granule.entries)
        part = attend_granule(
            granule, self._query, key, value, self._scoring, self._workspace_bytes, room
        )
        if self._merge_once:
            self._parts.append(part)
        else:
            self._accumulated.add(merge_entries(part, granule.table), granule.rows)

    def _room(self, entries: int) -> Partial:
        """Return where the next entries' results go: side by side, as they are merged."""
        if self._buffer is None:
            self._buffer = empty_partial(
                (self._entries, *self._query.shape[1:]), self._query.device
            )
        some = slice(self._filled, self._filled + entries)
        self._filled = some.stop
        return Partial(
            self._buffer.output[some], self._buffer.maximum[some], self._buffer.total[some]
        )

    def add_new(self, result: Partial | Tensor) -> None:
        """Add the attention of all rows to what is on the device anyway."""
        if isinstance(result, Tensor):
            self._whole = result
        else:
            self._new = result

    def add_host(self, part: Partial) -> None:
        """Add what the host's cores attended to."""
        self._host = part

    @property
    def _accumulated(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = Accumulator(self._query)
        return self._accumulator

    def merge(self) -> None:
        """Merge all parts into the output."""
        of_rows = [part for part in (self._new, self._host) if part is not None]
        if self._kernels is not None and (self._buffer is not None or of_rows):
            self._merge_by_kernel()
        elif self._parts:
            merged = merge_entries(concatenate([*self._parts, *of_rows]), self._table)
            self._whole = normalised(merged, self._query.dtype)
        elif self._accumulator is not None or of_rows:
            for part in of_rows:
                self._accumulated.add(part)
            self._whole = self._accumulated.output(self._query.dtype)

    def _merge_by_kernel(self) -> None:
        assert self._kernels is not None
        self._whole = torch.empty_like(self._query, memory_format=torch.contiguous_format)
        parts = self._buffer or empty_partial((0, *self._query.shape[1:]), self._query.device)
        self._kernels.merge_parts(parts, self._table, self._new, self._host, self._whole)

    def output(self) -> Tensor:
        """Return the normalised output ``[B, H, G, D]``."""
        assert self._whole is not None
        return self._whole


def attend_own(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, visible: Tensor
) -> Partial:
    """Attend each row's queries to its own keys.

    Args:
        query: grouped queries ``[B, H, G, D]``.
        key: ``[B, H, T, D]``.
        value: ``[B, H, T, D]``.
        scoring: scale and soft cap.
        visible: bool ``[B, 1, 1, T]``.
    """
    kernels = kernels_for(query)
    if kernels is None:
        return attend(query, key, value, scoring, visible)
    result = empty_partial(query.shape, query.device)
    kernels.attend_pages(query, key, value, scoring, result, visible_ET=visible[:, 0, 0])
    return result


def attend_granule(
    granule: Granule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    workspace_bytes: int,
    room: Partial | None = None,
) -> Partial:
    """Attend to a granule; return the result of each of its entries.

    Args:
        granule: which row sees which page.
        query: grouped queries of all rows ``[B, H, G, D]``.
        key: keys of the granule's pages ``[N, H, T, D]``.
        value: their values.
        scoring: scale and soft cap.
        workspace_bytes: bound on the scores that exist at once; queries are cut to keep it.
        room: where the result goes, if kernels of our own make it; None: into new memory.
    """
    kernels = kernels_for(query)
    if kernels is not None:
        result = room or empty_partial((granule.entries, *query.shape[1:]), query.device)
        kernels.attend_pages(
            query,
            key,
            value,
            scoring,
            result,
            granule.entry_row,
            granule.entry_page,
            granule.visible,
        )
        return result
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
