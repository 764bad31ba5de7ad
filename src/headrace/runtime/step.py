"""What the layers of a running step share: its rows, where their new tokens go, what is seen.

Shape suffixes: B rows, q inputs of the step, T places of a tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.runtime.moves import StepIndex
from headrace.runtime.pages import Row, StepMoves
from headrace.runtime.prompt import row_spans
from headrace.runtime.tail import tail_visible


@dataclass(frozen=True)
class Step:
    """What the layers of a running step share.

    Attributes:
        rows: the rows that take part; all else is of these alone.
        moves: what becomes of the new tokens.
        index: the same as tensors.
        fresh: whether no row had anything cached before.
        spans: rows by the span of their inputs, if each is contiguous.
        seen_BT: bool; places of the tail that are seen.
        tail_token: int64 ``[B, T]``; 0 for such a place, -1 for others (older than any query).
        column_Bq: int64; column of the padded batch of each input, -1 for padding.
    """

    rows: range
    moves: StepMoves
    index: StepIndex
    fresh: bool
    spans: dict[tuple[int, int], list[int]] | None
    seen_BT: Tensor
    tail_token: Tensor
    column_Bq: Tensor

    @classmethod
    def of(
        cls,
        rows: range,
        moves: StepMoves,
        index: StepIndex,
        hidden: list[set[int]],
        first_column: int | Sequence[int],
        fresh: bool,
        block_tokens: int,
    ) -> Step:
        """Return what the layers share. Generated tokens are in the tail when it is attended to.

        Args:
            rows: the rows that take part.
            moves: what becomes of the new tokens.
            index: the same as tensors, on the device.
            hidden: for each row, see ``hidden_places``.
            first_column: column of the step's first input: of the padded batch, or one for each
                row.
            fresh: whether no row had anything cached before.
            block_tokens: places of a tail.
        """
        counts = list(moves.tail_before)
        if moves.generated:
            counts = [
                count + len(indices) for count, indices in zip(counts, moves.new, strict=True)
            ]
        device = index.token_Bq.device
        first = torch.tensor(first_column, device=device).view(-1, 1)
        column = torch.arange(index.token_Bq.shape[1], device=device) + first
        seen = tail_visible(counts, hidden, block_tokens, device)
        return cls(
            rows=rows,
            moves=moves,
            index=index,
            fresh=fresh,
            spans=None if moves.generated else row_spans(moves.new),
            seen_BT=seen,
            tail_token=seen.to(torch.int64) - 1,
            column_Bq=torch.where(index.token_Bq >= 0, column, -1),
        )


def hidden_places(row: Row) -> set[int]:
    """Return the places of a row's tail whose tokens the attention mask hides."""
    if not row.hidden:
        return set()
    return {place for place, token in enumerate(row.tail) if token in row.hidden}
