"""From the body of a request to ``SamplingParams``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from headrace.engine.batch_fields import (
    RequestError,
    boolean,
    integer,
    logit_bias,
    number,
    refused,
    shown,
    stop_strings,
    text,
    token_ids,
)
from headrace.engine.request import SamplingParams
from headrace.errors import ConfigurationError

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENDPOINTS = (CHAT, COMPLETIONS)

MAX_CHOICES = 128
MAX_LOGPROBS = 20
WITHOUT_MAX_TOKENS = {CHAT: 1 << 30, COMPLETIONS: 16}
"""Tokens where a request says nothing, as OpenAI has it: a chat's may fill the context."""

_SAMPLING: dict[str, Callable[[str, Any], Any]] = {
    "temperature": number,
    "top_p": number,
    "top_k": integer,
    "min_p": number,
    "repetition_penalty": number,
    "presence_penalty": number,
    "frequency_penalty": number,
    "seed": integer,
    "stop": stop_strings,
    "stop_token_ids": token_ids,
    "n": partial(integer, low=1, high=MAX_CHOICES),
    "logit_bias": logit_bias,
    "min_tokens": integer,
    "ignore_eos": boolean,
}
"""Parameters that are ``SamplingParams``' own, with what reads them; it checks their bounds."""

_LENGTHS = ("max_tokens", "max_completion_tokens")
_COMMON = {"model", "stream", "user", "metadata", "logprobs", *_LENGTHS, *_SAMPLING}
_ALLOWED = {
    CHAT: frozenset(_COMMON | {"messages", "top_logprobs"}),
    COMPLETIONS: frozenset(_COMMON | {"prompt"}),
}


def given_parameters(body: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return the parameters of a body that are not null.

    Args:
        body: of the request.
        url: one of ``ENDPOINTS``.

    Raises:
        RequestError: one is unknown, or asks for a stream.
    """
    allowed = _ALLOWED[url]
    for name in body:
        if name not in allowed:
            raise RequestError(
                f"{shown(name)} is no parameter of {url} here; allowed are "
                f"{', '.join(sorted(allowed))}",
                param=name,
                code="unknown_parameter",
            )
    given = {name: value for name, value in body.items() if value is not None}
    if boolean("stream", given.get("stream", False)):
        raise refused("stream", True, "false: results of a batch are whole")
    return given


def model_name(given: Mapping[str, Any]) -> str | None:
    """Return the model that a request names, if it does."""
    return text("model", given["model"]) if "model" in given else None


def sampling_params(given: Mapping[str, Any], url: str) -> SamplingParams:
    """Return how a request's tokens are to be chosen.

    Args:
        given: its parameters that are not null.
        url: one of ``ENDPOINTS``; chat and completions write ``logprobs`` differently.

    Raises:
        RequestError: a parameter is of a wrong type, or out of its bounds.
    """
    settings = {name: read(name, given[name]) for name, read in _SAMPLING.items() if name in given}
    settings["max_tokens"] = _max_tokens(given, url)
    logprobs = _chat_logprobs(given) if url == CHAT else _completion_logprobs(given)
    try:
        return SamplingParams(**settings, logprobs=logprobs)
    except ConfigurationError as error:
        name = str(error).split(maxsplit=1)[0]
        raise RequestError(str(error), param=name if name in given else None) from error


def _max_tokens(given: Mapping[str, Any], url: str) -> int:
    """Return how many tokens to generate at most."""
    counts = {name: integer(name, given[name], 1) for name in _LENGTHS if name in given}
    if len(set(counts.values())) > 1:
        raise RequestError(
            f"max_tokens is {counts['max_tokens']} and max_completion_tokens is "
            f"{counts['max_completion_tokens']}; they mean the same, so give one of them",
            param="max_tokens",
        )
    return next(iter(counts.values()), WITHOUT_MAX_TOKENS[url])


def _chat_logprobs(given: Mapping[str, Any]) -> int | None:
    wanted = boolean("logprobs", given.get("logprobs", False))
    if "top_logprobs" not in given:
        return 0 if wanted else None
    count = integer("top_logprobs", given["top_logprobs"], 0, MAX_LOGPROBS)
    if not wanted:
        raise RequestError(
            f"top_logprobs is {count} without logprobs; set logprobs to true, or leave it out",
            param="top_logprobs",
        )
    return count


def _completion_logprobs(given: Mapping[str, Any]) -> int | None:
    if "logprobs" not in given:
        return None
    return integer("logprobs", given["logprobs"], 0, MAX_LOGPROBS)
