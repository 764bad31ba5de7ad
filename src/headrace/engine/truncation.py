"""What a row's token is drawn from: temperature, then top-k, top-p and min-p.

Shape suffixes: 1 one row, V vocabulary, L tokens that are left, N bins, K tokens of one bin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from headrace.engine.request import SamplingParams

_BINS = 2048
_BINS_PER_NAT = 64
"""So bins reach 32 nats below the likeliest token; what is less likely shares the last one."""


class Truncation:
    """Narrows a row's logits down to the tokens that it is drawn from.

    Args:
        params: how far.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._temperature: LogitsProcessor | None = None
        if params.temperature != 1.0:
            self._temperature = TemperatureLogitsWarper(float(params.temperature))
        self._cuts: list[LogitsProcessor] = []
        if params.top_k > 0:
            self._cuts.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1.0:
            self._cuts.append(TopPByBins(float(params.top_p)))
        if params.min_p > 0.0:
            self._cuts.append(MinPLogitsWarper(float(params.min_p)))

    def __call__(self, logits_1V: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits ``[L]`` of what is left, and the tokens they are of (None: of all).

        Args:
            logits_1V: float32 on the CPU.
        """
        no_ids = torch.empty((1, 0), dtype=torch.int64)
        scores_1L, tokens_L = logits_1V, None
        if self._temperature is not None:
            scores_1L = self._temperature(no_ids, scores_1L)
        for cut in self._cuts:
            scores_1L = cut(no_ids, scores_1L)
            # The next cut is far quicker without what is gone already.
            left_L = (scores_1L[0] > -torch.inf).nonzero().squeeze(-1)
            scores_1L = scores_1L[:, left_L]
            tokens_L = left_L if tokens_L is None else tokens_L[left_L]
        return scores_1L[0], tokens_L


class TopPByBins(LogitsProcessor):
    """Keeps the fewest likeliest tokens that hold a share of the probability.

    They are those that ``TopPLogitsWarper`` of `transformers` keeps, up to rounding. It sorts the
    whole vocabulary, which takes 4 ms at 50,000 tokens; here tokens fall into bins by their logit,
    and only the one bin is sorted in which the share is reached. Of equal tokens lower ids come
    first.

    Args:
        top_p: the share, above 0 and below 1.
    """

    def __init__(self, top_p: float) -> None:
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits ``[1, V]`` with those of other tokens at minus infinity."""
        scores_V = scores[0]
        probabilities_V = scores_V.softmax(dim=-1)
        depths_V = (scores_V.max() - scores_V).mul_(_BINS_PER_NAT).clamp_(max=_BINS - 1)
        bins_V = depths_V.to(torch.int64)
        held_N = torch.bincount(bins_V, probabilities_V.double(), _BINS).cumsum(dim=-1)
        # The sum of all may be rounded to just below a share that is nearly 1.
        edge = min(int(torch.searchsorted(held_N, self._top_p)), _BINS - 1)
        before = float(held_N[edge - 1]) if edge else 0.0
        tokens_K = (bins_V == edge).nonzero().squeeze(-1)
        order_K = scores_V[tokens_K].argsort(descending=True, stable=True)
        tokens_K = tokens_K[order_K]
        each_K = probabilities_V[tokens_K].double()
        removed_V = bins_V >= edge
        removed_V[tokens_K[before + each_K.cumsum(dim=-1) - each_K < self._top_p]] = False
        return scores.masked_fill(removed_V, -torch.inf)
