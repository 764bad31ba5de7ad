"""One self-contained HTML page about a run of the benchmark suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from headrace.bench.verdict import verdict_words
from headrace.report.chart import Chart, Point, Series
from headrace.report.chart_scale import AxisSpec
from headrace.report.chart_svg import chart_svg
from headrace.report.html_parts import facts_html, page_html, table_html
from headrace.report.palette import LINES, LineStyle
from headrace.report.plan_words import seconds, size, speed, times

_OTHER = LineStyle("#7a8291", "#a0a8b5", "", "cross")
_WIDE, _NARROW = (640, 400), (348, 340)
_ORIGIN = {
    "emulated": "Emulated: measured on a CPU whose link and cores are slowed down on purpose, so "
    "that rebuilding, link and cores compare as on the machine that is named.",
    "measured": "Measured on the machine that is named.",
}


def write_bench_page(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write the page of a suite, which needs nothing but a browser.

    Args:
        path: the file to write.
        data: the suite's JSON, as ``headrace bench --output`` writes it.
    """
    Path(path).write_text(bench_page(data), "utf-8")


def bench_page(data: Mapping[str, Any]) -> str:
    """Return the page that ``write_bench_page`` writes."""
    where, cases = data["environment"], data["cases"]
    origins = dict.fromkeys(one["origin"] for case in cases for one in case["policies"])
    return page_html(
        "bench.html",
        title="headrace bench: " + ", ".join(data["workloads"]),
        styles=("plan.css", "bench.css"),
        scripts=("plan.js",),
        origin=escape(" ".join(_ORIGIN.get(origin, origin) for origin in origins)),
        facts=facts_html(
            {
                "GPU": where["gpu"] or "none",
                "CPU": f"{where['cpu']}, {where['cpu_cores']} cores",
                "torch": where["torch"],
                "transformers": where["transformers"],
                "commit": where["commit"] or "unknown",
                "date": where["date"],
            }
        ),
        verdict="".join(f"<li>{escape(words)}</li>" for words in verdict_words(data["verdict"])),
        prediction=_prediction(cases),
        cases="".join(map(_case, cases)),
        unable=_unable_section(data["unable"]),
    )


