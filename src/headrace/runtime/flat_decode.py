"""A decode step over rows that lie contiguous on the device: one new token a row.

Torch's attention takes all rows at once, with a bias where they differ. Kernels of our own do
better, for they read no place past a row's end. On a GPU they are those for pages, which see the
rows in pieces (``flat_pieces``); torch may choose a kernel of a library that takes a millisecond to
set up for every new length. On a CPU they are the native ones, to which a row is one long page.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, C places of a row, D head
width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.attention import Partial, Scoring, attend, empty_partial, normalised
from headrace.runtime.flat_pieces import PIECE_TOKENS, Pieces, as_pieces
from headrace.runtime.gpu_kernels import kernels_for
from headrace.runtime.host_attention import TORCH, HostAttention
from headrace.runtime.host_entries import DTYPES, LayerPages, RowEntries

_LEAST_NATIVE_BYTES = 1 << 20
"""Keys and values of a layer from which the native kernel is faster than one call of torch's."""


@lru_cache(maxsize=4)
def native_kernel(threads: int) -> HostAttention | None:
    """Return what attends to contiguous rows with torch's threads, or None where it is not had."""
    attention = HostAttention(threads, of_torch=True)
    return None if attention.variant == TORCH else attention


class DecodeStep:
    """What the layers of a decode step share.

    Args:
        rows: the rows that take part.
        first_tokens: the number of each row's new token.
        ends: tokens of each row with it; as before, where a row has no new one.
        hidden: tokens of each row that nobody sees.
        places: tokens of a row that there is room for.
        device: where the cache is.
        results_bytes: bound on the results of pieces, as far as it can be kept.
    """

    def __init__(
        self,
        rows: range,
        first_tokens: Sequence[int],
        ends: Sequence[int],
        hidden: Sequence[set[int]],
        places: int,
        device: torch.device,
        results_bytes: int,
    ) -> None:
        self.rows = slice(rows.start, rows.stop)
        self.length = max(ends)
        self._tokens = sum(ends)
        self.place = first_tokens[0] if len(set(first_tokens)) == 1 else None
        """Where each row's new token goes, or None if rows differ."""
        self._first_tokens = first_tokens
        self._ends = ends
        self._hidden = hidden
        self._places = places
        self._device = device
        self._results_bytes = results_bytes
        self._made_bias: Tensor | None = None
        self._made_pieces: Pieces | None = None
        self._pages: dict[int, Tensor] = {}
        self._targets: dict[int, Tensor] = {}
        self._room: dict[tuple[int, ...], Partial] = {}

    def targets(self, heads: int) -> Tensor:
        """Return where new tokens go in a buffer seen as ``[rows * H * C, D]``: int64 ``[B * H]``.

        Args:
            heads: H of the buffer.
        """
        known = self._targets.get(heads)
        if known is None:
            row_B1 = np.arange(self.rows.start, self.rows.stop)[:, None]
            token_B1 = np.asarray(self._first_tokens)[:, None]
            place_BH = (row_B1 * heads + np.arange(heads)) * self._places + token_B1
            index = torch.from_numpy(place_BH.ravel())
            known = self._targets[heads] = index.to(self._device, non_blocking=True)
        return known

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
        native = self._native_for(keys)
        if native is not None:
            return self.attend_native(native, grouped, keys, values, scoring)
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

    def _native_for(self, keys: Tensor) -> HostAttention | None:
        """Return the native kernel if it is to be used for a layer, else None."""
        if keys.is_cuda or keys.dtype not in DTYPES:
            return None
        _, heads, _, width = keys.shape
        if 2 * self._tokens * heads * width * keys.element_size() < _LEAST_NATIVE_BYTES:
            return None
        return native_kernel(torch.get_num_threads())

    def attend_native(
        self,
        native: HostAttention,
        grouped: Tensor,
        keys: Tensor,
        values: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """Do so by the native kernel."""
        pages, room = LayerPages.of([keys], [values]), self._room_for(grouped.shape)
        part = native.attend(grouped.contiguous(), pages, self._entries, scoring, room)
        return normalised(part, grouped.dtype)

    def _room_for(self, shape: Sequence[int]) -> Partial:
        """Return where results go: layers come one after the other, so one serves them all."""
        known = self._room.get(tuple(shape))
        if known is None:
            known = self._room[tuple(shape)] = empty_partial(shape, self._device)
        return known

    @cached_property
    def _entries(self) -> RowEntries:
        """Each row as one page of the buffer."""
        seen = None
        if any(self._hidden):
            seen = np.ones((len(self._ends), self.length), dtype=np.bool_)
            for row, tokens in enumerate(self._hidden):
                seen[row, list(tokens)] = False
        rows = np.arange(len(self._ends))
        return RowEntries.of(len(rows), rows, rows + self.rows.start, self._ends, seen)

    def attend_pieces(
        self, kernels: ModuleType, grouped: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        """Do so by the kernels for pages."""
        _, heads, queries, width = grouped.shape
        pieces = self._pieces(4 * grouped.numel())
        room = self._room_for((pieces.count, heads, queries, width))
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
                tokens < self._places and -(-longest // tokens) * result_bytes > self._results_bytes
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
