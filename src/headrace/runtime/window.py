"""Layers that attend only to a window of newest tokens: their cache is small and stays here.

Shape suffixes: B rows, H key/value heads, C places of the ring, D head width, q new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headrace.errors import ConfigurationError
from headrace.runtime.attention import (
    Accumulator,
    Partial,
    Scoring,
    attend,
    attend_causal,
    visibility,
)
from headrace.runtime.lanes import Backend
from headrace.runtime.store import LayerWidths
from headrace.runtime.tail import select_rows

SPARE_TOKENS = 64
"""Tokens kept beyond the window, so that as many may be taken back (``crop``)."""


class WindowCache:
    """Keys and values of the newest tokens of every windowed layer with the same window.

    The token of column n of the padded batch lives in place ``n mod C`` of a ring of C places. A
    window is counted in columns, as the plain model counts it: padding between turns is part of it.

    Args:
        backend: whose memory.
        widths: by layer.
        window: tokens a query sees, itself included.
        rows: sequences that there is room for; more are possible (``select``).
        dtype: the cache's dtype.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, LayerWidths],
        window: int,
        rows: int,
        dtype: torch.dtype,
    ) -> None:
        self._places = window + SPARE_TOKENS

        def buffer(width: LayerWidths) -> Tensor:
            shape = (rows, width.num_kv_heads, self._places, width.head_dim)
            return backend.device_buffer(shape, dtype)

        self._keys = {layer: buffer(width) for layer, width in widths.items()}
        self._values = {layer: buffer(width) for layer, width in widths.items()}
        self._device = backend.device
        self._column = torch.full((rows, self._places), -1, dtype=torch.int64, device=self._device)
        self._column_before = self._column
        self._reached = 0
        self._rows = slice(0, rows)
        self._writes: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def size_bytes(self) -> int:
        """Device memory of all layers, and of the columns that are in them."""
        tensors = [*self._keys.values(), *self._values.values(), self._column, self._column_before]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def begin_step(
        self,
        column_Bq: Tensor,
        new: tuple[tuple[int, ...], ...],
        first_column: int | Sequence[int],
        rows_taking_part: range,
    ) -> None:
        """Prepare the places of a step's new tokens.

        Args:
            column_Bq: int64, each input's column, -1 for padding (on the device).
            new: the same as indices of the inputs that are tokens.
            first_column: column of the step's first input, for all rows or for each.
            rows_taking_part: rows that follow each other, and from whose first they are counted.
        """
        self._rows = slice(rows_taking_part.start, rows_taking_part.stop)
        kept = [
            (row, index) for row, indices in enumerate(new) for index in indices[-self._places :]
        ]
        rows = torch.tensor([row for row, _ in kept], dtype=torch.int64).to(self._device)
        inputs = torch.tensor([index for _, index in kept], dtype=torch.int64).to(self._device)
        column = column_Bq[rows, inputs]
        self._writes = (rows, inputs, column % self._places)
        self._column_before = self._column
        self._column = self._column.clone()
        self._column[self._rows][rows, self._writes[2]] = column
        first = first_column if isinstance(first_column, int) else max(first_column)
        self._reached = max(self._reached, first + column_Bq.shape[1])

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        column_Bq: Tensor,
        scoring: Scoring,
        workspace_bytes: int,
    ) -> Partial:
        """Attend new tokens to their window, and keep them.

        Args:
            layer: which layer.
            query: grouped queries ``[B, H, G, D]``.
            key: new keys ``[B, H, q, D]``.
            value: new values ``[B, H, q, D]``.
            column_Bq: column of each input, -1 for padding.
            scoring: scale, soft cap and window.
            workspace_bytes: bound on the scores that exist at once.
        """
        if column_Bq.shape[1] == 1:
            self._write(layer, key, value)
            return self._attend_ring(layer, query, column_Bq, scoring)
        accumulator = Accumulator(query)
        accumulator.add(
            attend_causal(
                query,
                self._keys[layer][self._rows],
                self._values[layer][self._rows],
                scoring,
                column_Bq,
                self._column_before[self._rows],
                workspace_bytes,
            )
        )
        accumulator.add(
            attend_causal(query, key, value, scoring, column_Bq, column_Bq, workspace_bytes)
        )
        self._write(layer, key, value)
        return accumulator.result()

    def _attend_ring(
        self, layer: int, query: Tensor, column_Bq: Tensor, scoring: Scoring
    ) -> Partial:
        visible = visibility(column_Bq, self._column[self._rows], scoring.window)[:, None]
        keys, values = self._keys[layer][self._rows], self._values[layer][self._rows]
        return attend(query, keys, values, scoring, visible)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        assert self._writes is not None
        rows, inputs, places = self._writes
        self._keys[layer][self._rows][rows, :, places] = key[rows, :, inputs]
        self._values[layer][self._rows][rows, :, places] = value[rows, :, inputs]

    def hide(self, row: int, columns: set[int]) -> None:
        """Let the attention mask hide a row's tokens of these columns for good."""
        for column in columns:
            place = column % self._places
            if int(self._column[row, place]) == column:
                self._column[row, place] = -1

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for tensors in (self._keys, self._values):
            select_rows(tensors, sources)
        columns = {0: self._column.clone()}
        select_rows(columns, sources)
        self._column = columns[0]

    def clear(self, rows: range) -> None:
        """Let rows begin anew."""
        self._column[rows.start : rows.stop] = -1

    def check_crop(self, columns: int) -> None:
        """Raise if what is left after a crop would lack tokens of its window."""
        removed = self._reached - columns
        if self._reached > self._places and removed > SPARE_TOKENS:
            raise ConfigurationError(
                f"{removed} columns were to be taken back from a cache with windowed layers; at "
                f"most {SPARE_TOKENS} can be: the tokens before them are gone"
            )

    def crop(self, columns: int) -> None:
        """Forget every token from this column of the padded batch on."""
        self._column = torch.where(self._column < columns, self._column, -1)
