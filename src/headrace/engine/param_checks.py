"""Checks of sampling parameters: of the types people mix up as well as of the values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.engine.request import SamplingParams

MOST_LOGPROBS = 20
"""As many of the likeliest tokens as can be asked for."""

LARGEST_BIAS = 100.0
"""Of a logit bias, either way; enough to force or ban a token."""

LARGEST_SEED = (1 << 64) - 1


def refusal(params: SamplingParams) -> str | None:
    """Return what is wrong of params, in a sentence that begins with the field; None if nothing."""
    for name, allowed, what in chain(_choosing(params), _reporting(params), _ending(params)):
        if not allowed:
            return f"{name} is {getattr(params, name)!r}; allowed is {what}"
    if wrong := _wrong_biases(params.logit_bias):
        return (
            f"logit_bias is {wrong}; allowed is a mapping of token ids to numbers, "
            f"-{LARGEST_BIAS:.0f} to {LARGEST_BIAS:.0f}, or None"
        )
    return None


_Checks = Iterator[tuple[str, bool, str]]
"""Names of fields, whether their values are allowed, and what is."""


def _choosing(params: SamplingParams) -> _Checks:
    yield "temperature", is_number(params.temperature, 0), "a number, 0 or more"
    share = is_number(params.top_p, 0, 1) and params.top_p > 0
    yield "top_p", share, "a number above 0, up to 1"
    yield "top_k", is_integer(params.top_k, 0), "an integer, 0 (all) or more"
    yield "min_p", is_number(params.min_p, 0, 1), "a number, 0 to 1"
    factor = is_number(params.repetition_penalty, 0) and params.repetition_penalty > 0
    yield "repetition_penalty", factor, "a number above 0"
    for name in ("presence_penalty", "frequency_penalty"):
        yield name, is_number(getattr(params, name), -2, 2), "a number, -2 to 2"
    seed = params.seed is None or is_integer(params.seed, 0, LARGEST_SEED)
    yield "seed", seed, "an integer, 0 to 2^64 - 1, or None"


def _reporting(params: SamplingParams) -> _Checks:
    yield "n", is_integer(params.n, 1), "an integer, 1 or more"
    count = params.logprobs is None or is_integer(params.logprobs, 0, MOST_LOGPROBS)
    yield "logprobs", count, f"an integer, 0 to {MOST_LOGPROBS}, or None"


def _ending(params: SamplingParams) -> _Checks:
    yield "max_tokens", is_integer(params.max_tokens, 1), "an integer, 1 or more"
    least = is_integer(params.min_tokens, 0, params.max_tokens)
    yield "min_tokens", least, f"an integer, 0 to max_tokens ({params.max_tokens})"
    yield "stop", _are_strings(params.stop), "strings that are not empty"
    yield "stop_token_ids", _are_tokens(params.stop_token_ids), "token ids: integers, 0 or more"
    yield "ignore_eos", isinstance(params.ignore_eos, bool), "True or False"


def is_integer(value: object, low: int, high: int | None = None) -> bool:
    """Return whether a value is an integer (no bool) within bounds, both included."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= low and (high is None or value <= high)


def is_number(value: object, low: float, high: float = math.inf) -> bool:
    """Return whether a value is a finite number (no bool) within bounds, both included."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return low <= value <= high and abs(value) < math.inf


def _are_strings(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(one, str) and one for one in values)


def _are_tokens(values: object) -> bool:
    return isinstance(values, tuple) and all(is_integer(one, 0) for one in values)


def _wrong_biases(biases: Any) -> str:
    """Return the entries that are not allowed, or all of what is no mapping; "" if none is."""
    if biases is None:
        return ""
    if not isinstance(biases, Mapping):
        return repr(biases)
    wrong = {
        token: bias
        for token, bias in biases.items()
        if not (is_integer(token, 0) and is_number(bias, -LARGEST_BIAS, LARGEST_BIAS))
    }
    return repr(wrong) if wrong else ""
