"""The lines of a batch's output, as OpenAI's interface writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.engine.batch_fields import RequestError
from headrace.engine.batch_line import INVALID_JSON, BatchRequest
from headrace.engine.batch_recovery import RESULT_ID

if TYPE_CHECKING:
    from headrace.engine.request import CompletionOutput, RequestOutput, TokenLogprob

TokenText = Callable[[int], str]

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have, as OpenAI writes it."""


def result_line(
    digest: str, custom_id: str, status_code: int, body: dict[str, Any]
) -> dict[str, Any]:
    """Return a line of the output.

    Args:
        digest: of the request's line; the line's ids are made from it, so that they do not change.
        custom_id: of the request.
        status_code: 200, or 400 for an error.
        body: the answer.
    """
    response = {"status_code": status_code, "request_id": f"req_{digest}", "body": body}
    return {
        "id": f"{RESULT_ID}{digest}",
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }


def error_line(digest: str, custom_id: str, error: RequestError) -> dict[str, Any]:
    """Return the line of a request that failed; a line that is no request has no response."""
    if error.code == INVALID_JSON:
        return {
            "id": f"{RESULT_ID}{digest}",
            "custom_id": custom_id,
            "response": None,
            "error": {"code": error.code, "message": str(error)},
        }
    body = {
        "message": str(error),
        "type": "invalid_request_error",
        "param": error.param,
        "code": error.code,
    }
    return result_line(digest, custom_id, 400, {"error": body})


def answer(
    request: BatchRequest,
    outputs: Sequence[RequestOutput],
    *,
    digest: str,
    created: int,
    model: str,
    token_text: TokenText,
) -> dict[str, Any]:
    """Return the ``chat.completion`` or ``text_completion`` of a request.

    Args:
        request: what was asked for.
        outputs: one a prompt, each with as many choices as were asked for.
        digest: of the request's line.
        created: seconds since 1970.
        model: the name that is echoed where the request gives none.
        token_text: returns a token's text.
    """
    choices = [choice for output in outputs for choice in output.outputs]
    write = _chat_choice if request.is_chat else _text_choice
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    generated_tokens = sum(len(choice.token_ids) for choice in choices)
    return {
        "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": created,
        "model": request.model or model,
        "choices": [write(index, choice, token_text) for index, choice in enumerate(choices)],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated_tokens,
            "total_tokens": prompt_tokens + generated_tokens,
        },
    }


def _chat_choice(index: int, choice: CompletionOutput, token_text: TokenText) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs is not None:
        content = [_chat_logprob(one, token_text) for one in choice.logprobs]
        logprobs = {"content": content, "refusal": None}
    return {
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _chat_logprob(one: TokenLogprob, token_text: TokenText) -> dict[str, Any]:
    top = [_token(token_id, logprob, token_text) for token_id, logprob in one.top]
    return {**_token(one.token_id, one.logprob, token_text), "top_logprobs": top}


def _token(token_id: int, logprob: float, token_text: TokenText) -> dict[str, Any]:
    text = token_text(token_id)
    # A token that holds a part of a character has no text of its own.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": _finite(logprob),
        "bytes": list(text.encode()) if whole else None,
    }


def _text_choice(index: int, choice: CompletionOutput, token_text: TokenText) -> dict[str, Any]:
    logprobs = None if choice.logprobs is None else _text_logprobs(choice.logprobs, token_text)
    return {
        "text": choice.text,
        "index": index,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _text_logprobs(logprobs: Sequence[TokenLogprob], token_text: TokenText) -> dict[str, Any]:
    """Return the older form: the chosen token is always among the likeliest ones.

    Offsets count characters from the beginning of what was generated.
    """
    tokens = [token_text(one.token_id) for one in logprobs]
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops: list[dict[str, float]] = []
    for one in logprobs:
        top: dict[str, float] = {}
        for token_id, logprob in one.top:
            # Several tokens may have the same text; the likeliest comes first.
            top.setdefault(token_text(token_id), _finite(logprob))
        top.setdefault(token_text(one.token_id), _finite(one.logprob))
        tops.append(top)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(one.logprob) for one in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
