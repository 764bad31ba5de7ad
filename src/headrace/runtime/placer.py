"""Finds places for new tokens: prompts are divided over the paths, generated tokens go to the tail.

Pure bookkeeping, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from headrace.runtime.layout import Layout
from headrace.runtime.pages import Page, PageFill, PageKind, Row, StepMoves, TailFill


class Placer:
    """Places the new tokens of a step.

    Args:
        layout: where the tokens before them are.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._block = layout.block_tokens

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
        for row, indices in zip(self._layout.of(rows), new, strict=True):
            kept = len(indices)
            if not generated and row.split.recompute > 0:
                runs = list(self._divide_prompt(row, row.length, len(indices)))
                rebuilt = sum(length for _, length, is_rebuilt in runs if is_rebuilt)
                kept -= rebuilt
                beyond = max(0, rebuilt - self._room(row))
                # A page is closed by what follows it, so each run of X may begin one of its own.
                needed[PageKind.ACTIVATIONS] += math.ceil(beyond / self._block) + (len(runs) > 1)
            pages = (len(row.tail) + kept) // self._block
            due = pages if generated else self._resident_due(row, len(indices), pages)
            on_device = min(due, self._layout.resident_room - needed[PageKind.RESIDENT])
            needed[PageKind.RESIDENT] += on_device
            needed[PageKind.KV] += pages - on_device
        return needed

    def _resident_due(self, row: Row, count: int, pages: int) -> int:
        """Return how many of a prompt's next pages its share puts on the device."""
        due = row.split.resident * (row.length + count) - self._resident_tokens(row)
        return min(pages, max(0, math.floor(due / self._block + 0.5)))

    def pages_expected(self, prompt_len: int, new_tokens: int) -> dict[PageKind, int]:
        """Return the pages of each kind for prompts of a length and tokens generated after them.

        Args:
            prompt_len: tokens of the longest prompt.
            new_tokens: tokens that each row generates.
        """
        pages = self.pages_needed([range(prompt_len)] * len(self._layout.rows))
        # The prompt leaves a tail of less than a block.
        further = len(self._layout.rows) * ((new_tokens + self._block - 1) // self._block)
        limited = self._layout.resident_pages is not None or self._layout.all_resident
        room = self._layout.resident_room - pages[PageKind.RESIDENT] if limited else 0
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
        generated, some = _is_generated(new), self._layout.of(rows)
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
            self._layout.touch(some[number])
        columns = tuple(tuple(indices) for indices in new)
        return StepMoves(generated, columns, first_token, before, tuple(fills), tuple(tails))

    def _append_generated(self, number: int, row: Row, fills: list[PageFill]) -> None:
        """Put one token into the tail, and the tail into a page when it is full."""
        row.tail.append(row.length - 1)
        if len(row.tail) == self._block:
            slots = tuple(range(self._block))
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
        size = self._block
        while len(waiting) >= size:
            page = self._new_kv_page(row, tokens[:size], is_prompt=True)
            fills.append(PageFill(page, number, 0, *_divide(waiting[:size])))
            waiting, tokens = waiting[size:], tokens[size:]
        row.tail = tokens
        tails.append(TailFill(number, *_divide(waiting)))

    def _new_kv_page(self, row: Row, tokens: Sequence[int], *, is_prompt: bool) -> Page:
        page = self._layout.take(self._kv_kind(row, is_prompt))
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
            length = min(self._block, count - position)
            seen = start + position + length
            is_rebuilt = stored + length * row.phase <= row.split.recompute * seen
            if is_rebuilt:
                length = min(length, room or self._block)
                room = (room or self._block) - length
                stored += length
            yield position, length, is_rebuilt
            position += length

    def _room(self, row: Row) -> int:
        """Return the free places of the row's last page, if that is one of X and its alone."""
        last = row.pages[-1] if row.pages else None
        if last is None or last.kind is not PageKind.ACTIVATIONS or last.users > 1:
            return 0
        return self._block - len(last.tokens)

    def _fill_page(
        self, number: int, row: Row, token: int, run: list[int], fills: list[PageFill]
    ) -> None:
        """Put tokens that follow each other into a page of X: the last one if it has room."""
        if self._room(row) > 0:
            page = row.pages[-1]
        else:
            page = self._layout.take(PageKind.ACTIVATIONS)
            row.pages.append(page)
        offset = len(page.tokens)
        page.tokens = np.append(page.tokens, np.arange(token, token + len(run)))
        fills.append(PageFill(page, number, offset, (), tuple(run)))

    def _kv_kind(self, row: Row, is_prompt: bool) -> PageKind:
        """Return where the next page of keys and values goes: to the device while it may."""
        if self._layout.all_resident:
            return PageKind.RESIDENT
        pool = self._layout.pools[PageKind.RESIDENT]
        if pool.free == 0 or self._layout.resident_room == 0:
            return PageKind.KV
        resident = self._resident_tokens(row) + self._block / 2
        due = not is_prompt or resident <= row.split.resident * row.length
        return PageKind.RESIDENT if due else PageKind.KV

    @staticmethod
    def _resident_tokens(row: Row) -> int:
        return sum(len(page.tokens) for page in row.pages if page.kind is PageKind.RESIDENT)


def _is_generated(new: Sequence[Sequence[int]]) -> bool:
    """Return whether each row has at most one new token, the step's first input."""
    return all(list(indices) in ([], [0]) for indices in new)


def _divide(waiting: Sequence[tuple[bool, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tail slots and the new indices of a run of tokens (old ones come first)."""
    return (
        tuple(place for old, place in waiting if old),
        tuple(place for old, place in waiting if not old),
    )
