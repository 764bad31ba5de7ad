"""Pages, rows and what a step moves between them: the words in which a layout is told.

Pure data, no tensors.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from headrace.plan.policies import Split, stream_split

TokenNumbers = NDArray[np.int64]


class PageKind(StrEnum):
    """How a page's tokens are stored, which decides the path that brings them to bear."""

    ACTIVATIONS = "activations"
    """X on the host: recompute."""
    KV = "kv"
    """Keys and values on the host: stream."""
    RESIDENT = "resident"
    """Keys and values on the device: resident."""


HOST_KINDS = (PageKind.ACTIVATIONS, PageKind.KV)
"""Those whose pages are on the host."""


@dataclass(eq=False)
class Page:
    """A page of one of the three pools.

    Attributes:
        kind: which pool.
        number: its place in the pool.
        tokens: numbers (within the row) of the tokens it holds, ascending.
        users: rows that hold this page (more than one after beams were split).
    """

    kind: PageKind
    number: int
    tokens: TokenNumbers
    users: int = 1


@dataclass(frozen=True)
class PageMove:
    """A page that moves to the device.

    Attributes:
        page: as it is now.
        kind: what it was.
        number: its place in the pool where it was.
    """

    page: Page
    kind: PageKind
    number: int


@dataclass
class Row:
    """One sequence.

    Attributes:
        columns: for each cached token, the column of the padded batch that it came from.
        pages: full and partly filled pages, in the order in which they were made.
        tail: numbers of the tokens in the tail, ascending.
        hidden: whether some cached token is masked out by the attention mask.
        phase: above 0, at most 1; at which part of a block its share of X is rounded up. Rows have
            different ones, so that together they have the share that is asked for.
        split: shares of its prompt's tokens on each path.
        stamp: changes whenever its pages, or what it sees of them, change.
    """

    columns: list[int] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    phase: float = 0.5
    split: Split = field(default_factory=stream_split)
    stamp: int = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.columns)

    def copy(self) -> Row:
        """Return a row that shares the pages."""
        for page in self.pages:
            page.users += 1
        return Row(
            list(self.columns),
            list(self.pages),
            list(self.tail),
            set(self.hidden),
            self.phase,
            self.split,
        )


@dataclass(frozen=True)
class PageFill:
    """Tokens that a step brings into a page.

    Attributes:
        page: where they go.
        row: whose they are, counted from the step's first row.
        offset: first place in the page (places before it were filled by an earlier step).
        tail_slots: places of the row's tail whose tokens come first.
        new: indices of the row's new tokens (columns of the step's input) that come after them.
    """

    page: Page
    row: int
    offset: int
    tail_slots: tuple[int, ...]
    new: tuple[int, ...]

    @property
    def count(self) -> int:
        """Tokens that the fill moves."""
        return len(self.tail_slots) + len(self.new)


@dataclass(frozen=True)
class TailFill:
    """What a row's tail holds after a step: some of its old tokens, then some new ones.

    Attributes:
        row: counted from the step's first row.
        tail_slots: places of the old tokens.
        new: indices of the new ones among the step's inputs.
    """

    row: int
    tail_slots: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class StepMoves:
    """What a step's new tokens do to the cache, the same for each layer.

    Attributes:
        generated: whether each row has at most one new token, the step's first input. It is then
            written to the tail before the step attends, and ``fills`` take from the tail alone;
            ``tails`` is empty.
        new: for each row, the indices among the step's inputs that are tokens.
        first_token: number (within its row) of each row's first new token.
        tail_before: tokens in each row's tail before the step.
        fills: pages that get tokens.
        tails: rows whose tail changes.
    """

    generated: bool
    new: tuple[tuple[int, ...], ...]
    first_token: tuple[int, ...]
    tail_before: tuple[int, ...]
    fills: tuple[PageFill, ...]
    tails: tuple[TailFill, ...]


class PagePool:
    """Numbers of free pages; the lowest is given first, so that used pages lie close together."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity))

    @property
    def free(self) -> int:
        """Pages that are not in use."""
        return len(self._free)

    def take(self) -> int | None:
        """Return the lowest free page, or None."""
        return heapq.heappop(self._free) if self._free else None

    def give_back(self, number: int) -> None:
        """Make a page free again."""
        heapq.heappush(self._free, number)

    def grow(self, capacity: int) -> None:
        """Add pages up to a new capacity."""
        for number in range(self.capacity, capacity):
            heapq.heappush(self._free, number)
        self.capacity = max(self.capacity, capacity)
