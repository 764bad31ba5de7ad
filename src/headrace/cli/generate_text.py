"""What ``headrace generate`` says: as JSON, and for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from headrace.cli import output
from headrace.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from headrace.engine.request import CompletionOutput, RequestOutput, TokenLogprob
    from headrace.engine.stats import GenerationStats

_SHOWN_CHARACTERS = 200
"""Of the end of a prompt."""


def result_json(outputs: Sequence[RequestOutput], stats: GenerationStats) -> dict[str, Any]:
    """Return what was generated, and what it took, as JSON has it."""
    return {
        "outputs": [_output_json(one) for one in outputs],
        **{**asdict(stats), "origin": stats.origin.value, "notes": list(stats.notes)},
    }


def _output_json(one: RequestOutput) -> dict[str, Any]:
    """Return a completed prompt with the names that it has in Python."""
    return {
        "prompt": one.prompt,
        "prompt_token_ids": list(one.prompt_token_ids),
        "text": one.text,
        "token_ids": list(one.token_ids),
        "finish_reason": one.finish_reason,
        "outputs": [_sample_json(sample) for sample in one.outputs],
    }


def _sample_json(sample: CompletionOutput) -> dict[str, Any]:
    logprobs = sample.logprobs
    return {
        "index": sample.index,
        "text": sample.text,
        "token_ids": list(sample.token_ids),
        "finish_reason": sample.finish_reason,
        "logprobs": None if logprobs is None else [_logprob_json(token) for token in logprobs],
    }


def _logprob_json(token: TokenLogprob) -> dict[str, Any]:
    """Return a token's log-probabilities; minus infinity is null."""
    return {
        "token_id": token.token_id,
        "logprob": output.finite(token.logprob),
        "top": [[token_id, output.finite(logprob)] for token_id, logprob in token.top],
    }


def generate_text(
    outputs: Sequence[RequestOutput],
    stats: GenerationStats,
    audited: Mapping[str, Any] | None,
    token_text: Callable[[int], str],
) -> str:
    """Return the same for people.

    Args:
        outputs: of the prompts, in their order.
        stats: what they took.
        audited: an audit's result as JSON has it, or None.
        token_text: returns a token's text.
    """
    lines: list[str] = []
    for number, one in enumerate(outputs, 1):
        for sample in one.outputs:
            lines += _sample_lines(number, one, sample, token_text)
    lines.append(_step_line(stats))
    lines += [f"note: {note}" for note in stats.notes]
    if audited is not None:
        lines.append(_audit_line(audited))
    return "\n".join(lines)


def _sample_lines(
    number: int, one: RequestOutput, sample: CompletionOutput, token_text: Callable[[int], str]
) -> Iterator[str]:
    """Yield a sample under a head that says whose it is; samples are numbered from 1."""
    count = len(one.outputs)
    which = f", sample {sample.index + 1} of {count}" if count > 1 else ""
    yield f"── {number}{which} ── ({sample.finish_reason}, {len(sample.token_ids)} tokens)"
    yield one.prompt[-_SHOWN_CHARACTERS:] + sample.text
    yield ""
    if sample.logprobs is not None:
        yield _logprob_table(sample.logprobs, token_text)
        yield ""


def _logprob_table(logprobs: Sequence[TokenLogprob], token_text: Callable[[int], str]) -> str:
    rows = [
        [
            f"{one.logprob:.3f}",
            repr(token_text(one.token_id)),
            ", ".join(f"{token_text(token)!r} {logprob:.3f}" for token, logprob in one.top),
        ]
        for one in logprobs
    ]
    with_top = any(one.top for one in logprobs)
    columns = ["logprob", "token", *(["likeliest"] if with_top else [])]
    return output.table(columns, [row[: len(columns)] for row in rows])


def _step_line(stats: GenerationStats) -> str:
    predicted = stats.predicted_step_s
    beside = "" if predicted is None else f", predicted {format_seconds(predicted)}"
    return (
        f"policy {stats.policy}: a step takes {format_seconds(stats.step_s)} ({stats.origin.value})"
        f"{beside}; {stats.tokens_per_s:.1f} tokens/s; the link brings "
        f"{format_bytes(stats.link_bytes_per_step)} a step"
    )


def _audit_line(audited: Mapping[str, Any]) -> str:
    verdict = "passed" if audited["passed"] else "FAILED"
    tokens = "identical" if audited["tokens_identical"] else "not all identical"
    error, allowed = (
        math.inf if audited[name] is None else audited[name]
        for name in ("max_logit_error", "tolerance")
    )
    return (
        f"audit {verdict}: tokens {tokens} to the plain model's; logits differ by "
        f"{error:.1e} of their range (allowed {allowed:.1e})"
    )
