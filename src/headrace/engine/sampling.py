"""Chooses each row's next token.

Shape suffixes: B rows, 1 one row, V vocabulary, L tokens that are left to draw from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.engine.logit_changes import LogitChanges
from headrace.engine.logprobs import token_logprobs
from headrace.engine.request import SamplingParams
from headrace.engine.truncation import Truncation
from headrace.errors import ModelError

GREEDY_BELOW = 1e-5
"""Logits divided by less than this leave the likeliest token alone, or float32 altogether."""


@dataclass(frozen=True)
class Choice:
    """A token that was chosen.

    Attributes:
        token_id: the token.
        logprob: its log-probability, as ``TokenLogprob`` has it; None if it was not asked for.
        top: the likeliest tokens with theirs.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class RowSampler:
    """Chooses one row's tokens, by its seed, prompt and logits alone.

    What a row gets is the same to the last bit whatever rows are chosen for beside it. Logits are
    changed in this order: bias; repetition penalty, then frequency and presence penalty; tokens
    that may not come yet; temperature; top-k, top-p, min-p.

    Args:
        params: how to choose; ``n`` is for the caller to expand.
        prompt_token_ids: the row's prompt, whose tokens count as repeated.
        end_tokens: the model's, which may not come before ``min_tokens``.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] = (),
        end_tokens: Iterable[int] = (),
    ) -> None:
        self._greedy = params.temperature < GREEDY_BELOW
        self._logprobs = params.logprobs
        self._changes = LogitChanges(params, prompt_token_ids, end_tokens)
        if self._greedy:
            return
        self._truncation = Truncation(params)
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._greedy

    @property
    def plain(self) -> bool:
        """Whether the next token is that of the largest logit, and nothing else is asked for."""
        return self._greedy and self._logprobs is None and not self._changes.pending

    def choose(self, logits_V: Tensor) -> Choice:
        """Return the next token.

        Args:
            logits_V: the model's, of any float type, on any device; they stay as they are.

        Raises:
            ConfigurationError: the params name a token beyond the vocabulary.
            ModelError: the logits give no probabilities.
        """
        # A buffer of its own is aligned alike wherever the row was, so that bits are alike, too.
        logits_1V = logits_V.to("cpu", torch.float32, copy=True)[None]
        changed_1V = self._changes.apply(logits_1V) if self._changes.pending else logits_1V
        if not changed_1V.max().isfinite():
            raise ModelError("a row's logits give no probabilities: they are not all numbers")
        token_id = int(changed_1V.argmax()) if self._greedy else self._draw(changed_1V)
        self._changes.record(token_id)
        if self._logprobs is None:
            return Choice(token_id)
        return Choice(token_id, *token_logprobs(logits_1V[0], token_id, self._logprobs))

    def take_likeliest(self, token_id: int) -> Choice:
        """Return the token of the largest logit as the next, for a caller that found it already."""
        assert self.plain
        self._changes.record(token_id)
        return Choice(token_id)

    def _draw(self, logits_1V: Tensor) -> int:
        """Return a token drawn by the probabilities that truncation leaves.

        One uniform number is looked up among the summed probabilities: at 50,000 tokens a tenth of
        the time of ``torch.multinomial``, which draws a number for each.
        """
        scores_L, tokens_L = self._truncation(logits_1V)
        sums_L = scores_L.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        # Below the sum of all even when rounded, as the largest number that is drawn is 1 - 2^-53.
        place = torch.rand((), generator=self._generator, dtype=torch.float64) * sums_L[-1]
        # To the right of equal sums, so that a token without probability is never drawn.
        drawn = int(torch.searchsorted(sums_L, place, right=True))
        return drawn if tokens_L is None else int(tokens_L[drawn])


def choose_tokens(samplers: Sequence[RowSampler], logits_BV: Tensor) -> list[Choice]:
    """Return the next token of every row.

    Tokens of plain greedy rows are found where the logits are; only the logits of others are
    copied to the host, in one copy.

    Args:
        samplers: one a row.
        logits_BV: the model's, of any float type.
    """
    others = [row for row, sampler in enumerate(samplers) if not sampler.plain]
    if len(others) == len(samplers):
        on_host = logits_BV.cpu()
        return [sampler.choose(row) for sampler, row in zip(samplers, on_host, strict=True)]
    copied = iter(logits_BV[others].cpu() if others else ())
    likeliest: list[int] = logits_BV.argmax(dim=-1).tolist()
    return [
        sampler.take_likeliest(token) if sampler.plain else sampler.choose(next(copied))
        for sampler, token in zip(samplers, likeliest, strict=True)
    ]
