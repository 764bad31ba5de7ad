"""A step's moves as index tensors, made once per step and used by every layer.

Shape suffixes: B rows, N pages of a batch, T tokens of a page, q new tokens, R rows whose tail
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.pages import PageFill, PageKind, StepMoves, TailFill


@dataclass(frozen=True)
class FillBatch:
    """Fills of one kind that are gathered by one indexing operation.

    Attributes:
        kind: which pool.
        pages: page numbers.
        offsets: first place that is filled, by page; 0 but for pages that are filled further.
        counts: tokens that are filled, by page.
        rows_NT: int64; the row of each place's token.
        sources_NT: int64; its place in the row's tail followed by the step's inputs.
        page_index: int64 ``[N]``; page numbers on the device.
    """

    kind: PageKind
    pages: tuple[int, ...]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    rows_NT: Tensor
    sources_NT: Tensor
    page_index: Tensor


@dataclass(frozen=True)
class TailUpdate:
    """New contents of some rows' tails.

    Attributes:
        rows_R: int64; the rows.
        rows_RT: int64; the row of each place (as index beside ``sources_RT``).
        sources_RT: int64; where each place's token is: the row's tail, then the step's inputs.
    """

    rows_R: Tensor
    rows_RT: Tensor
    sources_RT: Tensor


@dataclass(frozen=True)
class StepIndex:
    """What every layer needs to place a step's new tokens.

    Attributes:
        generated: at most one new token a row (see ``StepMoves``).
        token_Bq: int64; number of each input within its row, -1 for padding.
        written_slots: int64 ``[B, 1, 1, 1]``; the tail slot of each row's new token (only if
            ``generated``). Of a row without one it is the next free slot, which nobody sees.
        tail_empty: whether no row had a tail before the step.
        fills: batches of page fills, in the order of their page numbers.
        tails: new contents of tails, or None.
    """

    generated: bool
    token_Bq: Tensor
    written_slots: Tensor | None
    tail_empty: bool
    fills: tuple[FillBatch, ...]
    tails: TailUpdate | None


Indexer = Callable[[object], Tensor]


def index_moves(
    moves: StepMoves,
    q_len: int,
    block_tokens: int,
    pages_at_once: dict[PageKind, int],
    device: torch.device,
) -> StepIndex:
    """Return a step's moves as index tensors on the device.

    Args:
        moves: from the layout.
        q_len: inputs of the step, padding included.
        block_tokens: tokens of a page, and places of a tail.
        pages_at_once: most pages of a batch, by kind.
        device: where the tensors go.
    """

    def index(values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device, non_blocking=True)

    token = np.full((len(moves.new), q_len), -1, dtype=np.int64)
    numbered = zip(moves.new, moves.first_token, strict=True)
    if moves.generated:
        token[:, 0] = [first if indices else -1 for indices, first in numbered]
    else:
        for row, (indices, first) in enumerate(numbered):
            token[row, list(indices)] = np.arange(first, first + len(indices))
    tail_empty = not any(moves.tail_before)
    first_new = 0 if tail_empty else block_tokens
    return StepIndex(
        generated=moves.generated,
        token_Bq=index(token),
        written_slots=index(moves.tail_before).view(-1, 1, 1, 1) if moves.generated else None,
        tail_empty=tail_empty,
        fills=tuple(_batches(moves.fills, first_new, block_tokens, pages_at_once, index)),
        tails=_tail_update(moves.tails, first_new, block_tokens, index),
    )


def _batches(
    all_fills: Sequence[PageFill],
    first_new: int,
    size: int,
    pages_at_once: dict[PageKind, int],
    index: Indexer,
) -> Iterator[FillBatch]:
    """Cut fills into batches; first fills of pages, which are whole copies, go before others."""
    for kind in PageKind:
        first_new_of_kind = 0 if kind is PageKind.ACTIVATIONS else first_new
        of_kind = [fill for fill in all_fills if fill.page.kind is kind]
        for further in (False, True):
            fills = sorted(
                (fill for fill in of_kind if (fill.offset > 0) is further),
                key=lambda fill: fill.page.number,
            )
            most = max(1, pages_at_once[kind])
            for start in range(0, len(fills), most):
                yield _batch(kind, fills[start : start + most], first_new_of_kind, size, index)


def _batch(
    kind: PageKind, fills: Sequence[PageFill], first_new: int, size: int, index: Indexer
) -> FillBatch:
    rows = np.repeat(np.array([[fill.row] for fill in fills]), size, axis=1)
    sources = [_sources(fill.tail_slots, fill.new, first_new, size) for fill in fills]
    return FillBatch(
        kind=kind,
        pages=tuple(fill.page.number for fill in fills),
        offsets=tuple(fill.offset for fill in fills),
        counts=tuple(fill.count for fill in fills),
        rows_NT=index(rows),
        sources_NT=index(sources),
        page_index=index([fill.page.number for fill in fills]),
    )


def _sources(tail_slots: Sequence[int], new: Sequence[int], first_new: int, size: int) -> list[int]:
    """Return where ``size`` tokens are among a row's tail followed by the step's inputs.

    Places past the last token repeat it; what they hold is never seen.
    """
    places = [*tail_slots, *(first_new + place for place in new)]
    return places + [places[-1]] * (size - len(places))


def _tail_update(
    tails: Sequence[TailFill], first_new: int, size: int, index: Indexer
) -> TailUpdate | None:
    changed = [tail for tail in tails if tail.tail_slots or tail.new]
    if not changed:
        return None
    rows = np.array([tail.row for tail in changed])
    return TailUpdate(
        rows_R=index(rows),
        rows_RT=index(np.repeat(rows[:, None], size, axis=1)),
        sources_RT=index(
            [_sources(tail.tail_slots, tail.new, first_new, size) for tail in changed]
        ),
    )
