"""Host attention with torch's matrix products, where the native kernel cannot be had.

Shape suffixes: B rows, E entries, H key/value heads, G queries per key/value head, T tokens of a
page, D head width.

Pages are converted to float32 a few at a time, while they are in a cache: products of 16-bit
matrices would round scores to 16 bits on a CPU.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.attention import (
    Accumulator,
    EntryTable,
    Partial,
    Scoring,
    attend,
    merge_entries,
)
from headrace.runtime.host_entries import LayerPages, RowEntries

_BYTES_AT_ONCE = 1 << 22


def attend_with_torch(
    query: Tensor, pages: LayerPages, entries: RowEntries, scoring: Scoring, result: Partial
) -> None:
    """Attend as ``HostAttention.attend`` does; the arguments are allowed ones."""
    accumulator = Accumulator(query)
    page_bytes = 4 * pages.heads * pages.page_tokens * pages.width
    at_once = max(1, _BYTES_AT_ONCE // page_bytes)
    entry_rows = np.repeat(np.arange(entries.rows), np.diff(entries.row_entry))
    for start in range(0, entries.page.size, at_once):
        some = slice(start, start + at_once)
        row = entry_rows[some]
        key = _gather(pages.keys, pages, entries.page[some])
        value = _gather(pages.values, pages, entries.page[some])
        visible = _visible(entries, some, pages.page_tokens)
        if not bool(visible.all()):
            # What is not seen may be anything, also NaN, which a weight of 0 would not hide.
            value = value.masked_fill(~visible[:, None, :, None], 0.0)
        queries = query.index_select(0, torch.from_numpy(row)).float()
        part = attend(queries, key, value, scoring, visible[:, None, None])
        rows, table = _table(row.tolist())
        accumulator.add(merge_entries(part, table), torch.tensor(rows))
    merged = accumulator.result()
    result.output.copy_(merged.output)
    result.maximum.copy_(merged.maximum)
    result.total.copy_(merged.total)


def _gather(extents: tuple[Tensor, ...], pages: LayerPages, numbers: np.ndarray) -> Tensor:
    """Return pages as float32 ``[E, H, T, D]``."""
    extent = np.searchsorted(pages.first, numbers, side="right") - 1
    place = numbers - pages.first[extent]
    if len(extents) == 1:
        return extents[0].index_select(0, torch.from_numpy(place)).float()
    picked = [
        extents[which][int(at)].float() for which, at in zip(extent.tolist(), place, strict=True)
    ]
    return torch.stack(picked)


def _visible(entries: RowEntries, some: slice, page_tokens: int) -> Tensor:
    """Return which places are seen, bool ``[E, T]``."""
    tokens = np.diff(entries.token)[some]
    seen = np.arange(page_tokens) < tokens[:, None]
    if entries.visible is not None:
        marked = entries.visible[some, :page_tokens]
        seen[:, : marked.shape[1]] &= marked
    return torch.from_numpy(seen)


def _table(entry_rows: list[int]) -> tuple[list[int], EntryTable]:
    """Return the rows that have entries, and the entries of each."""
    rows, table = [], []
    for row, places in groupby(range(len(entry_rows)), key=entry_rows.__getitem__):
        rows.append(row)
        table.append(list(places))
    return rows, EntryTable.of(table, torch.device("cpu"))
