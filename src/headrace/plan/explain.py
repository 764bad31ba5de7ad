"""A plan in plain English: what bounds it, what it gains, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import activation_ratio
from headrace.model.shape import ModelShape
from headrace.plan.demands import Rate, Schedule
from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.plan.program import GPU_MEMORY
from headrace.units import format_bytes, format_seconds

RESOURCE_NAMES = {
    "link": "the link to the device",
    "store": "the link to the host",
    "gpu": "the device",
    "host": "the host's cores, with the dense work that they wait for",
    "dram": "host memory, which link and cores share",
    "serial": "the waiting of link and device for each other",
}
"""Resources (``demands.Resource``) in words."""
_RATES = {
    Rate.LINK: "a link",
    Rate.STORE: "a link to the host",
    Rate.ARITHMETIC: "a device whose arithmetic is",
    Rate.DEVICE_MEMORY: "device memory",
    Rate.HOST: "host cores that attend",
    Rate.DRAM: "host memory",
}
ITEM_NAMES = {
    "weights": "weights",
    "weight_slots": "slots of streamed weights",
    "resident_kv": "resident K/V",
    "windowed_kv": "K/V of windowed layers",
    "staging": "staging",
    "store_ring": "buffers of stores",
    "rebuild_workspace": "workspace of rebuilding",
    "tail": "tail of newest tokens",
    "logits": "logits",
    "forward": "workspace of the forward pass",
    "activations": "X",
    "kv": "K/V",
    "embedding": "input embedding",
}
"""Items of memory (``memory.gpu_items``, ``memory.host_items``) in words."""

_ABOUT_EQUAL = 0.95
NEAR_BOUND = 1.05
"""A step nearer to its bound needs no explanation."""
_WORTH_SAYING = 0.1
_STEP_UP = 0.1


def shortfalls(
    shape: ModelShape, plan: Plan, gpu_budget_bytes: float, host_budget_bytes: float
) -> list[str]:
    """Return why a plan cannot run, one line for each limit; nothing if it can."""
    lines = []
    if plan.gpu_bytes > gpu_budget_bytes:
        largest = max(plan.gpu_items, key=lambda item: plan.gpu_items[item])
        lines.append(
            f"It does not fit the device: it needs {format_bytes(plan.gpu_bytes)}, of which "
            f"{format_bytes(plan.gpu_items[largest])} {ITEM_NAMES[largest]}, and "
            f"{format_bytes(gpu_budget_bytes)} are allowed; use fewer rows, a shorter context or "
            "more GPU memory."
        )
    if plan.host_bytes > host_budget_bytes:
        lines.append(
            f"It does not fit the host: it needs {format_bytes(plan.host_bytes)}, and "
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
    return [
        _bottleneck(plan),
        *_sensitivity(plan),
        *_distance(plan, profile),
        *_paths(shape, plan),
        *_weights(plan),
        *_embedding(plan),
        *_order(plan),
    ]


def _is_launched(plan: Plan) -> bool:
    """Return whether launching takes longer than all that is launched."""
    return plan.launch_s > plan.bound_s


def _bottleneck(plan: Plan) -> str:
    if _is_launched(plan):
        return (
            f"The bottleneck is launching: the thread that tells the device what to do is busy for "
            f"{format_seconds(plan.launch_s)} of a step of {format_seconds(plan.step_s)}, and no "
            "other resource is as long."
        )
    first, second = sorted(plan.work_s, key=lambda name: -plan.work_s[name])[:2]
    busy = f"{format_seconds(plan.work_s[first])} of a step of {format_seconds(plan.step_s)}"
    if plan.work_s[second] > _ABOUT_EQUAL * plan.work_s[first]:
        both = f"{RESOURCE_NAMES[first]}; {RESOURCE_NAMES[second]}"
        return f"Two are about equally busy, for {busy}: {both}."
    return f"The bottleneck is {RESOURCE_NAMES[first]}: busy for {busy}."


def _sensitivity(plan: Plan) -> Iterator[str]:
    """Yield shadow prices in words: what 10 % more of what binds would give."""
    if _is_launched(plan):
        return
    gains = sorted(
        ((share, rate) for rate, share in plan.optimum.elasticity.items()),
        key=lambda gain: -gain[0],
    )
    told = [
        f"{_RATES[rate]} 10 % faster would give {_percent(share * _STEP_UP / (1 + _STEP_UP))} "
        "more speed"
        for share, rate in gains[:2]
        if share >= _WORTH_SAYING
    ]
    if told:
        yield f"By the shadow prices, {', '.join(told)}."
    price = plan.optimum.prices.get(GPU_MEMORY, 0.0)
    if price > 0 and plan.split.resident < 1:
        yield (
            "GPU memory binds too: what more of it would give is under 'what would help' "
            "(more tokens, or weights, stay on the device)."
        )


def _distance(plan: Plan, profile: HardwareProfile) -> Iterator[str]:
    """Yield what the distance between simulated step and bound goes to."""
    if plan.step_s <= NEAR_BOUND * plan.bound_s or _is_launched(plan):
        return
    gap_s = plan.step_s - plan.bound_s
    latencies_s = min(gap_s, max(0.0, plan.step_s - plan.step_without_latency_s))
    waits = (
        "its layers do not overlap: the link waits for a layer's end, and the device for its X"
        if plan.policy is Policy.KVPR and plan.schedule is Schedule.ROW
        else "lanes wait for each other, as staging is finite"
    )
    copy_us, launch_us = profile.copy_latency_s * 1e6, profile.launch_latency_s * 1e6
    yield (
        f"A step takes {plan.step_s / plan.bound_s:.2f} times its bound. Of the "
        f"{format_seconds(gap_s)} between, {format_seconds(latencies_s)} are latencies "
        f"({copy_us:.0f} µs a copy, {launch_us:.0f} a kernel, or more), and in "
        f"{format_seconds(gap_s - latencies_s)} {waits}."
    )


def _paths(shape: ModelShape, plan: Plan) -> Iterator[str]:
    ratio = activation_ratio(shape)
    if plan.split.recompute > 0:
        yield (
            f"{_percent(plan.split.recompute)} of the cached tokens are rebuilt from X, which "
            f"has {ratio:.2f} times the bytes of their K/V."
        )
    elif plan.policy in (Policy.KVPR, Policy.RECOMPUTE, Policy.AUTO) and ratio >= 1:
        yield f"Rebuilding saves no bytes: X has {ratio:.2f} times the bytes of K/V."
    elif plan.policy in (Policy.KVPR, Policy.RECOMPUTE):
        yield "Rebuilding would not pay: the device has no time to spare."
    if 0 < plan.split.resident < 1:
        yield (
            f"{_percent(plan.split.resident)} of the cached tokens stay on the device: as many as "
            "its memory holds besides weights, staging and workspace."
        )
    if plan.split.host > 0:
        yield (
            f"{_percent(plan.split.host)} of the cached tokens are attended to by the host's "
            "cores, where they lie."
        )
    if shape.windowed_layers:
        yield (
            f"{shape.windowed_layers} of {shape.num_layers} layers attend to "
            f"{shape.sliding_window} tokens only, which stay on the device."
        )
    if plan.split.resident < 1 and not plan.work_s["link"] and not plan.split.host:
        yield "Nothing travels: the cached tokens are all in the newest blocks."


def _weights(plan: Plan) -> Iterator[str]:
    if plan.weights_streamed > 0:
        yield (
            f"{_percent(plan.weights_streamed)} of the layers' weights are on the host and "
            "streamed in every step: the device's memory does not hold them, or is better used "
            "for the cache."
        )


def _embedding(plan: Plan) -> Iterator[str]:
    if plan.embedding_on_host:
        yield (
            f"The input embedding ({format_bytes(plan.host_items['embedding'])}) stays on the "
            "host: a step reads few of its rows, and the device's memory is better used otherwise."
        )


def _order(plan: Plan) -> Iterator[str]:
    """Yield why row-by-row or column-by-column."""
    batches = plan.workload.batches
    if batches == 1:
        return
    if plan.schedule is Schedule.COLUMN:
        yield (
            f"Column-by-column: a layer's weights are used once for all {batches} batches, instead "
            f"of {batches} times."
        )
    else:
        yield (
            f"Row-by-row: the {batches} batches go through the layers one after the other; to use "
            "weights once for all of them would not be faster."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
