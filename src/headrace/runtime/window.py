"""Layers that attend only to a window of newest tokens: their cache is small and stays here.

Shape suffixes: B rows, H key/value heads, C places of the ring, D head width, q new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

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

SPARE_TOKENS = 64
"""Tokens kept beyond the window, so that as many may be taken back (``crop``)."""


class WindowCache:
    """Keys and values of the newest tokens of every windowed layer with the same window.

    Token n of a row lives in place ``n mod C`` of a ring of C places.

    Args:
        backend: whose memory.
        widths: by layer.
        window: tokens a query sees, itself included.
        rows: sequences.
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
        self._token = torch.full((rows, self._places), -1, dtype=torch.int64, device=self._device)
        self._token_before = self._token
        self._writes: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def size_bytes(self) -> int:
        """Device memory of all layers."""
        tensors = [*self._keys.values(), *self._values.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def begin_step(self, token_Bq: Tensor, new: tuple[tuple[int, ...], ...]) -> None:
        """Prepare the places of a step's new tokens.

        Args:
            token_Bq: int64, each input's number in its row, -1 for padding (on the device).
            new: the same as indices of the inputs that are tokens.
        """
        kept = [(row, index) for row, indices in enumerate(new) for index in indices[-self._places :]]
        rows = torch.tensor([row for row, _ in kept], dtype=torch.int64).to(self._device)
        inputs = torch.tensor([index for _, index in kept], dtype=torch.int64).to(self._device)
        token = token_Bq[rows, inputs]
        self._writes = (rows, inputs, token % self._places)
        self._token_before = self._token
        self._token = self._token.clone()
        self._token[rows, self._writes[2]] = token

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        token_Bq: Tensor,
        scoring: Scoring,
        workspace_bytes: int,
    ) -> Partial:
        """Attend new tokens to their window, and keep them.

        Args:
            layer: which layer.
            query: grouped queries ``[B, H, G, D]``.
            key: new keys ``[B, H, q, D]``.
            value: new values ``[B, H, q, D]``.
            token_Bq: number of each input in its row, -1 for padding.
            scoring: scale, soft cap and window.
            workspace_bytes: bound on the scores that exist at once.
        """
        if token_Bq.shape[1] == 1:
            self._write(layer, key, value)
            return self._attend_ring(layer, query, token_Bq, scoring, self._token)
        accumulator = Accumulator(query)
        accumulator.add(
            attend_causal(
                query,
                self._keys[layer],
                self._values[layer],
                scoring,
                token_Bq,
                self._token_before,
                workspace_bytes,
            )
        )
        accumulator.add(
            attend_causal(query, key, value, scoring, token_Bq, token_Bq, workspace_bytes)
        )
        self._write(layer, key, value)
        return accumulator.result()

    def _attend_ring(
        self, layer: int, query: Tensor, token_Bq: Tensor, scoring: Scoring, token_BC: Tensor
    ) -> Partial:
        visible = visibility(token_Bq, token_BC, scoring.window)[:, None]
        return attend(query, self._keys[layer], self._values[layer], scoring, visible)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        assert self._writes is not None
        rows, inputs, places = self._writes
        self._keys[layer][rows, :, places] = key[rows, :, inputs]
        self._values[layer][rows, :, places] = value[rows, :, inputs]

    def hide(self, row: int, tokens: set[int]) -> None:
        """Let the attention mask hide tokens of a row for good."""
        for token in tokens:
            place = token % self._places
            if int(self._token[row, place]) == token:
                self._token[row, place] = -1

    def select(self, sources: Tensor) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for tensors in (self._keys, self._values):
            for layer, tensor in tensors.items():
                tensors[layer] = tensor.index_select(0, sources)
        self._token = self._token.index_select(0, sources)

    def crop(self, lengths: list[int], removed: int) -> None:
        """Forget every token from each row's new length on."""
        if removed > SPARE_TOKENS:
            raise ConfigurationError(
                f"{removed} tokens were to be taken back from a cache with windowed layers; "
                f"at most {SPARE_TOKENS} can be: the older ones are gone"
            )
        limit = torch.tensor(lengths, device=self._device)[:, None]
        self._token = torch.where(self._token < limit, self._token, -1)
