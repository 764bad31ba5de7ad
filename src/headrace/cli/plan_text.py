"""A plan as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from headrace.cli.output import table
from headrace.cli.plan_answer import Answer
from headrace.hardware.profile import HardwareProfile
from headrace.plan.explain import shortfalls
from headrace.plan.policies import Policy, Split
from headrace.plan.workload import Workload
from headrace.timeline import Origin
from headrace.units import format_bytes, format_count, format_seconds

_BAR = 40
_FILLS = {"resident": "█", "recompute": "▓", "stream": "▒", "host": "░"}
_PATHS = {
    "resident": "on the device",
    "recompute": "rebuilt from X",
    "stream": "K/V through the link",
    "host": "attended by the host",
}
_RATES = {
    Origin.PREDICTED: "the data-sheet rates of {name}",
    Origin.MEASURED: "the measured rates of {name}",
    Origin.EMULATED: "rates measured with an EMULATED link ({name})",
}
_RESOURCES = {
    "link": "the link to the device",
    "store": "the link to the host",
    "gpu": "the device",
}
_ITEMS = {
    "weights": "weights",
    "resident_kv": "resident K/V",
    "windowed_kv": "K/V of windowed layers",
    "staging": "staging",
    "rebuild_workspace": "workspace of rebuilding",
    "tail": "tail of newest tokens",
    "logits": "logits",
    "activations": "X",
    "kv": "K/V",
}
_MIB = 2**20


def plan_text(answer: Answer, timeline: str | None) -> str:
    """Return the report on a plan.

    Args:
        answer: what was found.
        timeline: the page that was written, or None.
    """
    columns, rows = policy_rows(answer)
    sections = [
        "\n".join(_head(answer)),
        "\n".join(_choice(answer)),
        "Why\n" + _listed(answer.plan.reasons[len(_lacking(answer)) :]),
        "\n\n".join(_memory(answer)),
        f"All policies for this workload (predicted)\n{_indented(table(columns, rows))}",
    ]
    if timeline is not None:
        sections.append(f"Timeline: {timeline}")
    return "\n\n".join(sections)


def workload_words(workload: Workload) -> str:
    """Return a workload in words."""
    rows = f"{format_count(workload.rows)} row{'s' if workload.rows > 1 else ''}"
    prompt, new = format_count(workload.prompt_len), format_count(workload.generate_len)
    return f"{rows} of {prompt} prompt tokens, {new} to generate"


def rates_of(profile: HardwareProfile) -> str:
    """Return in words which rates a prediction rests on."""
    return _RATES[profile.origin].format(name=profile.name)


def policy_rows(answer: Answer) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and cells of the table that compares all policies."""
    columns = (
        "policy",
        "fits",
        "step",
        "bound",
        "tokens/s",
        "link bytes/step",
        "rebuilt",
        "device",
    )
    rows: list[tuple[str, ...]] = [
        (
            policy.value + (" *" if policy is answer.plan.policy else ""),
            "yes" if plan.feasible else "no",
            format_seconds(plan.step_s),
            format_seconds(plan.bound_s),
            _speed(plan.tokens_per_s),
            format_bytes(answer.link_bytes(plan)),
            f"{plan.split.recompute:.1%}",
            format_bytes(plan.gpu_bytes),
        )
        for policy, plan in answer.compared.items()
    ]
    return columns, rows


def split_bar(split: Split) -> str:
    """Return a split as a bar of fixed width; every path that is used has at least one cell."""
    parts = {path: share for path, share in asdict(split).items() if share > 0}
    cells = {path: max(1, int(share * _BAR)) for path, share in parts.items()}
    largest = max(parts, key=lambda path: parts[path])
    cells[largest] += _BAR - sum(cells.values())
    return "".join(fill * cells.get(path, 0) for path, fill in _FILLS.items())


