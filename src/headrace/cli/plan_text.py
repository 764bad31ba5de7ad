"""A plan as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from headrace.cli.output import table
from headrace.cli.plan_answer import Answer
from headrace.cli.plan_limits_text import lacking, remedies
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import all_layers_weight_bytes, layer_read_bytes
from headrace.model.shape import ModelShape
from headrace.plan.demands import Schedule
from headrace.plan.explain import ITEM_NAMES, RESOURCE_NAMES
from headrace.plan.options import Objective
from headrace.plan.parallel import Parallel
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
    "host": "attended to by the host",
}
_RATES = {
    Origin.PREDICTED: "the data-sheet rates of {name}",
    Origin.MEASURED: "the measured rates of {name}",
    Origin.EMULATED: "rates measured with an EMULATED link ({name})",
}
_LANES = {
    "load_weights": "weights in",
    "load_activations": "X in",
    "load_kv": "K/V in",
    "compute": "device",
    "store_kv": "K/V out",
    "store_activations": "X out",
    "host_attend": "host's cores",
}


def plan_text(answer: Answer, pages: Mapping[str, str | None]) -> str:
    """Return the report on a plan.

    Args:
        answer: what was found.
        pages: files that were written, by what they show; None for those that were not.
    """
    columns, rows = policy_rows(answer)
    reasons = answer.plan.reasons[len(lacking(answer)) :]
    sections = [
        "\n".join(_head(answer)),
        "\n".join(_choice(answer)),
        f"Why\n{_listed(reasons)}",
        f"What would help (by what the rates allow)\n{_listed(list(_helps(answer)))}",
        f"The generation (simulated)\n{_indented(chr(10).join(_generation(answer)))}",
        "\n\n".join(_memory(answer)),
        f"All policies for this workload (predicted)\n{_indented(table(columns, rows))}",
    ]
    sections += [f"{name.capitalize()}: {file}" for name, file in pages.items() if file]
    return "\n\n".join(sections)


def _experts(shape: ModelShape, rows: int) -> Iterator[str]:
    """Yield what a mixture reads of its weights."""
    if shape.experts is None:
        return
    experts, layers = shape.experts, format_bytes(all_layers_weight_bytes(shape))
    read = format_bytes(shape.num_layers * layer_read_bytes(shape, rows))
    yield (
        f"A mixture: a token takes {experts.per_token} of {experts.count} experts. If all are as "
        f"likely, a step reads {read} of the layers' {layers}."
    )


def workload_words(workload: Workload) -> str:
    """Return a workload in words."""
    rows = f"{format_count(workload.rows)} row{'s' if workload.rows > 1 else ''}"
    prompt, new = format_count(workload.prompt_len), format_count(workload.generate_len)
    batches = f", in {workload.batches} batches" if workload.batches > 1 else ""
    return f"{rows} of {prompt} prompt tokens, {new} to generate{batches}"


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
        "resident",
        "stream",
        "rebuilt",
        "host",
        "device",
    )
    asked = answer.question.options.policy
    rows: list[tuple[str, ...]] = []
    for policy, plan in answer.compared.items():
        split = plan.split
        shares = (split.resident, split.stream, split.recompute, split.host)
        rows.append(
            (
                policy.value + (" *" if policy is asked else ""),
                "yes" if plan.feasible else "no",
                format_seconds(plan.step_s),
                format_seconds(plan.bound_s),
                _speed(answer.found.total(plan.tokens_per_s)),
                format_bytes(answer.link_bytes(plan)),
                *(f"{share:.0%}" if share else "" for share in shares),
                format_bytes(plan.gpu_bytes),
            )
        )
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
    yield (
        f"{question.shape.name} ({plan.dtype}) on {plan.hardware}: "
        f"{workload_words(question.workload)}"
    )
    yield f"All times are predicted, from {rates_of(question.profile)}."
    yield from _experts(question.shape, question.workload.rows)
    yield from _cluster(answer)
    for option, given, available in (
        ("--gpu-memory", question.options.gpu_memory_bytes, question.profile.device_memory_bytes),
        ("--host-memory", question.options.host_memory_bytes, question.profile.host_memory_bytes),
    ):
        if given is not None and given > available:
            yield (
                f"{option} is {format_bytes(given)}, more than the machine has; "
                f"{format_bytes(available)} count."
            )
    if question.options.objective is Objective.THROUGHPUT:
        yield (
            f"Objective throughput: of up to {format_count(question.workload.rows)} rows at once, "
            f"{format_count(answer.found.rows)} make the most tokens/s; what follows is for those."
        )
    if not plan.feasible:
        yield ""
        yield "THIS CANNOT RUN"
        yield _listed([*lacking(answer), *remedies(answer)])


def _cluster(answer: Answer) -> Iterator[str]:
    """Yield how several GPUs share the work."""
    found = answer.found
    if found.cluster.gpus == 1:
        return
    share = "They share the host's memory and cores; what follows is each GPU's."
    if found.cluster.parallel is Parallel.DATA:
        yield (
            f"{found.cluster.gpus} GPUs, data-parallel: each has the whole model and up to "
            f"{format_count(answer.plan.workload.rows)} rows. {share}"
        )
        return
    gathered = (
        "each loads its part of X, and they gather it"
        if found.gathers_activations
        else "each loads X whole"
    )
    yield (
        f"{found.cluster.gpus} GPUs, tensor-parallel: each has a part of every layer, and all "
        f"rows; where they rebuild, {gathered}. All-reduces take "
        f"{format_seconds(found.communication_s)} of a step. {share}"
    )


def cluster_facts(answer: Answer) -> dict[str, str]:
    """Return what a page of one GPU's figures has to say of several; nothing for one."""
    cluster = answer.found.cluster
    if cluster.gpus == 1:
        return {}
    return {"GPUs": f"{cluster.gpus}, {cluster.parallel.value}-parallel; figures are each GPU's"}


