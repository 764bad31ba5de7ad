"""A case of the benchmark suite in words: what ran, how fast, how exact, and what could not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.bench.catalogue import RIVAL_NAMES
from headrace.cli import output
from headrace.units import format_bytes

if TYPE_CHECKING:
    from headrace.bench.measurement import PolicyMeasurement, RivalMeasurement
    from headrace.bench.suite import CaseResult

_COLUMNS = (
    "run",
    "step",
    "spread",
    "tokens/s",
    "first token",
    "predicted",
    "error",
    "bound",
    "of bound",
    "link bytes",
    "link busy",
    "device busy",
    "peak",
    "exact",
    "speed",
)


def case_text(result: CaseResult) -> str:
    """Return a case's table, with a line for each run that could not run."""
    stream = next((one.step_s for one in result.policies if one.policy == "stream"), None)
    rows = [_policy_row(one, result, stream) for one in result.policies]
    rows += [_rival_row(one, result, stream) for one in result.rivals]
    lines = [output.table(_COLUMNS, rows)] if rows else []
    lines += [f"{one.name} cannot run: {one.reason}" for one in result.unable]
    lines += [f"{one.name}: {note}" for one in result.policies for note in one.notes]
    lines += _agreement_words(result)
    return "\n".join(lines)


def _policy_row(
    one: PolicyMeasurement, result: CaseResult, stream_s: float | None
) -> tuple[str, ...]:
    return (
        one.name,
        _milliseconds(one.step_s),
        _spread(one.step_s_range, one.step_s),
        f"{one.tokens_per_s:,.1f}",
        _milliseconds(one.prefill_s),
        _milliseconds(one.predicted_step_s),
        f"{one.prediction_error:+.1%}",
        _milliseconds(one.bound_s),
        f"{one.bound_share:.0%}",
        format_bytes(one.link_bytes),
        f"{one.link_busy:.0%}",
        f"{one.device_busy:.0%}",
        format_bytes(one.peak_gpu_bytes),
        _exact(result, one.name),
        _speed(one.step_s, stream_s),
    )


def _rival_row(
    one: RivalMeasurement, result: CaseResult, stream_s: float | None
) -> tuple[str, ...]:
    steps = one.steps
    return (
        one.rival,
        _milliseconds(steps.step_s),
        _spread(steps.step_s_range, steps.step_s),
        f"{steps.tokens_per_s:,.1f}",
        _milliseconds(steps.prefill_s),
        *[""] * 7,
        format_bytes(steps.peak_gpu_bytes),
        _exact(result, one.rival),
        _speed(steps.step_s, stream_s),
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _spread(both: tuple[float, float], middle: float) -> str:
    return f"{(both[1] - both[0]) / middle:.0%}"


def _speed(step_s: float, stream_s: float | None) -> str:
    return "" if stream_s is None else f"{stream_s / step_s:.2f} ×"


def _exact(result: CaseResult, name: str) -> str:
    agreement = result.agreements.get(name)
    if agreement is None:
        return ""
    if not agreement.passed:
        return "NO"
    return "same tokens" if agreement.tokens_identical else "near ties"


def _agreement_words(result: CaseResult) -> list[str]:
    if not result.agreements:
        return []
    one = next(iter(result.agreements.values()))
    ours = [found for name, found in result.agreements.items() if name not in RIVAL_NAMES]
    worst = max((agreement.max_logit_error for agreement in ours), default=0.0)
    inexact = [
        f"{name} is not exact: its logits differ by {found.max_logit_error:.1e} of their range."
        for name, found in result.agreements.items()
        if name in RIVAL_NAMES and not found.passed
    ]
    return [
        f"Compared with {one.compared_with} over the first {one.steps} tokens: logits differ by "
        f"{worst:.1e} of their range at most, {one.tolerance:.1e} is allowed.",
        *inexact,
    ]
