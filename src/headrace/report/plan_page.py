"""One self-contained HTML page about a plan: the verdict, its pictures, and what changes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.plan.study import Studies
from headrace.plan.whatif import Improvement
from headrace.report.chart_svg import chart_svg
from headrace.report.html_parts import facts_html, page_html, table_html
from headrace.report.palette import LINES, LineStyle, marker_path
from headrace.report.plan_bars import (
    fills,
    improvement_bars,
    memory_bars,
    path_legend,
    split_rows,
)
from headrace.report.plan_charts import Figure, figures
from headrace.report.plan_words import (
    POLICY_WORDS,
    RESOURCE_WORDS,
    count,
    overruns,
    seconds,
    size,
    summary,
)
from headrace.report.svg import timeline_svg
from headrace.timeline import Timeline

_WIDE, _NARROW = (640, 400), (348, 340)
_TIMELINE_WIDE, _TIMELINE_NARROW = 1180, 368


@dataclass(frozen=True)
class PlanReport:
    """All that a plan's page shows.

    Attributes:
        title: of the page.
        facts: what a reader should know of the question, by name.
        origin: that the figures are predicted, and from which rates, in words.
        headline: the verdict, in plain words.
        reasons: what bounds the plan and why, or why it does not fit.
        improvements: what would help, the best first.
        plan: the chosen plan.
        asked: the policy that was asked for.
        compared: plans of other policies for the same workload.
        budgets: bytes that may be used of ``device memory`` and ``host memory``.
        activation_ratio: bytes of X for each byte of K/V.
        timelines: the same part of a step of some plans, each labelled as it is to be called.
        speeds: what is said of each timeline, by its label.
        window: what part of the step that is, in words.
        studies: how the step changes with context, share and rows.
    """

    title: str
    facts: Mapping[str, str]
    origin: str
    headline: str
    reasons: Sequence[str]
    improvements: Sequence[Improvement]
    plan: Plan
    asked: Policy
    compared: Mapping[Policy, Plan]
    budgets: Mapping[str, float]
    activation_ratio: float
    timelines: Sequence[Timeline]
    speeds: Mapping[str, str]
    window: str
    studies: Studies


def write_plan_page(path: str | Path, report: PlanReport) -> None:
    """Write a plan's page, which needs nothing but a browser.

    Args:
        path: the file to write.
        report: what it shows.
    """
    Path(path).write_text(plan_page(report), "utf-8")


def plan_page(report: PlanReport) -> str:
    """Return the page that ``write_plan_page`` writes."""
    plans = {report.asked.value: report.plan}
    plans |= {
        policy.value: plan for policy, plan in report.compared.items() if policy is not report.asked
    }
    charts = figures(report.plan, report.asked, report.studies, report.activation_ratio)
    return page_html(
        "plan.html",
        title=report.title,
        styles=("plan.css",),
        scripts=("plan.js",),
        fills=fills(),
        origin=escape(report.origin),
        verdict="fits" if report.plan.feasible else "unfit",
        headline=_headline(report),
        summary=escape(summary(report.plan, report.asked)),
        fitted="" if report.plan.feasible else " if it fitted",
        tiles=_tiles(report),
        facts=facts_html(report.facts),
        reasons="".join(f"<li>{escape(reason)}</li>" for reason in report.reasons),
        improvements=improvement_bars(report.improvements),
        policies=split_rows(plans, report.asked.value),
        legend=path_legend(),
        memory=memory_bars(report.plan, report.budgets),
        timeline=_timeline(report),
        **{figure.key: _figure(figure) for figure in charts},
        glossary=_glossary(),
    )


def _headline(report: PlanReport) -> str:
    """Return the headline, to be broken between its parts if need be."""
    name, _, rest = report.headline.partition(": ")
    if not rest:
        return escape(report.headline)
    parts = [f"{name}:", *(f"{part}," for part in rest.split(", "))]
    parts[-1] = parts[-1].removesuffix(",")
    return " ".join(f"<span>{escape(part)}</span>" for part in parts)


def _tiles(report: PlanReport) -> str:
    """Return the figures that are looked for first."""
    plan, budgets = report.plan, report.budgets
    if not plan.feasible:
        tiles = list(_unfit_tiles(report))
    else:
        busiest = RESOURCE_WORDS.get(plan.binding, plan.binding)
        tiles = [
            (busiest, f"busiest: {seconds(plan.work_s[plan.binding])} of a step"),
            (seconds(plan.bound_s), "the least that the rates allow for such a step"),
        ]
        if plan.policy is not Policy.STREAM:
            tiles.append((seconds(plan.stream_step_s), "a step of stream, itself fully overlapped"))
        used = {"device memory": plan.gpu_bytes, "host memory": plan.host_bytes}
        tiles += [(size(used[name]), f"of {size(budgets[name])} {name}") for name in budgets]
    items = (
        f"<div><dd>{escape(figure)}</dd><dt>{escape(words)}</dt></div>" for figure, words in tiles
    )
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _unfit_tiles(report: PlanReport) -> Iterator[tuple[str, str]]:
    """Yield what is lacking, and what would fit instead."""
    lacking = overruns(report.plan, report.budgets)
    for name, size_bytes in lacking.items():
        yield f"{size(size_bytes)} too much", name
    if not lacking:
        yield "too long", "for the model’s positions"
    rows = report.studies.rows.curve(report.asked)
    if rows is not None and rows.points:
        yield count(round(rows.last_x), "row"), "at most would fit, all else being equal"
    contexts = report.studies.contexts.curve(report.asked)
    if contexts is not None and contexts.points:
        tokens = count(round(contexts.last_x), "token")
        yield tokens, "of context at most would fit, all else being equal"
    study = report.studies.rows
    fitting = [
        (point.best_s, curve.policy)
        for curve in study.curves
        for point in curve.points
        if point.x == study.here
    ]
    if fitting:
        step_s, policy = min(fitting)
        yield policy.value, f"would fit, and take {seconds(step_s)} a step"


def _timeline(report: PlanReport) -> str:
    if not report.timelines:
        return ""
    both = "".join(
        f'<div class="{kind}">'
        + timeline_svg(
            report.timelines,
            width=width,
            title="What link, GPU and host do, over time, predicted",
            speeds=report.speeds,
            compact=kind == "narrow",
            inline=True,
        )
        + "</div>"
        for kind, width in (("wide", _TIMELINE_WIDE), ("narrow", _TIMELINE_NARROW))
    )
    return (
        f'<section class="card timeline"><h2>What runs when</h2><p>{escape(report.window)} A row '
        "without gaps is the bottleneck; the pale track is time spent waiting.</p>"
        f"{both}</section>"
    )


def _figure(figure: Figure) -> str:
    wide, narrow = (chart_svg(figure.chart, *size) for size in (_WIDE, _NARROW))
    return (
        f'<figure class="card chart" id="{figure.key}"><h2>{escape(figure.title)}</h2>'
        f"<p>{escape(figure.takeaway)}</p>"
        f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"<figcaption>{escape(figure.note)}</figcaption>"
        f'<details><summary>The numbers</summary><div class="numbers">{table_html(figure.table)}'
        "</div></details></figure>"
    )


def _glossary() -> str:
    return "".join(_glossary_items())


def _glossary_items() -> Iterator[str]:
    for policy, words in POLICY_WORDS.items():
        sample = _sample(LINES[policy.value])
        yield f"<div><dt>{sample}{policy.value}</dt><dd>{escape(words)}.</dd></div>"


def _sample(style: LineStyle) -> str:
    """Return a short piece of a curve."""
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    return (
        f'<svg class="sample" width="34" height="14" aria-hidden="true"><g class="series" '
        f'style="--light:{style.light};--dark:{style.dark}"><path class="line"{dash} '
        f'd="M1 7H33"/><path class="marker" d="{marker_path(style.marker, 17, 7, 4)}"/></g></svg>'
    )
