"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigurationError


@dataclass(frozen=True)
class SamplingParams:
    """How a row's tokens are chosen.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 takes the likeliest token; higher is more varied.
        top_p: sample from the likeliest tokens that hold this share of the probability.
        top_k: sample from this many likeliest tokens; 0 for all.
        seed: of the row's own random numbers; None for any.
        stop: the row ends before the first of these strings.
        ignore_eos: go on after an end-of-text token.

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

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        checks = (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0.0, "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0, up to 1"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("seed", self.seed is None or 0 <= self.seed < 1 << 64, "0 to 2^64 - 1, or None"),
            ("stop", all(self.stop), "strings that are not empty"),
        )
        for name, allowed, what in checks:
            if not allowed:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; allowed is {what}")


@dataclass(frozen=True)
class RequestOutput:
    """A completed prompt.

    Attributes:
        prompt: the prompt's text.
        prompt_token_ids: its tokens.
        text: what was generated, without the prompt.
        token_ids: the generated tokens.
        finish_reason: ``stop`` (end of text, or a stop string) or ``length``.
    """

    prompt: str
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
