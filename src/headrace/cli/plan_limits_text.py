"""Why a plan cannot run, and what would fit instead, as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.cli.plan_answer import Answer
from headrace.plan.explain import shortfalls
from headrace.plan.limits import Limits
from headrace.plan.policies import Policy
from headrace.units import format_bytes

_MIB = 2**20


def lacking(answer: Answer) -> list[str]:
    """Return what does not fit; a plan's reasons begin with the same lines."""
    return shortfalls(
        answer.planner.shape, answer.plan, answer.gpu_budget_bytes, answer.host_budget_bytes
    )


def remedies(answer: Answer) -> Iterator[str]:
    """Yield what would fit instead: each with everything else as it was asked for."""
    limits = answer.limits
    assert limits is not None
    policy = answer.question.options.policy
    under = "" if policy is Policy.AUTO else f" (policy {policy.value})"
    gpus = answer.found.cluster.gpus
    if limits.most_rows:
        each = "" if gpus == 1 else f" for each of the {gpus} GPUs"
        yield f"It would fit with --rows {limits.most_rows}{each}{under}."
    if limits.longest_prompt:
        yield f"It would fit with --prompt {limits.longest_prompt}{under}."
    yield from _memory(answer, limits, under)
    others = [
        other.value
        for other, plan in answer.compared.items()
        if plan.feasible and other is not policy
    ]
    if others:
        yield f"It would fit with --policy {' or '.join(others)}."


def _memory(answer: Answer, limits: Limits, under: str) -> Iterator[str]:
    """Yield the smallest budgets that would do, if one alone does."""
    profile = answer.planner.profile
    for name, where, needed, available in (
        ("gpu", "device", limits.least_gpu_bytes, profile.device_memory_bytes),
        ("host", "host", limits.least_host_bytes, profile.host_memory_bytes),
    ):
        if needed is None:
            continue
        if needed > available:
            yield f"It would fit a {where} with {format_bytes(needed)} of memory{under}."
        else:
            yield f"It would fit with --{name}-memory {needed // _MIB}MiB{under}."
