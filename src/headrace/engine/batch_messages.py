"""Reads what a request asks to complete: the messages of a chat, or prompts."""

from __future__ import annotations

from typing import Any

from headrace.engine.batch_fields import RequestError, missing, refused, shown, text, token_ids

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = ("role", "content", "name", "tool_call_id")
_MESSAGES = 'a list of messages such as {"role": "user", "content": "..."}'
_CONTENT = 'a string, or a list of parts such as {"type": "text", "text": "..."}'
_PROMPT = "a string, a list of strings, a list of token ids, or a list of such lists"

Prompt = str | tuple[int, ...]


def messages(given: dict[str, Any]) -> tuple[dict[str, str], ...]:
    """Return the messages of a chat, each with its content as one string.

    Raises:
        RequestError: they are missing, or not of the form or of a kind that is served.
    """
    if "messages" not in given:
        raise missing("messages", _MESSAGES)
    value = given["messages"]
    if not isinstance(value, list) or not value:
        raise refused("messages", value, f"{_MESSAGES}, at least one")
    return tuple(_message(f"messages[{place}]", one) for place, one in enumerate(value))


def _message(param: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise refused(param, value, f"a message; messages is {_MESSAGES}")
    for key, given in value.items():
        if key not in _MESSAGE_KEYS and given is not None:
            raise RequestError(
                f"{param} has {shown(key)}; allowed are {', '.join(_MESSAGE_KEYS)}",
                param=f"{param}.{key}",
            )
    role = value.get("role")
    if role not in ROLES:
        raise refused(f"{param}.role", role, f"one of {', '.join(ROLES)}")
    message = {"role": str(role), "content": _content(f"{param}.content", value.get("content"))}
    for key in ("name", "tool_call_id"):
        if value.get(key) is not None:
            message[key] = text(f"{param}.{key}", value[key])
    return message


def _content(param: str, value: Any) -> str:
    """Return the text of a message; parts follow each other with nothing between them."""
    if not isinstance(value, list):
        return text(param, value, _CONTENT)
    pieces = []
    for place, part in enumerate(value):
        here = f"{param}[{place}]"
        if not isinstance(part, dict):
            raise refused(here, part, f"a part; content is {_CONTENT}")
        if part.get("type") != "text":
            raise refused(f"{here}.type", part.get("type"), '"text"; this engine reads text only')
        pieces.append(text(f"{here}.text", part.get("text")))
    return "".join(pieces)


def prompts(given: dict[str, Any]) -> tuple[Prompt, ...]:
    """Return the prompts of a completion.

    Raises:
        RequestError: there is none, or they are not of a form that is allowed.
    """
    if "prompt" not in given:
        raise missing("prompt", _PROMPT)
    value = given["prompt"]
    if isinstance(value, str):
        return (text("prompt", value),)
    if not isinstance(value, list) or not value:
        raise refused("prompt", value, f"{_PROMPT}, not empty")
    if isinstance(value[0], int):
        return (token_ids("prompt", value),)
    return tuple(_prompt(f"prompt[{place}]", one) for place, one in enumerate(value))


def _prompt(param: str, value: Any) -> Prompt:
    if isinstance(value, list):
        if not value:
            raise refused(param, value, "at least one token id")
        return token_ids(param, value)
    return text(param, value, f"a string or a list of token ids; prompt is {_PROMPT}")