def _choice(answer: Answer) -> Iterator[str]:
    """Yield the chosen policy, its split and its speed."""
    plan = answer.plan
    split = {path: share for path, share in asdict(plan.split).items() if share > 0}
    shares = ", ".join(f"{share:.1%} {_PATHS[path]}" for path, share in split.items())
    yield f"policy  {plan.policy.value}{_chosen_because(answer)}"
    yield f"split   {split_bar(plan.split)}  {shares}"
    if plan.admission.recompute > 0:
        yield f"kept    {plan.admission.recompute:.1%} of each prompt as X, instead of its K/V"
    if plan.weights_streamed > 0:
        yield f"weights {plan.weights_streamed:.1%} of the layers' streamed in every step"
    if plan.workload.batches > 1:
        order = "column-by-column" if plan.schedule is Schedule.COLUMN else "row-by-row"
        yield f"order   {order}"
    yield (
        f"step    {format_seconds(plan.step_s)}, at best {format_seconds(plan.bound_s)}; "
        f"what binds: {RESOURCE_NAMES[plan.binding]}"
    )
    yield (
        f"speed   {_speed(answer.found.tokens_per_s)} tokens/s while decoding, "
        f"{plan.speedup_over_stream:.2f} × that of stream with full overlap"
    )


def _chosen_because(answer: Answer) -> str:
    options = answer.question.options
    if options.recompute_fraction is not None:
        return "  (with the recompute fraction that was given)"
    if options.policy is not Policy.AUTO:
        return ""
    if not answer.plan.feasible:
        return "  (none can run; this one lacks the least memory)"
    if answer.plan.policy is Policy.AUTO:
        return "  (a mixture: the fastest that fits)"
    return "  (auto: the fastest that fits)"


def _helps(answer: Answer) -> Iterator[str]:
    """Yield changes that would make a step faster, the best first."""
    for one in answer.improvements:
        yield (
            f"{one.what}: {one.gain:.2f} × as fast a step, {format_seconds(one.step_s)}, "
            f"{_speed(answer.found.total(one.tokens_per_s))} tokens/s"
        )
    if not answer.plan.feasible:
        yield "What lacks is said above."
    elif not answer.improvements:
        yield "Nothing of what was tried makes a step faster by 2 %."


def _generation(answer: Answer) -> Iterator[str]:
    """Yield what the whole generation takes."""
    found = answer.forecast
    if found is None:
        yield "not simulated: it cannot run"
        return
    yield (
        f"first token after {format_seconds(found.ttft_s)}, all in {format_seconds(found.total_s)}"
    )
    if found.step_s:
        yield (
            f"steps from {format_seconds(found.step_s[0])} (context {found.contexts[0]:,}) to "
            f"{format_seconds(found.step_s[-1])} (context {found.contexts[-1]:,})"
        )
    yield f"{_speed(answer.found.total(found.tokens_per_s))} tokens/s, prefill included"
    busy = [f"{_LANES[lane]} {share:.0%}" for lane, share in found.busy.items() if share >= 0.005]
    yield f"busy while decoding: {', '.join(busy)}"


def _memory(answer: Answer) -> Iterator[str]:
    plan = answer.plan
    yield _budget("Device memory at the peak", plan.gpu_items, answer.gpu_budget_bytes)
    yield _budget("Host memory at the peak", plan.host_items, answer.host_budget_bytes)


def _budget(title: str, items: Mapping[str, int], budget_bytes: int) -> str:
    """Return items of memory, largest first, and their sum against the budget."""
    total = sum(items.values())
    used = sorted(((size, item) for item, size in items.items() if size), reverse=True)
    rows = [(ITEM_NAMES[item], format_bytes(size)) for size, item in used]
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
