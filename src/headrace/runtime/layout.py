"""Where each cached token lives: pages, the tail, and what a step moves between them.

Pure bookkeeping, no tensors. All layers that have a cache on the host hold the same tokens in the
same places, so one layout serves them all.

A page holds up to ``block_tokens`` tokens of one row. Attention does not care for the order of its
keys, so a page may hold any tokens of its row, and pages may be brought in any order. A row's
newest tokens live in its tail on the device; when the tail is full, it becomes a page. Rows have
their own lengths, and padding is never cached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigurationError
from headrace.plan.policies import Split
from headrace.runtime.pages import (
    Page,
    PageFill,
    PageKind,
    PageMove,
    PagePool,
    Row,
    StepMoves,
    TailFill,
)

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
        self._admitted = 0
        self._split = split
        self._resident_pages = resident_pages
        self._all_resident = split.resident >= 1.0 - 1e-9 and resident_pages is None

    def start(self, rows: int) -> None:
        """Begin with empty rows."""
        self.rows, self._admitted = [], 0
        self.add(rows)

    def add(self, rows: int) -> None:
        """Add empty rows behind the others. Their prompts are split as is planned."""
        for _ in range(rows):
            self.rows.append(Row(phase=_phase(self._admitted), split=self._split))
            self._touch(self.rows[-1])
            self._admitted += 1

    def _touch(self, row: Row) -> None:
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

    def pages_needed(
        self, new: Sequence[Sequence[int]], rows: range | None = None
    ) -> dict[PageKind, int]:
        """Return how many further pages of each kind a step's new tokens take, at most.

        Args:
            new: for each row, the indices among the step's inputs that are tokens.
            rows: the rows; None: all.
        """
        needed = dict.fromkeys(PageKind, 0)
        generated = _is_generated(new)
        for row, indices in zip(self.of(rows), new, strict=True):
            kept = len(indices)
            if not generated and row.split.recompute > 0:
                runs = list(self._divide_prompt(row, row.length, len(indices)))
                rebuilt = sum(length for _, length, is_rebuilt in runs if is_rebuilt)
                kept -= rebuilt
                beyond = max(0, rebuilt - self._room(row))
                # A page is closed by what follows it, so each run of X may begin one of its own.
                needed[PageKind.ACTIVATIONS] += math.ceil(beyond / self.block_tokens) + (
                    len(runs) > 1
                )
            pages = (len(row.tail) + kept) // self.block_tokens
            due = pages if generated else self._resident_due(row, len(indices), pages)
            on_device = min(due, self._resident_room() - needed[PageKind.RESIDENT])
            needed[PageKind.RESIDENT] += on_device
            needed[PageKind.KV] += pages - on_device
        return needed

    def _resident_due(self, row: Row, count: int, pages: int) -> int:
        """Return how many of a prompt's next pages its share puts on the device."""
        due = row.split.resident * (row.length + count) - self._resident_tokens(row)
        return min(pages, max(0, math.floor(due / self.block_tokens + 0.5)))

    def _resident_room(self) -> int:
        """Return how many further pages may go to the device."""
        if self._all_resident:
            return 1 << 60
        pool = self.pools[PageKind.RESIDENT]
        used = pool.capacity - pool.free
        if self._resident_pages is not None:
            return max(0, self._resident_pages - used)
        return pool.free if any(row.length for row in self.rows) else 1 << 60

    def pages_expected(self, prompt_len: int, new_tokens: int) -> dict[PageKind, int]:
        """Return the pages of each kind for prompts of a length and tokens generated after them.

        Args:
            prompt_len: tokens of the longest prompt.
            new_tokens: tokens that each row generates.
        """
        pages = self.pages_needed([range(prompt_len)] * len(self.rows))
        # The prompt leaves a tail of less than a block.
        further = len(self.rows) * ((new_tokens + self.block_tokens - 1) // self.block_tokens)
        limited = self._resident_pages is not None or self._all_resident
        room = self._resident_room() - pages[PageKind.RESIDENT] if limited else 0
        on_device = min(further, room)
        pages[PageKind.RESIDENT] += on_device
        pages[PageKind.KV] += further - on_device
        return pages

    def append(
        self,
        new: Sequence[Sequence[int]],
        first_column: int | Sequence[int],
        rows: range | None = None,
    ) -> StepMoves:
        """Place new tokens.

        A single new token of a row is a generated one and goes to the tail as keys and values.
        Several are a prompt's, and are divided over the paths by the split.

        Args:
            new: for each row, the indices among the step's inputs that are tokens (not padding).
            first_column: column of the step's first input: of the padded batch, or one for each
                row.
            rows: the rows that take part, from the first of which they are counted; None: all.
        """
        generated, some = _is_generated(new), self.of(rows)
        first_token = tuple(row.length for row in some)
        before = tuple(len(row.tail) for row in some)
        first = [first_column] * len(some) if isinstance(first_column, int) else first_column
        fills: list[PageFill] = []
        tails: list[TailFill] = []
        for number, (row, indices) in enumerate(zip(some, new, strict=True)):
            if not indices:
                continue
            row.columns.extend(first[number] + index for index in indices)
            if generated:
                self._append_generated(number, row, fills)
            else:
                self._append_prompt(number, row, list(indices), fills, tails)
        for number in {fill.row for fill in fills}:
            self._touch(some[number])
        columns = tuple(tuple(indices) for indices in new)
        return StepMoves(generated, columns, first_token, before, tuple(fills), tuple(tails))

    def _append_generated(self, number: int, row: Row, fills: list[PageFill]) -> None:
        """Put one token into the tail, and the tail into a page when it is full."""
        row.tail.append(row.length - 1)
        if len(row.tail) == self.block_tokens:
            slots = tuple(range(self.block_tokens))
            page = self._new_kv_page(row, row.tail, is_prompt=False)
            fills.append(PageFill(page, number, 0, slots, ()))
            row.tail = []

    def _append_prompt(
        self,
        number: int,
        row: Row,
        indices: list[int],
        fills: list[PageFill],
        tails: list[TailFill],
    ) -> None:
        """Divide a prompt's tokens over pages of X, pages of keys and values, and the tail."""
        start = row.length - len(indices)
        kept = indices
        if row.split.recompute > 0:
            kept = self._fill_activations(number, row, start, indices, fills)
        token_of = {index: start + place for place, index in enumerate(indices)}
        waiting = [(True, slot) for slot in range(len(row.tail))]
        waiting += [(False, index) for index in kept]
        tokens = row.tail + [token_of[index] for index in kept]
        size = self.block_tokens
        while len(waiting) >= size:
            page = self._new_kv_page(row, tokens[:size], is_prompt=True)
            fills.append(PageFill(page, number, 0, *_divide(waiting[:size])))
            waiting, tokens = waiting[size:], tokens[size:]
        row.tail = tokens
        tails.append(TailFill(number, *_divide(waiting)))

    def _new_kv_page(self, row: Row, tokens: Sequence[int], *, is_prompt: bool) -> Page:
        page = self._take(self._kv_kind(row, is_prompt))
        page.tokens = np.array(tokens, dtype=np.int64)
        row.pages.append(page)
        return page

    def _fill_activations(
        self, number: int, row: Row, start: int, indices: list[int], fills: list[PageFill]
    ) -> list[int]:
        """Bring the recompute share of the new tokens into pages of X; return the others."""
        others: list[int] = []
        for first, length, is_rebuilt in list(self._divide_prompt(row, start, len(indices))):
            run = indices[first : first + length]
            if is_rebuilt:
                self._fill_page(number, row, start + first, run, fills)
            else:
                others.extend(run)
        return others

    def _divide_prompt(self, row: Row, start: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield a prompt's runs of tokens: first, length, and whether they are kept as X."""
        stored = sum(len(page.tokens) for page in row.pages if page.kind is PageKind.ACTIVATIONS)
        room = self._room(row)
        position = 0
        while position < count:
            length = min(self.block_tokens, count - position)
            seen = start + position + length
            is_rebuilt = stored + length * row.phase <= row.split.recompute * seen
            if is_rebuilt:
                length = min(length, room or self.block_tokens)
                room = (room or self.block_tokens) - length
                stored += length
            yield position, length, is_rebuilt
            position += length

    def _room(self, row: Row) -> int:
        """Return the free places of the row's last page, if that is one of X and its alone."""
        last = row.pages[-1] if row.pages else None
        if last is None or last.kind is not PageKind.ACTIVATIONS or last.users > 1:
            return 0
        return self.block_tokens - len(last.tokens)

    def _fill_page(
        self, number: int, row: Row, token: int, run: list[int], fills: list[PageFill]
    ) -> None:
        """Put tokens that follow each other into a page of X: the last one if it has room."""
        if self._room(row) > 0:
            page = row.pages[-1]
        else:
            page = self._take(PageKind.ACTIVATIONS)
            row.pages.append(page)
        offset = len(page.tokens)
        page.tokens = np.append(page.tokens, np.arange(token, token + len(run)))
        fills.append(PageFill(page, number, offset, (), tuple(run)))

    def _kv_kind(self, row: Row, is_prompt: bool) -> PageKind:
        """Return where the next page of keys and values goes: to the device while it may."""
        if self._all_resident:
            return PageKind.RESIDENT
        pool = self.pools[PageKind.RESIDENT]
        if pool.free == 0 or self._resident_room() == 0:
            return PageKind.KV
        resident = self._resident_tokens(row) + self.block_tokens / 2
        due = not is_prompt or resident <= row.split.resident * row.length
        return PageKind.RESIDENT if due else PageKind.KV

    @staticmethod
    def _resident_tokens(row: Row) -> int:
        return sum(len(page.tokens) for page in row.pages if page.kind is PageKind.RESIDENT)

    def _take(self, kind: PageKind) -> Page:
        number = self.pools[kind].take()
        if number is None:
            raise ConfigurationError(
                f"no free page of kind {kind.value}: the pool of {self.pools[kind].capacity} pages "
                "is used up; reserve more tokens"
            )
        return Page(kind, number, np.empty(0, dtype=np.int64))

    @property
    def promotable(self) -> int:
        """Pages that may still come to the device, where there is a limit to them."""
        return 0 if self._resident_pages is None else self._resident_room()

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
                page.number = self._take(PageKind.RESIDENT).number
                page.kind = PageKind.RESIDENT
        for move in moves:
            self.pools[move.kind].give_back(move.number)
        moved = {id(move.page) for move in moves}
        for row in self.rows:
            if any(id(page) in moved for page in row.pages):
                self._touch(row)
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
            self._touch(row)

    def show(self, number: int, visible_columns: NDArray[np.bool_]) -> None:
        """Let the attention mask of a row say which of its cached tokens are seen."""
        row = self.rows[number]
        hidden = {token for token, column in enumerate(row.columns) if not visible_columns[column]}
        if hidden != row.hidden:
            row.hidden = hidden
            self._touch(row)

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


def _is_generated(new: Sequence[Sequence[int]]) -> bool:
    """Return whether each row has at most one new token, the step's first input."""
    return all(list(indices) in ([], [0]) for indices in new)


def _divide(waiting: Sequence[tuple[bool, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tail slots and the new indices of a run of tokens (old ones come first)."""
    return (
        tuple(place for old, place in waiting if old),
        tuple(place for old, place in waiting if not old),
    )
