"""Chooses each row's next token.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headrace.engine.request import SamplingParams


class RowSampler:
    """Chooses one row's tokens; what it draws depends on the row's seed alone.

    Args:
        params: how to choose.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._greedy = params.temperature == 0.0
        self._warpers = LogitsProcessorList()
        self._generator: torch.Generator | None = None
        if self._greedy:
            return
        if params.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(float(params.temperature)))
        if params.top_k > 0:
            self._warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(params.top_p))
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._greedy

    def choose(self, logits_V: Tensor) -> int:
        """Return the next token, given float32 logits on the CPU."""
        if self._greedy:
            return int(logits_V.argmax())
        no_ids = torch.empty((1, 0), dtype=torch.int64)
        probabilities = self._warpers(no_ids, logits_V[None]).softmax(dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def choose_tokens(samplers: Sequence[RowSampler], logits_BV: Tensor) -> list[int]:
    """Return the next token of every row."""
    if all(sampler.greedy for sampler in samplers):
        tokens: list[int] = logits_BV.argmax(dim=-1).tolist()
        return tokens
    on_host = logits_BV.cpu()
    return [sampler.choose(row) for sampler, row in zip(samplers, on_host, strict=True)]
