"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from headrace.engine.frozen_mapping import FrozenMapping
from headrace.engine.param_checks import is_integer, refusal
from headrace.errors import ConfigurationError

FinishReason = Literal["stop", "length", "cancelled"]

MAX_ROWS = 64
"""Most rows at once, unless said otherwise."""


@dataclass(frozen=True)
class SamplingParams:
    """How a row's tokens are chosen, and where it ends.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 takes the likeliest token (as does anything below 1e-5); higher is more
            varied.
        top_p: sample from the likeliest tokens that hold this share of the probability.
        top_k: sample from this many likeliest tokens; 0 for all.
        seed: of the row's own random numbers; None for any.
        stop: the row ends before the first of these strings.
        ignore_eos: go on after an end-of-text token.
        min_p: sample from tokens at least this share as likely as the likeliest; 0 for all.
        repetition_penalty: divides positive logits of tokens in the prompt or generated before, and
            multiplies negative ones; 1 for none.
        presence_penalty: taken off the logits of tokens that were generated before.
        frequency_penalty: the same, for each time that they were.
        stop_token_ids: the row ends at the first of these tokens, which its text leaves out.
        n: samples of one prompt.
        logprobs: None, or how many of the likeliest tokens to report, with their log-probabilities,
            beside the chosen one.
        min_tokens: so many tokens neither end the row nor complete a stop string.
        logit_bias: added to the logits of tokens, by token id.

    Lists become tuples, and a single stop string a tuple of one.

    Raises:
        ConfigurationError: a value is not allowed.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    min_tokens: int = 0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if problem := refusal(self):
            raise ConfigurationError(problem)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", FrozenMapping(self.logit_bias))

    def of_sample(self, index: int) -> SamplingParams:
        """Return the params of one of the ``n`` samples: with ``n`` 1 and a seed of its own.

        Sample 0 keeps ``seed``; the seeds of others are derived from it and from ``index``. Without
        a seed none gets one.
        """
        if not is_integer(index, 0, self.n - 1):
            raise ConfigurationError(f"sample is {index!r}; allowed is 0 to {self.n - 1} (n - 1)")
        if self.seed is None or index == 0:
            return self if self.n == 1 else replace(self, n=1)
        digest = hashlib.blake2b(f"{self.seed}/{index}".encode(), digest_size=8).digest()
        return replace(self, n=1, seed=int.from_bytes(digest, "big"))

    def within(self, room: int) -> SamplingParams:
        """Return these params with at most ``room`` tokens to generate, 1 or more."""
        if self.max_tokens <= room:
            return self
        return replace(self, max_tokens=room, min_tokens=min(self.min_tokens, room))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that a model does not have.

        Raises:
            ConfigurationError: one of ``stop_token_ids`` or ``logit_bias`` is beyond the model's.
        """
        for name in ("stop_token_ids", "logit_bias"):
            for token in getattr(self, name) or ():
                if token >= vocab_size:
                    raise ConfigurationError(
                        f"{name} has token {token}; the model's vocabulary allows 0 to "
                        f"{vocab_size - 1}"
                    )


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a generated token was.

    The log-probabilities are the model's own, as OpenAI's and vLLM's are: the logarithm of the
    softmax of its logits before bias, penalties, temperature and truncation. So a token may be
    chosen that is not among the likeliest ones.

    Attributes:
        token_id: the generated token.
        logprob: its natural log-probability.
        top: the likeliest tokens with theirs, likeliest first; of equal ones the lower id first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class CompletionOutput:
    """One sample of a prompt's completion.

    Attributes:
        index: which of the ``n`` samples.
        text: what was generated, without the prompt.
        token_ids: the generated tokens, with the one that ended the row.
        finish_reason: ``stop`` (end of text, a stop token or a stop string), ``length`` or
            ``cancelled``.
        logprobs: one entry a token, or None if they were not asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A completed prompt.

    Attributes:
        prompt: the prompt's text.
        prompt_token_ids: its tokens.
        outputs: its ``n`` samples, one or more.
    """

    prompt: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]

    @property
    def text(self) -> str:
        """The first sample's text."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first sample's tokens."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """The first sample's reason to end."""
        return self.outputs[0].finish_reason
