"""Layers whose whole cache stays on the device: contiguous for each row, attended to in one call.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, C places, L tokens of the
longest row, D head width, q new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.attention import (
    Partial,
    Scoring,
    attend,
    attend_causal,
    group_queries,
    visibility,
)
from headrace.runtime.lanes import Backend
from headrace.runtime.prompt import attend_prompt
from headrace.runtime.store import LayerWidths
from headrace.runtime.tail import select_rows

_GROWTH_TOKENS = 256


class FlatCache:
    """Keys and values of layers that are all on the device.

    A row's token n lives in its place n, so there is room for the longest row in each.

    Args:
        backend: whose memory.
        widths: by layer.
        rows: sequences that there is room for; more are possible (``select``).
        places: tokens of a row that there is room for; more are possible.
        dtype: the cache's dtype.
        workspace_bytes: bound on the masks, or scores, of a layer that exist at once.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, LayerWidths],
        rows: int,
        places: int,
        dtype: torch.dtype,
        workspace_bytes: int,
    ) -> None:
        self._backend = backend
        self._workspace_bytes = workspace_bytes
        self._places = places

        def buffer(width: LayerWidths) -> Tensor:
            shape = (rows, width.num_kv_heads, places, width.head_dim)
            return backend.device_buffer(shape, dtype)

        self._keys = {layer: buffer(width) for layer, width in widths.items()}
        self._values = {layer: buffer(width) for layer, width in widths.items()}
        self._rows = slice(0, rows)
        self._length = 0
        self._visible: Tensor | None = None
        self._query_index = self._key_index = torch.empty(0, dtype=torch.int64)
        self._place: Tensor | int = 0
        self._written: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def size_bytes(self) -> int:
        """Device memory of all layers."""
        tensors = [*self._keys.values(), *self._values.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in each row."""
        if tokens <= self._places:
            return
        self._places = -(-tokens // _GROWTH_TOKENS) * _GROWTH_TOKENS
        for tensors in (self._keys, self._values):
            for layer, old in tensors.items():
                shape = (*old.shape[:2], self._places, old.shape[3])
                tensors[layer] = self._backend.device_buffer(shape, old.dtype)
                tensors[layer][:, :, : old.shape[2]] = old

    def begin_step(
        self,
        token_Bq: Tensor,
        new: Sequence[Sequence[int]],
        first_tokens: Sequence[int],
        hidden: Sequence[set[int]],
        rows: range,
    ) -> None:
        """Prepare the places of a step's new tokens, and who sees what.

        Args:
            token_Bq: int64, on the device; the number of each input in its row, -1 for padding.
            new: the indices of each row's inputs that are tokens.
            first_tokens: the number of each row's first new token.
            hidden: tokens of each row that nobody sees.
            rows: the rows that take part.
        """
        self._rows = slice(rows.start, rows.stop)
        ends = [first + len(some) for first, some in zip(first_tokens, new, strict=True)]
        self._length = max(ends)
        q_len = token_Bq.shape[1]
        # A row without a new token writes to the place after its last one, which nobody sees.
        self.reserve(max(first_tokens) + q_len)
        if q_len == 1:
            self._begin_single(first_tokens, ends, hidden)
            return
        place = [(row, index) for row, indices in enumerate(new) for index in indices]
        of_row, of_input = torch.tensor(place, dtype=torch.int64).to(token_Bq.device).unbind(1)
        self._written = of_row, of_input, token_Bq[of_row, of_input]
        self._query_index = token_Bq
        self._key_index = torch.arange(self._length).repeat(len(new), 1)
        for row, tokens in enumerate(hidden):
            if tokens:
                self._key_index[row, list(tokens)] = -1
        self._key_index = self._key_index.to(token_Bq.device, non_blocking=True)

    def _begin_single(
        self, first_tokens: Sequence[int], ends: Sequence[int], hidden: Sequence[set[int]]
    ) -> None:
        alike = len(set(first_tokens)) == 1
        self._place = first_tokens[0] if alike else self._on_device(first_tokens).view(-1, 1, 1, 1)
        self._visible = None
        if len(set(ends)) > 1 or any(hidden):
            seen = torch.arange(self._length) < torch.tensor(ends)[:, None]
            for row, tokens in enumerate(hidden):
                if tokens:
                    seen[row, list(tokens)] = False
            # A row without any token sees the first place, for the same reason.
            seen[:, 0] |= ~seen.any(dim=1)
            self._visible = seen.to(self._backend.device, non_blocking=True)[:, None, None]

    def _on_device(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._backend.device, non_blocking=True)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        spans: dict[tuple[int, int], list[int]] | None,
    ) -> Tensor | Partial:
        """Keep new tokens, and attend to all of their rows.

        Args:
            layer: which layer.
            query: ``[B, heads, q, D]``.
            key: new keys ``[B, H, q, D]``.
            value: new values ``[B, H, q, D]``.
            scoring: scale and soft cap.
            spans: rows by the span of their inputs, where nothing is cached before them.

        Returns:
            The output ``[B, H, G, D]``, or what becomes it when it is normalised.
        """
        keys, values = self._keys[layer][self._rows], self._values[layer][self._rows]
        self._write(keys, values, key, value)
        grouped = group_queries(query, key.shape[1])
        if spans is not None and scoring.softcap is None:
            output = attend_prompt(query, key, value, scoring.scale, spans)
            return group_queries(output, key.shape[1])
        keys, values = keys[:, :, : self._length], values[:, :, : self._length]
        if scoring.softcap is not None:
            return self._attend_capped(grouped, keys, values, scoring, query.shape[2])
        if query.shape[2] > 1:
            return self._attend_pieces(query, keys, values, scoring)
        return F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self._visible, scale=scoring.scale
        )

    def _attend_capped(
        self, grouped: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, q_len: int
    ) -> Partial:
        if q_len == 1:
            return attend(grouped, keys, values, scoring, self._visible)
        index = self._query_index, self._key_index
        return attend_causal(grouped, keys, values, scoring, *index, self._workspace_bytes)

    def _attend_pieces(
        self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        """Attend several new tokens a row, so many at once that the masks fit the workspace."""
        rows, heads, q_len, _ = query.shape
        kv_heads, group = keys.shape[1], heads // keys.shape[1]
        mask_bytes = rows * group * keys.shape[2] * (1 + query.element_size())
        at_once = max(1, self._workspace_bytes // mask_bytes)
        pieces = []
        for start in range(0, q_len, at_once):
            some = slice(start, start + at_once)
            # Padding sees the first token, for who sees nothing has no output.
            seen = visibility(self._query_index[:, some].clamp_min(0), self._key_index, None)
            output = F.scaled_dot_product_attention(
                group_queries(query[:, :, some], kv_heads),
                keys,
                values,
                attn_mask=seen[:, None].repeat(1, 1, group, 1),
                scale=scoring.scale,
            )
            pieces.append(output.unflatten(2, (group, -1)))
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=3)
        return whole.flatten(2, 3)

    def _write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        for kept, new in ((keys, key), (values, value)):
            if new.shape[2] > 1:
                assert self._written is not None
                rows, inputs, places = self._written
                kept[rows, :, places] = new[rows, :, inputs]
            elif isinstance(self._place, int):
                kept[:, :, self._place : self._place + 1] = new
            else:
                kept.scatter_(2, self._place.expand(-1, new.shape[1], -1, new.shape[3]), new)

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for tensors in (self._keys, self._values):
            select_rows(tensors, sources)
