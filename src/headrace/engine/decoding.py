"""A static batch going through a model: the prompt, then one token a row and step.

Shape suffixes: B rows, S columns of the padded prompts, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headrace.hf.observe import text_config


def pad_left(prompts: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Return token ids ``[B, S]`` padded on the left, and their attention mask (int64)."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_token, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.int64)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def plain_cache(model: nn.Module) -> DynamicCache:
    """Return the cache that `transformers` itself would take."""
    return DynamicCache(config=text_config(model))


class StaticBatch:
    """Runs a batch forward by forward, with any cache that `transformers` takes.

    Args:
        model: the model.
        ids: token ids of the prompts ``[B, S]``, padded on the left.
        mask: their attention mask; where it hides nothing the model is not given any, so that
            `transformers` need not look at it in every step.
        cache: a ``HostCache``, or one of `transformers`' own.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> None:
        device = next(model.parameters()).device
        self._model = model
        self._cache = cache
        self._ids = ids.to(device)
        self._mask = mask.to(device)
        self._all_seen = bool(mask.all())
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)
        accepted = inspect.signature(model.forward).parameters
        self._gives_positions = "position_ids" in accepted
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.forward_s: list[float] = []
        """Seconds of each forward, up to when its logits were there: the prompt first."""

    def prefill(self, chunk: int | None = None) -> Tensor:
        """Run the prompts; return the logits of the next token, float32 ``[B, V]``.

        Args:
            chunk: columns that go through the model at once; None: all of them.
        """
        columns, start_s = self._ids.shape[1], time.perf_counter()
        width = chunk or columns
        parts = [slice(at, at + width) for at in range(0, columns, width)]
        logits = [
            self._forward(self._ids[:, part], self._positions[:, part], self._mask[:, : part.stop])
            for part in parts
        ]
        self.forward_s = [time.perf_counter() - start_s]
        return logits[-1]

    def step(self, tokens: Tensor, running: Tensor | None = None) -> Tensor:
        """Run one token a row; return the logits of the next.

        Args:
            tokens: int64 ``[B]``.
            running: bool ``[B]``; rows that go on (others take part as padding); None for all.
        """
        device = self._ids.device
        column = torch.ones(len(tokens), 1, dtype=self._mask.dtype, device=device)
        if running is not None:
            self._all_seen = False
            column = running.to(device)[:, None].to(self._mask.dtype)
        self._mask = torch.cat([self._mask, column], dim=1)
        self._positions = self._positions[:, -1:] + column
        return self._forward(tokens.to(device)[:, None], self._positions, self._mask)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        given = {"position_ids": positions} if self._gives_positions else {}
        start_s = time.perf_counter()
        with torch.no_grad():
            output = self._model(
                input_ids=ids,
                attention_mask=None if self._all_seen else mask,
                past_key_values=self._cache,
                use_cache=True,
                **given,
                **self._extra,
            )
            logits: Tensor = output.logits[:, -1].float()
            if logits.is_cuda:
                torch.cuda.current_stream(logits.device).synchronize()
        self.forward_s.append(time.perf_counter() - start_s)
        return logits
