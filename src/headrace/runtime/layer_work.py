"""What a layer does in a step beside the conveyor's granules: its newest tokens, and its stores.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, q inputs of the step, D
head width, M model width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.runtime.attention import (
    Partial,
    Scoring,
    attend_causal,
    group_queries,
)
from headrace.runtime.conveyor import LayerWork
from headrace.runtime.flat import FlatCache
from headrace.runtime.layer_attention import LayerAttention
from headrace.runtime.pages import PageKind
from headrace.runtime.prompt import attend_part, attend_prompt, is_fast, is_prompt
from headrace.runtime.step import Step
from headrace.runtime.tail import Tail
from headrace.runtime.windows import Windows
from headrace.runtime.writer import Writer


class WorkMaker:
    """Makes the work of a layer in a step.

    Args:
        tail: the newest tokens of layers whose cache is paged.
        windows: the caches of layers that attend to a window.
        flat: the cache of all other layers where all is resident, or None.
        writer: brings tokens into pages.
        workspace_bytes: bound on the attention scores that exist at once.
    """

    def __init__(
        self,
        tail: Tail,
        windows: Windows,
        flat: FlatCache | None,
        writer: Writer,
        workspace_bytes: int,
    ) -> None:
        self._tail = tail
        self._windows = windows
        self._flat = flat
        self._writer = writer
        self._workspace_bytes = workspace_bytes

    def work(
        self,
        layer: int,
        activations: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        step: Step,
    ) -> LayerWork:
        """Return a layer's work in a step.

        Args:
            layer: index of the layer.
            activations: X of the step's inputs ``[B, q, M]``; needed where X is stored.
            query: ``[B, heads, q, D]``.
            key: ``[B, H, q, D]``, after position embedding.
            value: ``[B, H, q, D]``.
            scoring: scale, soft cap and window.
            step: what the layers share.
        """
        grouped = group_queries(query, key.shape[1])
        if self._flat is not None or self._windows.of(layer) is not None:
            return self._device_work(layer, query, grouped, key, value, scoring, step)
        return self._paged_work(layer, activations, query, grouped, key, value, scoring, step)

    def _device_work(
        self,
        layer: int,
        query: Tensor,
        grouped: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        step: Step,
    ) -> LayerWork:
        """Return the work of a layer all of whose cache stays on the device."""
        window, flat = self._windows.of(layer), self._flat

        def attend_new(attention: LayerAttention) -> None:
            if window is not None:
                workspace = self._workspace_bytes
                attention.add_new(
                    window.attend(layer, grouped, key, value, step.column_Bq, scoring, workspace)
                )
                return
            assert flat is not None
            spans = step.spans if step.fresh else None
            attention.add_new(flat.attend(layer, query, key, value, scoring, spans))

        return LayerWork(grouped, scoring, attend_new, store=lambda: None)

    def _paged_work(
        self,
        layer: int,
        activations: Tensor | None,
        query: Tensor,
        grouped: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        step: Step,
    ) -> LayerWork:
        def attend_new(attention: LayerAttention) -> None:
            if step.moves.generated:
                place = step.index.written_slots
                assert place is not None
                tail = self._tail.layer(layer, step.rows)
                attention.attend_tail(tail, key, value, place, step.seen_BT)
            elif step.fresh and step.spans is not None and scoring.softcap is None:
                output = attend_prompt(query, key, value, scoring.scale, step.spans)
                attention.add_new(group_queries(output, key.shape[1]))
            else:
                for part in self._tail_and_new(layer, query, grouped, key, value, scoring, step):
                    attention.add_new(part)

        def store() -> None:
            self._store_new(layer, activations, key, value, step)

        many = is_prompt(grouped, query.shape[2])
        return LayerWork(grouped, scoring, attend_new, store, is_prompt=many)

    def _tail_and_new(
        self,
        layer: int,
        query: Tensor,
        grouped: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        step: Step,
    ) -> Iterator[Partial]:
        """Attend several new tokens causally to themselves, and to the tail from before."""
        token_Bq, workspace = step.index.token_Bq, self._workspace_bytes
        many = is_prompt(grouped, query.shape[2])
        if step.spans is not None and many and is_fast(query, scoring):
            yield attend_part(query, key, value, scoring.scale, step.spans)
        else:
            yield attend_causal(grouped, key, value, scoring, token_Bq, token_Bq, workspace)
        if not step.index.tail_empty:
            tail, token = self._tail.layer(layer, step.rows), step.tail_token
            yield attend_causal(grouped, *tail, scoring, token_Bq, token, workspace)

    def _store_new(
        self, layer: int, activations: Tensor | None, key: Tensor, value: Tensor, step: Step
    ) -> None:
        """Bring full pages to their place, and what is left to the tail."""
        index = step.index
        if not index.fills and index.tails is None:
            return
        sources = self._tail.layer(layer, step.rows)
        if not index.generated:
            if index.tail_empty:
                sources = (key, value)
            else:
                keys, values = sources
                sources = (torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2))
        for batch in index.fills:
            if batch.kind is PageKind.ACTIVATIONS:
                assert activations is not None
                self._writer.write(layer, batch, (activations,))
            else:
                self._writer.write(layer, batch, sources)
        if index.tails is not None:
            self._tail.update(layer, *sources, index.tails, step.rows)
