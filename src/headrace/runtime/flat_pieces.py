"""Contiguous rows as the kernels for pages see them: in pieces, each of which may begin anywhere.

The kernels know where a page is by one stride. With that of a token, a page may begin at any token
of any row's any head; so rows are divided into pieces, which are attended to as they lie.

Shape suffixes: H key/value heads, C places of a row, D head width, E pieces, T tokens of a piece,
N pieces of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.runtime.attention import EntryTable

PIECE_TOKENS = 128
"""Tokens of a piece, where there is room for the results of so many pieces."""


@dataclass(frozen=True)
class Pieces:
    """Some rows, divided into pieces.

    Attributes:
        tokens: of a piece.
        rows_E: int64; the row of each piece, counted from the first that takes part.
        begins_E: int64; the first token of each in its row.
        visible_ET: bool; which tokens are seen.
        table: the pieces of each row.
    """

    tokens: int
    rows_E: Tensor
    begins_E: Tensor
    visible_ET: Tensor
    table: EntryTable

    @classmethod
    def of(
        cls, ends: Sequence[int], hidden: Sequence[set[int]], tokens: int, device: torch.device
    ) -> Pieces:
        """Divide rows into pieces.

        Args:
            ends: tokens of each row.
            hidden: those of them that nobody sees.
            tokens: of a piece.
            device: where the tensors go.
        """
        lengths = np.asarray(ends, dtype=np.int64)
        counts = np.maximum(-(-lengths // tokens), 1)
        firsts = np.cumsum(counts) - counts
        rows = np.repeat(np.arange(len(ends)), counts)
        begins = (np.arange(len(rows)) - firsts[rows]) * tokens
        # The last piece of a row may end past its room; what is past its end is not read.
        visible = begins[:, None] + np.arange(tokens) < lengths[rows, None]
        for row, some in enumerate(hidden):
            for token in some:
                visible[firsts[row] + token // tokens, token % tokens] = False
        place_N1 = np.arange(counts.max())[:, None]
        missing = place_N1 >= counts

        def on_device(values: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        return cls(
            tokens,
            on_device(rows),
            on_device(begins),
            on_device(visible),
            EntryTable(
                on_device(np.where(missing, 0, firsts + place_N1)),
                on_device(missing) if missing.any() else None,
            ),
        )

    @property
    def count(self) -> int:
        """Pieces of all rows."""
        return self.rows_E.shape[0]


def as_pieces(buffer: Tensor, tokens: int) -> Tensor:
    """Return a buffer ``[rows, H, C, D]`` as the kernels see pieces of it, ``[1, H, T, D]``.

    Page n of it begins n tokens after the first.
    """
    _, heads, places, width = buffer.shape
    return buffer.as_strided((1, heads, tokens, width), (width, places * width, width, 1))
