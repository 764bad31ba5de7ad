"""Checks the fields of a request: a reader takes a field's name and its JSON value."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from headrace.errors import HeadraceError

MAX_STOP_STRINGS = 16
_MAX_BIAS = 100.0
_TOKEN_LIMIT = 1 << 31
_TOKEN_ID = re.compile(r"[0-9]{1,10}")
_SHOWN_CHARACTERS = 60


class RequestError(HeadraceError):
    """A request of a batch is off. Its result says so, and the other requests go on.

    Args:
        message: what was given, what is allowed.
        param: the field that is off, such as ``messages[2].role``.
        code: the kind of error in a word for programs.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def shown(value: Any) -> str:
    """Return a JSON value as its author wrote it, cut off if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def refused(param: str, value: Any, allowed: str) -> RequestError:
    """Return the error of a field with a value that is not allowed."""
    return RequestError(f"{param} is {shown(value)}; allowed is {allowed}", param=param)


def missing(param: str, allowed: str) -> RequestError:
    """Return the error of a field that is not there."""
    return RequestError(f"{param} is missing; allowed is {allowed}", param=param)


def integer(param: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number within bounds that are both allowed."""
    # In Python, but not in JSON, true is a number.
    fits = isinstance(value, int) and not isinstance(value, bool)
    if fits and (low is None or value >= low) and (high is None or value <= high):
        return int(value)
    bounds = "" if low is None else f", {low} or more" if high is None else f" from {low} to {high}"
    raise refused(param, value, f"a whole number{bounds}")


def number(param: str, value: Any) -> float:
    """Return a number that a float can hold."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return value
        except OverflowError:
            pass
    raise refused(param, value, "a number")


def boolean(param: str, value: Any) -> bool:
    """Return true or false."""
    if isinstance(value, bool):
        return value
    raise refused(param, value, "true or false")


def text(param: str, value: Any, allowed: str = "a string") -> str:
    """Return a string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise refused(param, value, allowed)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise refused(param, value, f"{allowed} without half a surrogate pair") from None
    return value


def token_ids(param: str, value: Any) -> tuple[int, ...]:
    """Return a list of token ids; that they are below the vocabulary's size is checked later."""
    if not isinstance(value, list):
        raise refused(param, value, "a list of token ids")
    return tuple(
        integer(f"{param}[{place}]", token, 0, _TOKEN_LIMIT - 1)
        for place, token in enumerate(value)
    )


def stop_strings(param: str, value: Any) -> tuple[str, ...]:
    """Return the strings that end a text."""
    allowed = f"a string, or a list of up to {MAX_STOP_STRINGS}, none of them empty"
    if isinstance(value, str):
        return (text(param, value),)
    if not isinstance(value, list) or len(value) > MAX_STOP_STRINGS:
        raise refused(param, value, allowed)
    return tuple(text(f"{param}[{place}]", one) for place, one in enumerate(value))


def logit_bias(param: str, value: Any) -> dict[int, float]:
    """Return what is added to tokens' logits, by token id."""
    allowed = 'an object such as {"50256": -100}, of token ids and numbers from -100 to 100'
    if not isinstance(value, dict):
        raise refused(param, value, allowed)
    biases: dict[int, float] = {}
    for key, given in value.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= _TOKEN_LIMIT:
            raise RequestError(
                f"{param} has the key {shown(key)}; allowed is {allowed}", param=param
            )
        bias = number(f"{param}[{shown(key)}]", given)
        if abs(bias) > _MAX_BIAS:
            raise refused(f"{param}[{shown(key)}]", given, "a number from -100 to 100")
        biases[int(key)] = bias
    return biases
