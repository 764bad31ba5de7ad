"""Where each cached token lives: in a page or in the tail of its row.

Pure bookkeeping, no tensors. All layers that have a cache on the host hold the same tokens in the
same places, so one layout serves them all.

A page holds up to ``block_tokens`` tokens of one row. Attention does not care for the order of its
keys, so a page may hold any tokens of its row, and pages may be brought in any order. A row's
newest tokens live in its tail on the device; when the tail is full, it becomes a page. Rows have
their own lengths, and padding is never cached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigurationError
from headrace.plan.policies import Split
from headrace.runtime.pages import Page, PageKind, PageMove, PagePool, Row

_GOLDEN_RATIO = 0.618033988749895


class Layout:
    """The places of all tokens of a batch.

    Args:
        block_tokens: tokens of a page, and of a row's tail.
        split: shares of the prompt's tokens on each path.
        resident_pages: most pages on the device, over all rows. Up to there, generated tokens go to
            the device too. None: no limit where the prompt is all resident, else what the prompt's
            share takes.
    """

    def __init__(self, block_tokens: int, split: Split, resident_pages: int | None = None) -> None:
        self.block_tokens = block_tokens
        self.rows: list[Row] = []
        self.pools = {kind: PagePool(0) for kind in PageKind}
        self.version = 0
        """Rises whenever the set of pages, or who uses them, changes."""
        self.resident_pages = resident_pages
        self.all_resident = split.resident >= 1.0 - 1e-9 and resident_pages is None
        """Whether every page goes to the device."""
        self._admitted = 0
        self.split = split
        """How prompts are divided, unless said otherwise."""

    def start(self, rows: int) -> None:
        """Begin with empty rows."""
        self.rows, self._admitted = [], 0
        self.add(rows)

    def add(self, rows: int, split: Split | None = None) -> None:
        """Add empty rows behind the others.

        Args:
            rows: how many.
            split: shares of their prompts' tokens on each path; None: as is planned.
        """
        for _ in range(rows):
            self.rows.append(Row(phase=_phase(self._admitted), split=split or self.split))
            self.touch(self.rows[-1])
            self._admitted += 1

    def touch(self, row: Row) -> None:
        """Note that a row's pages, or what it sees of them, have changed."""
        self.version += 1
        row.stamp = self.version

    def state(self, rows: range | None = None) -> tuple[int, ...]:
        """Return what changes whenever the pages of some rows, or who sees what of them, change."""
        return tuple(row.stamp for row in self.of(rows))

    def of(self, rows: range | None) -> list[Row]:
        """Return some rows that follow each other; None for all."""
        return self.rows if rows is None else self.rows[rows.start : rows.stop]

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each row."""
        return [row.length for row in self.rows]

    def pages(self, kind: PageKind, rows: range | None = None) -> list[tuple[Page, int]]:
        """Return the pages of a pool with the row that uses each, by page number, then row.

        Args:
            kind: which pool.
            rows: the rows, from the first of which they are counted; None: all.
        """
        used = [
            (page, number)
            for number, row in enumerate(self.of(rows))
            for page in row.pages
            if page.kind is kind
        ]
        return sorted(used, key=lambda use: (use[0].number, use[1]))

    def take(self, kind: PageKind) -> Page:
        """Return an empty page that was free.

        Raises:
            ConfigurationError: there is none.
        """
        number = self.pools[kind].take()
        if number is None:
            raise ConfigurationError(
                f"no free page of kind {kind.value}: the pool of {self.pools[kind].capacity} pages "
                "is used up; reserve more tokens"
            )
        return Page(kind, number, np.empty(0, dtype=np.int64))

    @property
    def resident_room(self) -> int:
        """Pages that may still go to the device."""
        if self.all_resident:
            return 1 << 60
        pool = self.pools[PageKind.RESIDENT]
        used = pool.capacity - pool.free
        if self.resident_pages is not None:
            return max(0, self.resident_pages - used)
        return pool.free if any(row.length for row in self.rows) else 1 << 60

    @property
    def promotable(self) -> int:
        """Pages that may move to the device: none where there is no limit to them."""
        return 0 if self.resident_pages is None else self.resident_room

    def promote(self, rows: range, most: int) -> list[PageMove]:
        """Give some rows' pages on the host places on the device: keys and values before X.

        Nothing is copied here; the pool must have so many free pages.

        Args:
            rows: rows whose prompts are in the cache.
            most: pages.
        """
        moves: list[PageMove] = []
        for kind in (PageKind.KV, PageKind.ACTIVATIONS):
            pages = {id(page): page for page, _ in self.pages(kind, rows)}
            for page in list(pages.values())[: most - len(moves)]:
                moves.append(PageMove(page, kind, page.number))
                page.number = self.take(PageKind.RESIDENT).number
                page.kind = PageKind.RESIDENT
        for move in moves:
            self.pools[move.kind].give_back(move.number)
        moved = {id(move.page) for move in moves}
        for row in self.rows:
            if any(id(page) in moved for page in row.pages):
                self.touch(row)
        return moves

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was; shared pages stay where they are.

        Rows that are not named end, and give back their pages.
        """
        rows = [self.rows[source].copy() for source in sources]
        for row in self.rows:
            self._release(row.pages)
        for row, source in zip(rows, sources, strict=True):
            row.stamp = self.rows[source].stamp
        self.rows = rows
        self.version += 1

    def crop(self, columns: int) -> None:
        """Forget every token from this column of the padded batch on.

        Rows that share a page agree about its tokens' columns, so they agree about what is left.
        """
        for row in self.rows:
            length = sum(column < columns for column in row.columns)
            if length == row.length:
                continue
            row.columns = row.columns[:length]
            row.hidden = {token for token in row.hidden if token < length}
            row.tail = [token for token in row.tail if token < length]
            kept = []
            for page in row.pages:
                page.tokens = page.tokens[page.tokens < length]
                if len(page.tokens) > 0:
                    kept.append(page)
                else:
                    self._release([page])
            row.pages = kept
            self.touch(row)

    def show(self, number: int, visible_columns: NDArray[np.bool_]) -> None:
        """Let the attention mask of a row say which of its cached tokens are seen."""
        row = self.rows[number]
        hidden = {token for token, column in enumerate(row.columns) if not visible_columns[column]}
        if hidden != row.hidden:
            row.hidden = hidden
            self.touch(row)

    def clear(self) -> None:
        """Forget all rows."""
        for row in self.rows:
            self._release(row.pages)
        self.rows = []
        self.version += 1

    def _release(self, pages: Sequence[Page]) -> None:
        for page in pages:
            page.users -= 1
            if page.users == 0:
                self.pools[page.kind].give_back(page.number)

    def check_integrity(self) -> None:
        """Raise if a token is lost, doubled, or if a page is used and free at once (for tests)."""
        users: dict[int, int] = {}
        for row in self.rows:
            places = [token for page in row.pages for token in page.tokens.tolist()] + row.tail
            if sorted(places) != list(range(row.length)):
                raise AssertionError(f"row of {row.length} tokens holds {sorted(places)}")
            if len(row.tail) >= self.block_tokens:
                raise AssertionError(f"tail holds {len(row.tail)} of {self.block_tokens} tokens")
            for page in row.pages:
                users[id(page)] = users.get(id(page), 0) + 1
                if page.users < 1:
                    raise AssertionError("a row holds a page that was given back")
        for kind, pool in self.pools.items():
            pages = {id(page): page for page, _ in self.pages(kind)}
            if any(page.users != users[identity] for identity, page in pages.items()):
                raise AssertionError(f"wrong number of users of a page of kind {kind.value}")
            if pool.capacity - pool.free != len(pages):
                raise AssertionError(f"pages of kind {kind.value} are lost")


def _phase(number: int) -> float:
    """Return a row's phase: multiples of the golden ratio are spread evenly, however many."""
    return 1.0 - (0.5 + number * _GOLDEN_RATIO) % 1.0
