"""When two ways of running a model agree: how far logits may differ, and what a near tie is.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

FLOAT32_TOLERANCE = 1e-4
HALF_FLOOR = 1e-3
HALF_SPREADS = 2.0
"""In half precision, how many times the plain model's own spread is allowed: the reference's error
and ours both count."""


def logit_error(made: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits ``[B, V]`` as a share of the range of a row's logits.

    What is not a number counts as infinite.
    """
    span = (expected.amax(dim=-1) - expected.amin(dim=-1)).clamp_min(1e-20)
    error = float(((made - expected).abs().amax(dim=-1) / span).max())
    return error if error == error else float("inf")


def choices_agree(made: Tensor, expected: Tensor, tolerance: float) -> tuple[bool, bool]:
    """Return whether all rows choose the same token, and whether they nearly do.

    A choice is near if the plain model's logit of the token is within twice the tolerance, as a
    share of the range, of the plain model's best.
    """
    choice, plain = made.argmax(dim=-1), expected.argmax(dim=-1)
    best = expected.gather(1, plain[:, None])[:, 0]
    chosen = expected.gather(1, choice[:, None])[:, 0]
    span = expected.amax(dim=-1) - expected.amin(dim=-1)
    near = bool((best - chosen <= 2 * tolerance * span).all())
    return bool((choice == plain).all()), near


def attention_name(model: nn.Module) -> str:
    """Return the attention implementation that a model names."""
    config: Any = model.config
    return str(config._attn_implementation)


@contextmanager
def other_attention(model: nn.Module) -> Iterator[str]:
    """Let a model use its other attention implementation for a while: eager, or else SDPA.

    Raises:
        ValueError: it has but one.
    """
    own = attention_name(model)
    name = "eager" if own != "eager" else "sdpa"
    try:
        model.set_attn_implementation(name)  # type: ignore[operator]
        yield name
    finally:
        model.set_attn_implementation(own)  # type: ignore[operator]