def _head(answer: Answer) -> Iterator[str]:
    plan, question = answer.plan, answer.question
    yield f"{plan.model} ({plan.dtype}) on {plan.hardware}: {workload_words(plan.workload)}"
    yield f"All times are predicted, from {rates_of(question.profile)}."
    for option, given, available in (
        ("--gpu-memory", question.gpu_memory_bytes, question.profile.device_memory_bytes),
        ("--host-memory", question.host_memory_bytes, question.profile.host_memory_bytes),
    ):
        if given is not None and given > available:
            yield (
                f"{option} is {format_bytes(given)}, more than the machine has; "
                f"{format_bytes(available)} count."
            )
    if question.objective == "throughput":
        yield (
            f"Objective throughput: policies are compared by tokens/s for the {plan.workload.rows} "
            "rows of --rows, which chooses as latency does; other numbers of rows are not tried."
        )
    if not plan.feasible:
        yield ""
        yield "THIS CANNOT RUN"
        yield _listed([*_lacking(answer), *_remedies(answer)])


def _lacking(answer: Answer) -> list[str]:
    """Return what does not fit; a plan's reasons begin with the same lines."""
    question = answer.question
    return shortfalls(
        question.shape, answer.plan, question.gpu_budget_bytes, question.host_budget_bytes
    )


def _remedies(answer: Answer) -> Iterator[str]:
    """Yield what would fit instead, where anything would."""
    plan, question = answer.plan, answer.question
    if answer.most_rows:
        yield f"It would fit with --rows {answer.most_rows} (policy {plan.policy.value})."
    if plan.workload.max_context <= question.shape.max_context:
        yield from _enough_memory(answer)
    others = [policy.value for policy, other in answer.compared.items() if other.feasible]
    if others:
        yield f"It would fit with --policy {' or '.join(others)}."


def _enough_memory(answer: Answer) -> Iterator[str]:
    plan, profile = answer.plan, answer.question.profile
    options = []
    for name, needed, budget, available in (
        ("gpu", plan.gpu_bytes, answer.question.gpu_budget_bytes, profile.device_memory_bytes),
        ("host", plan.host_bytes, answer.question.host_budget_bytes, profile.host_memory_bytes),
    ):
        if needed > available:
            where = "a device" if name == "gpu" else "a host"
            options.append(f"{where} with {format_bytes(needed)} of memory")
        elif needed > budget:
            options.append(f"--{name}-memory {-(-needed // _MIB)}MiB")
    if options:
        yield f"It would fit with {' and '.join(options)}."


def _choice(answer: Answer) -> Iterator[str]:
    """Yield the chosen policy, its split and its speed."""
    plan = answer.plan
    split = {path: share for path, share in asdict(plan.split).items() if share > 0}
    shares = ", ".join(f"{share:.1%} {_PATHS[path]}" for path, share in split.items())
    yield f"policy  {plan.policy.value}{_chosen_because(answer)}"
    yield f"split   {split_bar(plan.split)}  {shares}"
    if plan.admission.recompute > 0:
        yield f"kept    {plan.admission.recompute:.1%} of each prompt as X, instead of its K/V"
    yield (
        f"step    {format_seconds(plan.step_s)}, at best {format_seconds(plan.bound_s)}: "
        f"{_RESOURCES[plan.binding]} binds"
    )
    yield (
        f"speed   {_speed(plan.tokens_per_s)} tokens/s, "
        f"{plan.speedup_over_stream:.2f} × that of stream with full overlap"
    )


def _chosen_because(answer: Answer) -> str:
    if answer.question.policy is not Policy.AUTO:
        return ""
    if answer.question.recompute_fraction is not None:
        return "  (what auto means with a recompute fraction)"
    if not answer.plan.feasible:
        return "  (none can run; this one lacks the least memory)"
    return "  (auto: the fastest that fits)"


def _memory(answer: Answer) -> Iterator[str]:
    plan, question = answer.plan, answer.question
    yield _budget("Device memory", plan.gpu_items, question.gpu_budget_bytes)
    yield _budget("Host memory for the cache", plan.host_items, question.host_budget_bytes)


def _budget(title: str, items: Mapping[str, int], budget_bytes: int) -> str:
    """Return items of memory, largest first, and their sum against the budget."""
    total = sum(items.values())
    used = sorted(((size, item) for item, size in items.items() if size), reverse=True)
    rows = [(_ITEMS.get(item, item), format_bytes(size)) for size, item in used]
    rows.append(("together", format_bytes(total)))
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label.ljust(width)}  {size.rjust(10)}" for label, size in rows]
    verdict = f"of {format_bytes(budget_bytes)}"
    if total > budget_bytes:
        verdict += f": {format_bytes(total - budget_bytes)} too much"
    lines[-1] += f" {verdict}"
    return "\n".join([title, *lines])


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
