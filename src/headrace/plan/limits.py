"""What would fit where a workload does not: a shorter prompt, fewer rows, larger budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from headrace.plan.decision import Decider
from headrace.plan.policies import Policy

_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What would fit, each with everything else as it was asked for.

    Attributes:
        most_rows: the most rows; 0 if not even one fits.
        longest_prompt: the longest prompt in tokens; 0 if not even one token fits.
        least_gpu_bytes: the least device memory, in whole MiB, or None if none would do.
        least_host_bytes: the least host memory, in whole MiB, or None if none would do.
    """

    most_rows: int
    longest_prompt: int
    least_gpu_bytes: int | None
    least_host_bytes: int | None


def find_limits(decider: Decider, policies: tuple[Policy, ...], max_context: int) -> Limits:
    """Return what would fit under any of some policies.

    Args:
        decider: of the workload that does not fit.
        policies: what may be planned.
        max_context: the model's positions: a row's prompt and generated tokens together.
    """

    def fits(changed: Decider) -> bool:
        return any(changed.decide(policy).fits for policy in policies)

    workload = decider.workload
    room = max_context - workload.generate_len

    def rows_fit(rows: int) -> bool:
        batches = min(rows, workload.batches)
        return fits(replace(decider, workload=replace(workload, rows=rows, batches=batches)))

    def prompt_fits(tokens: int) -> bool:
        return fits(replace(decider, workload=replace(workload, prompt_len=tokens)))

    too_long = workload.max_context > max_context
    return Limits(
        0 if too_long else most(rows_fit, workload.rows),
        most(prompt_fits, min(workload.prompt_len, max(0, room))),
        _least_budget(decider, fits, "gpu"),
        _least_budget(decider, fits, "host"),
    )


def most(fits: Callable[[int], bool], limit: int) -> int:
    """Return the most, up to a limit, that fits: 0 if not even 1 does.

    Args:
        fits: whether so many fit; if some do, fewer do.
        limit: where to end.
    """
    # Plans for few are made fast, so the search comes from below.
    if limit < 1 or not fits(1):
        return 0
    fitting, too_many = 1, 2
    while too_many <= limit and fits(too_many):
        fitting, too_many = too_many, 2 * too_many
    too_many = min(too_many, limit + 1)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def _least_budget(decider: Decider, fits: Callable[[Decider], bool], which: str) -> int | None:
    """Return the least device or host memory that would do, to a hundredth, in whole MiB."""
    budget = decider.gpu_budget_bytes if which == "gpu" else decider.host_budget_bytes

    def would_do(size_bytes: float) -> bool:
        memory = {
            f"{'device' if which == 'gpu' else 'host'}_memory_bytes": int(
                max(size_bytes, getattr(decider.profile, _field(which)))
            )
        }
        return fits(
            replace(
                decider,
                profile=replace(decider.profile, **memory),  # type: ignore[arg-type]
                options=replace(decider.options, **{f"{which}_memory_bytes": size_bytes}),  # type: ignore[arg-type]
            )
        )

    high = max(budget, _MIB)
    while not would_do(high):
        if high > 1024 * budget:
            return None
        high *= 2
    low = high / 2
    if high == budget:
        low = 0.0
    while high - low > max(_MIB, high / 200):
        middle = (low + high) / 2
        if would_do(middle):
            high = middle
        else:
            low = middle
    return -int(-high // _MIB) * _MIB


def _field(which: str) -> str:
    return "device_memory_bytes" if which == "gpu" else "host_memory_bytes"
