"""Changes to a row's logits before a token is chosen: bias, penalties, tokens that may not come.

Shape suffixes: 1 one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from headrace.engine.request import SamplingParams


class LogitChanges:
    """Changes one row's logits, by its prompt and by the tokens that it was told of.

    Args:
        params: what to change.
        prompt_token_ids: the row's prompt.
        end_tokens: the model's; they may come where ``params`` ignores them.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] = (),
        end_tokens: Iterable[int] = (),
    ) -> None:
        self._params = params
        self._prompt = prompt_token_ids
        self._generated = 0
        self._seen_V: Tensor | None = None
        self._counts_V: Tensor | None = None
        self._repetition = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else end_tokens)}
        self._vocab_size: int | None = None
        biases = params.logit_bias or {}
        self._biased = torch.tensor(list(biases), dtype=torch.int64)
        self._biases = torch.tensor([float(bias) for bias in biases.values()], dtype=torch.float32)

    @property
    def pending(self) -> bool:
        """Whether the next token's logits are changed at all."""
        return bool(self._params.logit_bias) or self._repeats or self._counts or self._bans

    @property
    def _repeats(self) -> bool:
        return self._params.repetition_penalty != 1.0

    @property
    def _counts(self) -> bool:
        return self._params.presence_penalty != 0.0 or self._params.frequency_penalty != 0.0

    @property
    def _bans(self) -> bool:
        return self._generated < self._params.min_tokens and bool(self._ends)

    def apply(self, logits_1V: Tensor) -> Tensor:
        """Return the changed logits; those given stay as they are.

        Args:
            logits_1V: float32 on the CPU.

        Raises:
            ConfigurationError: a bias or a stop token is of an id beyond the vocabulary.
        """
        if self._vocab_size is None:
            self._prepare(logits_1V.shape[-1])
        if self._params.logit_bias:
            logits_1V = logits_1V.index_add(1, self._biased, self._biases[None])
        if self._seen_V is not None:
            logits_1V = self._repetition(self._seen_V.nonzero().T, logits_1V)
        if self._counts_V is not None:
            logits_1V = logits_1V - self._params.frequency_penalty * self._counts_V
            logits_1V = logits_1V - self._params.presence_penalty * self._counts_V.clamp(max=1)
        if self._bans:
            logits_1V = logits_1V.index_fill(1, self._known(self._ends), -torch.inf)
        return logits_1V

    def record(self, token_id: int) -> None:
        """Count a generated token."""
        self._generated += 1
        if self._seen_V is not None:
            self._seen_V[token_id] = True
        if self._counts_V is not None:
            self._counts_V[token_id] += 1

    def _prepare(self, vocab_size: int) -> None:
        """Make room for counts, now that the vocabulary's size is known."""
        self._params.check_vocabulary(vocab_size)
        self._vocab_size = vocab_size
        if self._repeats:
            self._seen_V = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen_V[self._known(self._prompt)] = True
        if self._counts:
            self._counts_V = torch.zeros(vocab_size, dtype=torch.float32)

    def _known(self, tokens: Iterable[int]) -> Tensor:
        """Return the tokens that the model can generate; a tokenizer may have more."""
        assert self._vocab_size is not None
        known = [token for token in tokens if 0 <= token < self._vocab_size]
        return torch.tensor(known, dtype=torch.int64)
