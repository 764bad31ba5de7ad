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
    attend_causal,
    group_queries,
    visibility,
)
from headrace.runtime.flat_decode import DecodeStep
from headrace.runtime.lanes import Backend
from headrace.runtime.prompt import attend_prompt, fast_kernels
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
        results_bytes: bound on the partial results of a decode step, as far as it can be kept.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, LayerWidths],
        rows: int,
        places: int,
        dtype: torch.dtype,
        workspace_bytes: int,
        results_bytes: int,
    ) -> None:
        self._backend = backend
        self._workspace_bytes = workspace_bytes
        self._results_bytes = results_bytes
        self._places = places

        def buffer(width: LayerWidths) -> Tensor:
            shape = (rows, width.num_kv_heads, places, width.head_dim)
            return backend.device_buffer(shape, dtype)

        self._keys = {layer: buffer(width) for layer, width in widths.items()}
        self._values = {layer: buffer(width) for layer, width in widths.items()}
        self._rows = slice(0, rows)
        self._length = 0
        self._query_index = self._key_index = torch.empty(0, dtype=torch.int64)
        self._step: DecodeStep | None = None
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

        ``begin_decode`` does so for a step of one input a row.

        Args:
            token_Bq: int64, on the device; the number of each input in its row, -1 for padding.
            new: the indices of each row's inputs that are tokens.
            first_tokens: the number of each row's first new token.
            hidden: tokens of each row that nobody sees.
            rows: the rows that take part.
        """
        if token_Bq.shape[1] == 1:
            self.begin_decode(new, first_tokens, hidden, rows)
            return
        self._rows = slice(rows.start, rows.stop)
        ends = [first + len(some) for first, some in zip(first_tokens, new, strict=True)]
        self._length = max(ends)
        self.reserve(max(first_tokens) + token_Bq.shape[1])
        place = [(row, index) for row, indices in enumerate(new) for index in indices]
        of_row, of_input = torch.tensor(place, dtype=torch.int64).to(token_Bq.device).unbind(1)
        self._written = of_row, of_input, token_Bq[of_row, of_input]
        self._query_index = token_Bq
        self._key_index = torch.arange(self._length).repeat(len(new), 1)
        for row, tokens in enumerate(hidden):
            if tokens:
                self._key_index[row, list(tokens)] = -1
        self._key_index = self._key_index.to(token_Bq.device, non_blocking=True)

    def begin_decode(
        self,
        new: Sequence[Sequence[int]],
        first_tokens: Sequence[int],
        hidden: Sequence[set[int]],
        rows: range,
    ) -> None:
        """Prepare a step of one input a row, as ``begin_step`` does."""
        ends = [first + len(some) for first, some in zip(first_tokens, new, strict=True)]
        # A row without a new token writes to the place after its last one, which nobody sees.
        self.reserve(max(first_tokens) + 1)
        self._step = DecodeStep(
            rows,
            first_tokens,
            ends,
            hidden,
            self._places,
            self._backend.device,
            self._results_bytes,
        )

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
        if query.shape[2] == 1:
            return group_queries(
                self.decode(layer, query, key, value, scoring).transpose(1, 2), key.shape[1]
            )
        keys, values = self._keys[layer][self._rows], self._values[layer][self._rows]
        assert self._written is not None
        rows, inputs, places = self._written
        for kept, new in ((keys, key), (values, value)):
            kept[rows, :, places] = new[rows, :, inputs]
        if spans is not None and scoring.softcap is None:
            output = attend_prompt(query, key, value, scoring.scale, spans)
            return group_queries(output, key.shape[1])
        keys, values = keys[:, :, : self._length], values[:, :, : self._length]
        if scoring.softcap is None:
            return self._attend_pieces(query, keys, values, scoring)
        index = self._query_index, self._key_index
        grouped = group_queries(query, key.shape[1])
        return attend_causal(grouped, keys, values, scoring, *index, self._workspace_bytes)

    def decode(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Keep one new token a row, and attend to its row.

        Args:
            layer: which layer.
            query: ``[B, heads, 1, D]``.
            key: new keys ``[B, H, 1, D]``.
            value: new values ``[B, H, 1, D]``.
            scoring: scale and soft cap.

        Returns:
            The output ``[B, 1, heads, D]``.
        """
        assert self._step is not None
        keys, values, place = self._keys[layer], self._values[layer], self._step.place
        rows, heads, _, width = query.shape
        for buffer, new in ((keys, key), (values, value)):
            if place is None:
                targets = self._step.targets(key.shape[1])
                buffer.view(-1, width).index_copy_(0, targets, new.reshape(-1, width))
            else:
                taking = buffer if rows == len(buffer) else buffer[self._step.rows]
                taking.narrow(2, place, 1).copy_(new)
        grouped = query.reshape(rows, key.shape[1], -1, width)
        output = self._step.attend(grouped, keys, values, scoring)
        return output.reshape(rows, 1, heads, width)

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
            with fast_kernels(query):
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

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for tensors in (self._keys, self._values):
            select_rows(tensors, sources)
