"""A plan in the words of its page: figures short enough for a chart, and whole sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from headrace.plan.demands import Schedule
from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.units import format_count

POLICY_WORDS = {
    Policy.AUTO: "the fastest mixture of all paths that fits",
    Policy.RESIDENT: "all K/V stay on the GPU; where memory is short, weights travel instead",
    Policy.STREAM: "all K/V come from host memory through the link, in every step",
    Policy.RECOMPUTE: "X of a part comes through the link, and the GPU makes K/V from it again, "
    "while the next part is on its way",
    Policy.KVPR: "the same in the paper’s order: first all X of a layer, then the rest of its K/V",
    Policy.HOST: "the host’s cores attend to K/V where they lie; only results travel",
}
"""What each policy does."""

PATH_WORDS = {
    "resident": "stay on the GPU",
    "stream": "come through the link as K/V",
    "recompute": "are rebuilt from X that comes through the link",
    "host": "are attended to by the host’s cores",
}
"""What happens to the cached tokens of each path."""

RESOURCE_WORDS = {
    "link": "link to the GPU",
    "store": "link to the host",
    "gpu": "GPU",
    "host": "host’s cores",
    "dram": "host memory",
    "serial": "waits of link and GPU",
}
"""What can be the bottleneck."""


def seconds(duration_s: float) -> str:
    """Return a duration in three figures: ``50 ms``, ``91.9 ms``, ``2.28 s``."""
    if duration_s == 0:
        return "0 s"
    return _three(duration_s * 1e9, 1000, ("ns", "µs", "ms", "s"))


def size(size_bytes: float) -> str:
    """Return a size in three figures, or four where they are needed: ``24 GiB``, ``6.91 GiB``."""
    return _three(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def rate(bytes_per_s: float) -> str:
    """Return a transfer rate in three figures: ``64 GB/s``."""
    return _three(bytes_per_s, 1000, ("B/s", "KB/s", "MB/s", "GB/s", "TB/s"))


def arithmetic(flops_per_s: float) -> str:
    """Return an arithmetic rate in three figures: ``989 TFLOP/s``."""
    return _three(flops_per_s, 1000, ("FLOP/s", "KFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s"))


def _three(value: float, step: int, units: Sequence[str]) -> str:
    """Write a value in the first unit in which it is below a step, or in the last."""
    last = len(units) - 1
    place = next((n for n in range(last) if abs(value) < (step - 0.5) * step**n), last)
    value /= step**place
    digits = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    return f"{digits} {units[place]}"


def speed(tokens_per_s: float) -> str:
    """Return tokens a second, in three figures or as a whole number."""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def times(factor: float) -> str:
    """Return a factor: ``0.96 ×``, ``5.9 ×``, ``120 ×``."""
    if factor >= 99.5:
        return f"{factor:,.0f} ×"
    return f"{factor:.2f} ×" if factor < 1.995 else f"{factor:.1f} ×"


def share(part: float) -> str:
    """Return a share in per cent; a small one is not written as nothing."""
    if 0 < part < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < part < 1 else f"{100 * part:.0f} %"


def shares(parts: Mapping[str, float]) -> dict[str, str]:
    """Return parts of a whole in per cent that sum to 100, those above 0 only."""
    used = {name: part for name, part in parts.items() if part > 0}
    if any(part < 0.01 for part in used.values()):
        return {name: share(part) for name, part in used.items()}
    whole = {name: int(100 * part) for name, part in used.items()}
    by_rest = sorted(used, key=lambda name: whole[name] - 100 * used[name])
    for name in by_rest[: 100 - sum(whole.values())]:
        whole[name] += 1
    return {name: f"{percent} %" for name, percent in whole.items()}


def count(number: int, thing: str) -> str:
    """Return a number of things: ``1 row``, ``64 rows``."""
    return f"{format_count(number)} {thing}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words with commas and a last ``and``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def shown_name(plan: Plan, asked: Policy) -> str:
    """Return the name of a plan: that of what was asked, and what it came to if that differs."""
    if asked is plan.policy:
        return asked.value
    return f"{asked.value} ({plan.policy.value})"


def headline(plan: Plan, asked: Policy) -> str:
    """Return the verdict: what a plan achieves, or that it does not fit."""
    name = shown_name(plan, asked)
    if not plan.feasible:
        return f"{name}: does not fit"
    compared = (
        ""
        if plan.policy is Policy.STREAM
        else f", {times(plan.speedup_over_stream)} the speed of stream"
    )
    return f"{name}: {seconds(plan.step_s)} a step, {speed(plan.tokens_per_s)} tokens/s{compared}"


def summary(plan: Plan, asked: Policy) -> str:
    """Return what happens to the cached tokens, and to the weights, in a sentence or two."""
    chosen = not plan.feasible and asked is Policy.AUTO
    nearest = "What lacks least memory: " if chosen else ""
    parts = [f"{part} {PATH_WORDS[path]}" for path, part in shares(asdict(plan.split)).items()]
    sentences = [f"Of the cached tokens {listed(parts)}."]
    if plan.split.resident == 1:
        sentences = ["All cached tokens stay on the GPU."]
    elif plan.split.host == 1:
        sentences = ["The host’s cores attend to all cached tokens, where they lie."]
    elif plan.split.stream == 1:
        sentences = ["All cached tokens come through the link as K/V, in every step."]
    elif plan.split.recompute == 1:
        sentences = ["All cached tokens are rebuilt from X that comes through the link."]
    if plan.weights_streamed > 0:
        sentences.append(
            f"{share(plan.weights_streamed)} of the layers’ weights are kept on the host and come "
            "through the link in every step."
        )
    if plan.workload.batches > 1:
        batches = f"All {plan.workload.batches} batches"
        if plan.schedule is Schedule.COLUMN:
            sentences.append(f"{batches} go through a layer before the next one.")
        else:
            sentences.append(f"{batches} go through the layers one after the other.")
    words = " ".join(sentences)
    return f"{nearest}{words[0].lower()}{words[1:]}" if nearest else words


def overruns(plan: Plan, budgets: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes that a plan takes too much, by name of the memory; only where it does."""
    used = {"device memory": plan.gpu_bytes, "host memory": plan.host_bytes}
    return {name: used[name] - budget for name, budget in budgets.items() if used[name] > budget}
