"""A layout's pages, cut into the granules that are staged and attended at once.

Shape suffixes: E entries (a page as one row sees it), R rows, N entries of a row, T tokens of a
page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.attention import EntryTable
from headrace.runtime.layout import Layout
from headrace.runtime.pages import Page, PageKind, Row


class PagePiece(NamedTuple):
    """Some pages that a row sees.

    Attributes:
        row: the row.
        pages: which they are: a range, or int64 on the device.
        entries: the granule's entries that stand for them, likewise.
    """

    row: int
    pages: slice | Tensor
    entries: slice | Tensor


@dataclass(frozen=True, eq=False)
class Granule:
    """Pages of one kind that are brought to bear together.

    Attributes:
        kind: which pool they are in.
        pages: distinct page numbers, ascending.
        tokens: cached tokens that it holds, a shared page counted once.
        entry_places: which of ``pages`` each entry is.
        entry_page: int64 ``[E]``; the same, on the device, or None for one entry a page.
        entry_rows: the row that sees each entry.
        entry_row: int64 ``[E]``; the same, on the device.
        rows: int64 ``[R]``; the rows that have entries.
        table: each such row's entries.
        visible: bool ``[E, T]``, or None when every place of every page holds a visible token.
        page_index: int64; ``pages`` on the device.
    """

    kind: PageKind
    pages: tuple[int, ...]
    tokens: int
    entry_places: tuple[int, ...]
    entry_page: Tensor | None
    entry_rows: tuple[int, ...]
    entry_row: Tensor
    rows: Tensor
    table: EntryTable
    visible: Tensor | None
    page_index: Tensor

    @property
    def entries(self) -> int:
        """Entries of all rows."""
        return len(self.entry_rows)

    @cached_property
    def entry_number(self) -> Tensor:
        """Page number of each entry: int64 ``[E]``."""
        if self.entry_page is None:
            return self.page_index
        return self.page_index.index_select(0, self.entry_page)

    def pieces(self, most: int, *, in_pool: bool) -> list[PagePiece]:
        """Return every row's pages, so many at once; made once for all layers and steps.

        Args:
            most: pages of a piece.
            in_pool: whether they are picked among all pages of their pool, or the granule's.
        """
        known = self._made_pieces.get((most, in_pool))
        if known is None:
            known = list(self._cut_pieces(most, in_pool))
            self._made_pieces[most, in_pool] = known
        return known

    @cached_property
    def _made_pieces(self) -> dict[tuple[int, bool], list[PagePiece]]:
        return {}

    def _cut_pieces(self, most: int, in_pool: bool) -> Iterator[PagePiece]:
        of_row: dict[int, list[int]] = {}
        for entry, row in enumerate(self.entry_rows):
            of_row.setdefault(row, []).append(entry)
        for row, entries in sorted(of_row.items()):
            for start in range(0, len(entries), most):
                some = entries[start : start + most]
                places = [self.entry_places[entry] for entry in some]
                numbers = [self.pages[place] for place in places] if in_pool else places
                yield PagePiece(row, self._chosen(numbers), self._chosen(some))

    def _chosen(self, numbers: list[int]) -> slice | Tensor:
        """Return what picks some pages or entries, without a copy where they follow each other."""
        first, end = numbers[0], numbers[-1] + 1
        if numbers == list(range(first, end)):
            return slice(first, end)
        return torch.tensor(numbers).to(self.rows.device, non_blocking=True)


def cut_granules(
    layout: Layout,
    kind: PageKind,
    pages_at_once: int,
    device: torch.device,
    uses: Sequence[tuple[Page, int]] | None = None,
    rows: range | None = None,
) -> list[Granule]:
    """Cut the pages of a pool into granules of about equal size.

    Args:
        layout: where the tokens are.
        kind: which pool.
        pages_at_once: most pages of a granule.
        device: where the index tensors go.
        uses: some of ``layout.pages(kind, rows)``, in that order; None: all.
        rows: the rows that see them; None: all.
    """
    uses = layout.pages(kind, rows) if uses is None else uses
    numbers = sorted({page.number for page, _ in uses})
    if not numbers:
        return []
    parts = np.array_split(np.array(numbers), -(-len(numbers) // pages_at_once))
    granules, start = [], 0
    for part in parts:
        stop = start
        while stop < len(uses) and uses[stop][0].number <= part[-1]:
            stop += 1
        some = uses[start:stop]
        visible = _visible(some, layout.of(rows), layout.block_tokens, device)
        granules.append(_granule(kind, part.tolist(), some, visible, device))
        start = stop
    return granules


def _granule(
    kind: PageKind,
    numbers: list[int],
    uses: Sequence[tuple[Page, int]],
    visible: Tensor | None,
    device: torch.device,
) -> Granule:
    place = {number: index for index, number in enumerate(numbers)}
    entry_page = [place[page.number] for page, _ in uses]
    entry_row = [row for _, row in uses]
    rows = sorted(set(entry_row))
    of_row: dict[int, list[int]] = {row: [] for row in rows}
    for entry, row in enumerate(entry_row):
        of_row[row].append(entry)
    tokens = {page.number: len(page.tokens) for page, _ in uses}

    def index(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)

    return Granule(
        kind=kind,
        pages=tuple(numbers),
        tokens=sum(tokens.values()),
        entry_places=tuple(entry_page),
        entry_page=None if len(uses) == len(numbers) else index(entry_page),
        entry_rows=tuple(entry_row),
        entry_row=index(entry_row),
        rows=index(rows),
        table=EntryTable.of([of_row[row] for row in rows], device),
        visible=visible,
        page_index=index(numbers),
    )


def layer_table(
    granules: Sequence[Granule], rows: int, device: torch.device, *, hosted: bool = False
) -> EntryTable:
    """Return each row's entries over all granules, in their order, and one or two more a row.

    The first of these stands for the row's newest tokens: with E entries in all granules together,
    row r has entry ``E + r``. Where the host attends too, its result for row r is ``E + B + r``.
    """
    entries: list[list[int]] = [[] for _ in range(rows)]
    first = 0
    for granule in granules:
        for place, row in enumerate(granule.entry_rows):
            entries[row].append(first + place)
        first += granule.entries
    further = (first, first + rows) if hosted else (first,)
    return EntryTable.of(
        [[*own, *(start + row for start in further)] for row, own in enumerate(entries)], device
    )


def _visible(
    uses: Sequence[tuple[Page, int]], rows: Sequence[Row], size: int, device: torch.device
) -> Tensor | None:
    """Return which places hold a visible token, or None if all do."""
    if all(len(page.tokens) == size and not rows[row].hidden for page, row in uses):
        return None
    visible = np.zeros((len(uses), size), dtype=np.bool_)
    for entry, (page, row) in enumerate(uses):
        hidden = rows[row].hidden
        visible[entry, : len(page.tokens)] = [int(token) not in hidden for token in page.tokens]
    return torch.from_numpy(visible).to(device, non_blocking=True)
