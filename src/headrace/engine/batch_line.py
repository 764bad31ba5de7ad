"""Reads one line of a batch's input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from headrace.engine.batch_fields import RequestError, missing, refused, shown, text
from headrace.engine.batch_messages import Prompt, messages, prompts
from headrace.engine.batch_parameters import (
    CHAT,
    ENDPOINTS,
    given_parameters,
    model_name,
    sampling_params,
)
from headrace.engine.request import SamplingParams

INVALID_JSON = "invalid_json"
"""Code of the error of a line that holds no JSON object."""

_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class BatchRequest:
    """A request that was read and checked.

    Attributes:
        url: one of ``ENDPOINTS``.
        model: the model that it names, if it does; a batch has one model for all.
        messages: of a chat; none for a completion.
        prompts: of a completion; none for a chat.
        params: how to choose tokens.
    """

    url: str
    model: str | None
    messages: tuple[dict[str, str], ...]
    prompts: tuple[Prompt, ...]
    params: SamplingParams

    @property
    def is_chat(self) -> bool:
        """Whether it is answered with a message."""
        return self.url == CHAT


@dataclass(frozen=True)
class BatchLine:
    """A line of the input.

    Attributes:
        custom_id: the author's name of it, or ``line:17`` where it cannot be read.
        request: what it asks for; None where the line is off.
        error: what is off.
    """

    custom_id: str
    request: BatchRequest | None
    error: RequestError | None


def read_line(line: bytes, number: int) -> BatchLine:
    """Read a line.

    Args:
        line: one JSON object in UTF-8.
        number: its place in the file, from 1.
    """
    custom_id = f"line:{number}"
    try:
        fields = _object(line)
        custom_id = _custom_id(fields)
        return BatchLine(custom_id, _request(fields), None)
    except RequestError as error:
        return BatchLine(custom_id, None, error)


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(
            f"the line is not JSON in UTF-8: {what}; give one object a line", code=INVALID_JSON
        ) from error
    if not isinstance(fields, dict):
        raise RequestError(
            f"the line is {shown(fields)}; allowed is an object with {', '.join(_KEYS)}",
            code=INVALID_JSON,
        )
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _custom_id(fields: dict[str, Any]) -> str:
    if fields.get("custom_id") is None:
        raise missing("custom_id", "a string that no other line has")
    custom_id = text("custom_id", fields["custom_id"])
    if not custom_id:
        raise refused("custom_id", custom_id, "a string that is not empty")
    return custom_id


def _request(fields: dict[str, Any]) -> BatchRequest:
    for key in fields:
        if key not in _KEYS:
            raise RequestError(
                f"the line has {shown(key)}; allowed are {', '.join(_KEYS)}", param=key
            )
    for key, allowed in (("method", ("POST",)), ("url", ENDPOINTS)):
        if fields.get(key) not in allowed:
            raise refused(key, fields.get(key), " or ".join(map(shown, allowed)))
    url, body = fields["url"], fields.get("body")
    if not isinstance(body, dict):
        raise refused("body", body, "an object with the request's parameters")
    given = given_parameters(body, url)
    return BatchRequest(
        url=url,
        model=model_name(given),
        messages=messages(given) if url == CHAT else (),
        prompts=() if url == CHAT else prompts(given),
        params=sampling_params(given, url),
    )
