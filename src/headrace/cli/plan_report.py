"""``headrace plan --report``: gathers what a plan's page shows, and writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headrace.model.cost import activation_ratio
from headrace.plan.demands import Schedule
from headrace.plan.options import Objective
from headrace.plan.outcome import Plan
from headrace.plan.plan import Planner, plan_program
from headrace.plan.policies import Policy
from headrace.plan.simulate import simulate
from headrace.plan.studies import make_studies
from headrace.plan.whatif import Improvement
from headrace.report.panels import steps_of
from headrace.report.plan_page import PlanReport, write_plan_page
from headrace.report.plan_words import (
    arithmetic,
    count,
    headline,
    rate,
    seconds,
    share,
    shown_name,
    size,
    times,
)
from headrace.timeline import Origin, Timeline
from headrace.units import format_count

_ORIGINS = {
    Origin.PREDICTED: "the data-sheet rates of {name}",
    Origin.MEASURED: "rates measured on {name}",
    Origin.EMULATED: "rates measured with an EMULATED link ({name})",
}
_LAYERS_SHOWN = 6
_STREAM_LAYERS_SHOWN = 1.5


def write_plan_report(path: str | Path, report: PlanReport) -> None:
    """Write a plan's page, which needs nothing but a browser.

    Args:
        path: the file to write.
        report: what it shows; see ``build_report``.
    """
    write_plan_page(path, report)


def build_report(
    planner: Planner,
    plan: Plan,
    compared: Mapping[Policy, Plan],
    improvements: Sequence[Improvement],
    *,
    facts: Mapping[str, str] | None = None,
) -> PlanReport:
    """Return what a plan's page shows; makes some hundred plans, in a few seconds.

    Args:
        planner: made the plan.
        plan: the plan.
        compared: plans of other policies for the plan's workload.
        improvements: what would help, the best first.
        facts: more of what a reader should know, by name, such as the number of GPUs.
    """
    asked, decider = planner.options.policy, planner.decider
    others = {policy: other for policy, other in compared.items() if policy is not asked}
    same = {policy: other for policy, other in others.items() if other.workload == plan.workload}
    rates = _ORIGINS[planner.profile.origin].format(name=planner.profile.name)
    timelines, speeds, window = _timelines(planner, plan, same)
    return PlanReport(
        title=f"{plan.model} on {plan.hardware}: the plan",
        facts={**_facts(planner, plan), **(facts or {})},
        origin=f"All figures are predicted, from {rates}: {_rate_words(planner, plan)}.",
        headline=headline(plan, asked),
        reasons=plan.reasons,
        improvements=improvements,
        plan=plan,
        asked=asked,
        compared=others,
        budgets={
            "device memory": decider.gpu_budget_bytes,
            "host memory": decider.host_budget_bytes,
        },
        activation_ratio=activation_ratio(planner.shape),
        timelines=timelines,
        speeds=speeds,
        window=window,
        studies=make_studies(planner, plan, {**same, asked: plan}),
    )


def _facts(planner: Planner, plan: Plan) -> dict[str, str]:
    workload, options = plan.workload, planner.options
    rows = count(workload.rows, "row")
    tokens = format_count(workload.prompt_len), format_count(workload.generate_len)
    facts = {
        "Model": f"{plan.model}, {plan.dtype}",
        "Machine": plan.hardware,
        "Workload": f"{rows} of {tokens[0]} prompt tokens, {tokens[1]} to generate",
        "Memory": f"{size(planner.decider.gpu_budget_bytes)} on the GPU, "
        f"{size(planner.decider.host_budget_bytes)} on the host",
    }
    if options.objective is Objective.THROUGHPUT:
        facts["Objective"] = f"most tokens/s, with at most {count(planner.workload.rows, 'row')}"
    if workload.batches > 1:
        order = "column-by-column" if plan.schedule is Schedule.COLUMN else "row-by-row"
        facts["Schedule"] = f"{order}, {workload.batches} batches"
    if plan.weights_streamed > 0:
        facts["Weights"] = f"{share(plan.weights_streamed)} streamed in every step"
    if options.recompute_fraction is not None:
        facts["Rebuilt"] = f"{share(options.recompute_fraction)} of each prompt, as asked"
    return facts


def _rate_words(planner: Planner, plan: Plan) -> str:
    profile = planner.profile
    words = [
        f"link {rate(profile.h2d_bytes_per_s)}",
        f"device memory {rate(profile.attend_rate)}",
        f"matrix products {arithmetic(profile.gemm_rate(plan.dtype))}",
    ]
    if "host" in planner.options.paths:
        words.append(f"host attention {rate(profile.host_attend_rate)}")
    return ", ".join(words)


def _timelines(
    planner: Planner, plan: Plan, compared: Mapping[Policy, Plan]
) -> tuple[list[Timeline], dict[str, str], str]:
    """Return the same part of a step of ``stream`` and of the plan, and what is said of them."""
    if not plan.feasible:
        return [], {}, ""
    layers = planner.shape.num_layers
    plans = {shown_name(plan, planner.options.policy): plan}
    stream = compared.get(Policy.STREAM)
    if stream is not None and stream.feasible and plan.policy is not Policy.STREAM:
        plans = {Policy.STREAM.value: stream, **plans}
    window_s = _LAYERS_SHOWN * plan.step_s / layers
    if len(plans) > 1 and stream is not None:
        window_s = max(window_s, _STREAM_LAYERS_SHOWN * stream.step_s / layers)
    window_s = min(window_s, *(one.step_s for one in plans.values()), plan.step_s)
    timelines, speeds = [], {}
    for label, one in plans.items():
        program = plan_program(one, planner.shape)
        whole = simulate(program, planner.profile, planner.shape.dtype, 2, label=label)
        timelines.append(_part(whole, window_s))
        speeds[label] = f"{_number(window_s / one.step_s * layers)} of {layers} layers done"
        if one is plan and len(plans) > 1:
            speeds[label] += f", {times(plan.speedup_over_stream)} stream"
    both = "Both pictures show" if len(plans) > 1 else "The picture shows"
    return timelines, speeds, f"{both} {seconds(window_s)} from the beginning of a decode step."


def _part(timeline: Timeline, window_s: float) -> Timeline:
    """Return the first part of the second step, which has the first one's loads behind it."""
    start_s = steps_of(timeline)[1].start_s
    finish_s = start_s + window_s
    spans = [
        replace(
            span,
            step=0,
            start_s=max(span.start_s, start_s) - start_s,
            finish_s=min(span.finish_s, finish_s) - start_s,
        )
        for span in timeline.spans
        if span.start_s < finish_s and span.finish_s > start_s
    ]
    return replace(timeline, spans=tuple(spans))


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
