"""A plan in plain English: what bounds it, what it gains, and what does not fit."""

from __future__ import annotations

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import activation_ratio
from headrace.model.shape import ModelShape
from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.units import format_bytes, format_seconds

_NAMES = {
    "link": "link to the device",
    "store": "link to the host",
    "gpu": "device",
    "host": "host's cores, after the dense work that they wait for,",
    "dram": "host memory, which link and cores share,",
}
_ABOUT_EQUAL = 0.95
_NEAR_BOUND = 1.05


def shortfalls(
    shape: ModelShape, plan: Plan, gpu_budget_bytes: float, host_budget_bytes: float
) -> list[str]:
    """Return why a plan cannot run, one line for each limit; nothing if it can."""
    lines = []
    if plan.gpu_bytes > gpu_budget_bytes:
        largest = max(plan.gpu_items, key=lambda item: plan.gpu_items[item])
        lines.append(
            f"It does not fit the device: it needs {format_bytes(plan.gpu_bytes)}, of which "
            f"{format_bytes(plan.gpu_items[largest])} {largest}, and "
            f"{format_bytes(gpu_budget_bytes)} are allowed; use fewer rows, a shorter context or "
            "more GPU memory."
        )
    if plan.host_bytes > host_budget_bytes:
        lines.append(
            f"It does not fit the host: the cache needs {format_bytes(plan.host_bytes)}, and "
            f"{format_bytes(host_budget_bytes)} are allowed; use fewer rows, a shorter context or "
            "more host memory."
        )
    if plan.workload.max_context > shape.max_context:
        lines.append(
            f"Prompt and generated tokens are {plan.workload.max_context}, and {shape.name} has "
            f"positions for {shape.max_context}; use a shorter prompt or generate less."
        )
    return lines


def explain(shape: ModelShape, plan: Plan, profile: HardwareProfile) -> list[str]:
    """Return what bounds the plan's step and why, in lines of plain English."""
    lines = [_bottleneck(plan)]
    if plan.step_s > _NEAR_BOUND * plan.bound_s:
        cause = (
            "this schedule does not overlap the layers"
            if plan.policy is Policy.KVPR
            else "latencies, and waits between granules"
        )
        lines.append(f"A step takes {plan.step_s / plan.bound_s:.2f} times its bound: {cause}.")
    ratio = activation_ratio(shape)
    if plan.split.recompute > 0:
        lines.append(
            f"{plan.split.recompute:.1%} of the cached tokens are rebuilt from X, which has "
            f"{ratio:.2f} times the bytes of their K/V."
        )
    elif plan.policy in (Policy.KVPR, Policy.RECOMPUTE) and ratio >= 1:
        lines.append(f"Rebuilding saves no bytes: X has {ratio:.2f} times the bytes of K/V.")
    elif plan.policy in (Policy.KVPR, Policy.RECOMPUTE):
        lines.append("Rebuilding would not pay: the device has no time to spare.")
    if shape.windowed_layers:
        lines.append(
            f"{shape.windowed_layers} of {shape.num_layers} layers attend to "
            f"{shape.sliding_window} tokens only, which stay on the device."
        )
    if plan.split.resident < 1 and not plan.work_s["link"]:
        lines.append("Nothing travels: the cached tokens are all in the newest blocks.")
    return lines


def _bottleneck(plan: Plan) -> str:
    first, second = sorted(plan.work_s, key=lambda name: -plan.work_s[name])[:2]
    busy = f"{format_seconds(plan.work_s[first])} of a step of {format_seconds(plan.step_s)}"
    if plan.work_s[second] > _ABOUT_EQUAL * plan.work_s[first]:
        return f"The {_NAMES[first]} and the {_NAMES[second]} are about equally busy: {busy}."
    return f"The {_NAMES[first]} is the bottleneck: it is busy for {busy}."