def _prediction(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return a chart of predicted against measured steps; nothing if there is none."""
    runs = [(case, one) for case in cases for one in case["policies"]]
    if not runs:
        return ""
    every = [one[key] for _, one in runs for key in ("step_s", "predicted_step_s")]
    low, high = min(every) / 1.2, max(every) * 1.2
    exact = tuple(Point(x, x, seconds(x)) for x in (low, high))
    series = [Series("exact", _OTHER, (), thin=(exact,), faint=True)]
    for policy in dict.fromkeys(one["policy"] for _, one in runs):
        points = sorted(
            (one["step_s"], one["predicted_step_s"], case["case"])
            for case, one in runs
            if one["policy"] == policy
        )
        series.append(
            Series(
                policy,
                LINES.get(policy, _OTHER),
                tuple(Point(x, y, f"{seconds(y)} predicted ({case})") for x, y, case in points),
            )
        )
    chart = Chart(
        AxisSpec("step as measured, log scale", "log", seconds, low, high),
        AxisSpec("step as predicted, log scale", "log", seconds, low, high),
        tuple(series),
        "Predicted against measured steps of all cases; on the thin line both are the same.",
        lambda x: f"{seconds(x)} measured",
    )
    wide, narrow = (chart_svg(chart, *dimensions) for dimensions in (_WIDE, _NARROW))
    return (
        '<figure class="card chart"><h2>Predicted against measured</h2><p>On the thin line both '
        f'are the same.</p><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        "</figure>"
    )


def _case(case: Mapping[str, Any]) -> str:
    work = case["workload"]
    sizes = (
        f"{work['rows']:,} rows × {work['prompt_len']:,} tokens, {work['layers']} layers"
        f"{'' if work['narrow'] == 1 else ', 1/' + str(work['narrow']) + ' as wide'}, "
        f"{work['dtype']}, on {case['machine']}"
    )
    if work["gpu_memory"]:
        sizes += f", within {size(work['gpu_memory'])} of device memory"
    if work["weights_on_host"]:
        sizes += f", {work['weights_on_host']:.0%} of the weights on the host"
    notes = [*_asked(case), *(f"{one['name']}: {one['reason']}" for one in case["unable"])]
    return (
        f'<section class="card case"><h2>{escape(case["case"])}: {escape(work["model"])}</h2>'
        f'<p class="sizes">{escape(sizes)}</p>{_runs(case)}'
        + "".join(f'<p class="unable">{escape(words)}</p>' for words in notes)
        + f'<details><summary>The numbers</summary><div class="numbers">'
        f"{table_html(list(_table(case)))}</div></details></section>"
    )


def _asked(case: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the case asks for and why less was run, if it was."""
    if not case["adapted"]:
        return
    asked = case["asked"]
    memory = f" within {asked['gpu_memory']}" if asked["gpu_memory"] else ""
    yield (
        f"Asked: {asked['rows']:,} rows × {asked['prompt_len']:,} tokens, {asked['layers']} layers"
        f"{memory}. Less is run here: {'; '.join(case['adapted'])}."
    )


def _runs(case: Mapping[str, Any]) -> str:
    """Return a bar for each run: its step, with the bound and the prediction as lines across."""
    runs = [*case["policies"], *case["rivals"]]
    longest = max(
        [one["step_s"] for one in runs] + [one["predicted_step_s"] for one in case["policies"]],
        default=1.0,
    )
    items = []
    for one in runs:
        name = one.get("policy") or one["rival"]
        style = LINES.get(name, _OTHER)
        lines = "".join(
            f'<line class="{kind}" x1="{_percent(one[key] / longest)}" '
            f'x2="{_percent(one[key] / longest)}" y1="-10%" y2="110%"/>'
            for kind, key in (("bound", "bound_s"), ("foreseen", "predicted_step_s"))
            if key in one
        )
        faster = one["speedup_over_stream"]
        label, wide = escape(f"{name}: {seconds(one['step_s'])}"), _percent(one["step_s"] / longest)
        small = f"{speed(one['tokens_per_s'])} tokens/s"
        small += "" if faster is None else f" · {times(faster)} stream"
        items.append(
            f'<li><b>{escape(name)}</b><svg class="step series" role="img" '
            f'aria-label="{label}" '
            f'style="--light:{style.light};--dark:{style.dark}"><rect class="taken" height="100%" '
            f'width="{wide}"/>{lines}</svg><span class="figure">'
            f"<strong>{seconds(one['step_s'])}</strong><small>{small}</small></span></li>"
        )
    return f'<ul class="runs">{"".join(items)}</ul>'


def _table(case: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    for one in [*case["policies"], *case["rivals"]]:
        rates = {
            name: None if share is None else f"{share:.0%}"
            for name, share in one.get("of_profile", {}).items()
        }
        agreement, energy = one["agreement"], one["energy_j_per_step"]
        yield {
            "run": one.get("policy") or one["rival"],
            "step": seconds(one["step_s"]),
            "least": seconds(one["step_s_min"]),
            "largest": seconds(one["step_s_max"]),
            "first token": seconds(one["prefill_s"]),
            "predicted": _optional(one, "predicted_step_s"),
            "bound": _optional(one, "bound_s"),
            "on device": _share(one, "resident_fraction"),
            "rebuilt": _share(one, "recompute_fraction"),
            "by the host": _share(one, "host_fraction"),
            "link bytes": size(one["link_bytes_per_step"])
            if "link_bytes_per_step" in one
            else None,
            "link busy": _share(one, "link_busy"),
            "device busy": _share(one, "device_busy"),
            **{f"{name.replace('_', ' ')}, of its rate": words for name, words in rates.items()},
            "peak": size(one["peak_gpu_bytes"]),
            "energy": None if energy is None else f"{energy:.3g} J",
            "logit error": None if agreement is None else agreement["max_logit_error"],
            "same tokens": None if agreement is None else agreement["tokens_identical"],
        }


def _optional(one: Mapping[str, Any], key: str) -> str | None:
    return seconds(one[key]) if key in one else None


def _share(one: Mapping[str, Any], key: str) -> str | None:
    return f"{one[key]:.0%}" if key in one else None


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"


def _unable_section(unable: Sequence[Mapping[str, str]]) -> str:
    if not unable:
        return ""
    items = "".join(
        f"<li><b>{escape(one['name'])}</b>: {escape(one['reason'])}</li>" for one in unable
    )
    return f'<section class="card case"><h2>Could not run</h2><ul>{items}</ul></section>'
