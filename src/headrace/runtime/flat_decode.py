"""A decode step over rows that lie contiguous on the device: one new token a row.

Torch's attention takes all rows at once, with a bias where they differ. On a GPU the kernels for
pages do better: they read no place past a row's end, and torch may choose a kernel of a library
that takes a millisecond to set up for every new length. They know where a page is by one stride.
With that of a token, a page may begin at any token of any row's any head; so rows are divided into
pieces, which are attended to as they lie.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, C places of a row, D head
width, E pieces, T tokens of a piece, N pieces of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from headrace.runtime.attention import (
    EntryTable,
    Partial,
    Scoring,
    attend,
    empty_partial,
    normalised,
)
from headrace.runtime.gpu_kernels import kernels_for

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


class DecodeStep:
    """What the layers of a decode step share.

    Args:
        rows: the rows that take part.
        first_tokens: the number of each row's new token.
        ends: tokens of each row with it; as before, where a row has no new one.
        hidden: tokens of each row that nobody sees.
        places: tokens of a row that there is room for.
        device: where the cache is.
        workspace_bytes: bound on the results of pieces, as far as it can be kept.
    """

    def __init__(
        self,
        rows: range,
        first_tokens: Sequence[int],
        ends: Sequence[int],
        hidden: Sequence[set[int]],
        places: int,
        device: torch.device,
        workspace_bytes: int,
    ) -> None:
        self.rows = slice(rows.start, rows.stop)
        self.length = max(ends)
        alike = len(set(first_tokens)) == 1
        self.place: int | Tensor = first_tokens[0]
        """Where new tokens go: a number, or int64 ``[B, 1, 1, 1]`` if rows differ."""
        if not alike:
            index = torch.tensor(first_tokens, dtype=torch.int64)
            self.place = index.to(device, non_blocking=True).view(-1, 1, 1, 1)
        self._ends = ends
        self._hidden = hidden
        self._places = places
        self._device = device
        self._workspace_bytes = workspace_bytes
        self._made_bias: Tensor | None = None
        self._made_pieces: Pieces | None = None
        self._pages: dict[int, Tensor] = {}
        self._room: dict[tuple[int, ...], Partial] = {}

    def attend(self, grouped: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Attend each row's queries to the row.

        Args:
            grouped: ``[B, H, G, D]``.
            keys: of all rows that there is room for, ``[rows, H, C, D]``.
            values: likewise.
            scoring: scale and soft cap.

        Returns:
            The output ``[B, H, G, D]``.
        """
        kernels = kernels_for(grouped)
        if kernels is not None:
            return self.attend_pieces(kernels, grouped, keys, values, scoring)
        if len(grouped) != len(keys):
            keys, values = keys[self.rows], values[self.rows]
        keys, values = keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)
        if scoring.softcap is not None:
            part = attend(grouped, keys, values, scoring, self._visible)
            return normalised(part, grouped.dtype)
        bias = self._bias(grouped.dtype)
        return F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=bias, scale=scoring.scale
        )

    @cached_property
    def _visible(self) -> Tensor | None:
        """Bool ``[B, 1, 1, length]``; the places that are seen, or None: all."""
        if len(set(self._ends)) == 1 and not any(self._hidden):
            return None
        seen = torch.arange(self.length) < torch.tensor(self._ends)[:, None]
        for row, tokens in enumerate(self._hidden):
            if tokens:
                seen[row, list(tokens)] = False
        # A row without any token sees the first place, for who sees nothing has no output.
        seen[:, 0] |= ~seen.any(dim=1)
        return seen.to(self._device, non_blocking=True)[:, None, None]

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores: made once, instead of by each layer."""
        if self._visible is None:
            return None
        if self._made_bias is None or self._made_bias.dtype != dtype:
            bias = torch.zeros_like(self._visible, dtype=dtype)
            self._made_bias = bias.masked_fill_(~self._visible, -math.inf)
        return self._made_bias

    def attend_pieces(
        self, kernels: ModuleType, grouped: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        """Do so by the kernels for pages."""
        _, heads, queries, width = grouped.shape
        pieces = self._pieces(4 * grouped.numel())
        shape = (pieces.count, heads, queries, width)
        room = self._room.get(shape)
        if room is None:
            # Layers come one after the other, so one result serves them all.
            room = self._room[shape] = empty_partial(shape, grouped.device)
        kernels.attend_pages(
            grouped,
            as_pieces(keys, pieces.tokens),
            as_pieces(values, pieces.tokens),
            scoring,
            room,
            pieces.rows_E,
            self._pages_of(pieces, heads),
            pieces.visible_ET,
        )
        merged = torch.empty(grouped.shape, dtype=grouped.dtype, device=grouped.device)
        kernels.merge_parts(room, pieces.table, None, None, merged)
        return merged

    def _pieces(self, result_bytes: int) -> Pieces:
        """Return the rows' pieces: short ones, so that many work at once, but not too many.

        Args:
            result_bytes: of the results of one piece of every row.
        """
        if self._made_pieces is None:
            tokens = min(PIECE_TOKENS, self._places)
            longest = max(self._ends)
            while (
                tokens < self._places
                and -(-longest // tokens) * result_bytes > self._workspace_bytes
            ):
                tokens = min(2 * tokens, self._places)
            self._made_pieces = Pieces.of(self._ends, self._hidden, tokens, self._device)
        return self._made_pieces

    def _pages_of(self, pieces: Pieces, heads: int) -> Tensor:
        """Return where each piece begins in its first head, in tokens of the whole buffer."""
        known = self._pages.get(heads)
        if known is None:
            first = self.rows.start * heads * self._places
            known = pieces.rows_E * (heads * self._places) + pieces.begins_E + first
            self._pages[heads] = known
        return known


def as_pieces(buffer: Tensor, tokens: int) -> Tensor:
    """Return a buffer ``[rows, H, C, D]`` as the kernels see pieces of it, ``[1, H, T, D]``.

    Page n of it begins n tokens after the first.
    """
    _, heads, places, width = buffer.shape
    return buffer.as_strided((1, heads, tokens, width), (width, places * width, width, 1))
