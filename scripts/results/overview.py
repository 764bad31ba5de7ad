"""The compact tables of the results page, with links to the pages that tell all of it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from headrace.bench.catalogue import OFFLOADED, PLAIN, STATIC
from headrace.units import format_bytes, format_rate

from .figures import written
from .runs import EMULATED, MEASURED, Files, Run, checks_of, name_of
from .studies import SIMULATED
from .tables import compact_table, table
from .targets import off, prediction_errors
from .works import Work, gain, headline, reference

_POLICIES = ("stream", "kvpr", "recompute", "host", "resident", "auto")
_RIVALS = (PLAIN, OFFLOADED, STATIC)
_FOLDER = "results"
_VISITS_SHOWN = 6


def link(run: Run, words: str = "") -> str:
    """Return a link to everything about a run."""
    return f"[{words or run.visit}]({_FOLDER}/{run.page}.md#{_anchor(run.name)})"


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page_link(run: Run) -> str:
    """Return a link to the page that tells everything of a visit."""
    return f"[{run.page}]({_FOLDER}/{run.page}.md)"


def machines_table(runs: Sequence[Run], files: Files) -> str:
    """Return what was measured on what: a row for each machine, with links to all of its runs."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.origin != MEASURED, run.page)):
        where = run.environment
        host = f"{where['cpu']}, {where['cpu_cores']} cores"
        groups.setdefault((run.origin, where["gpu"] or "none", host), []).append(run)
    rows = [
        [how, gpu, host, str(len(group)), _dates(group), _number_of_pages(group)]
        for (how, gpu, host), group in groups.items()
    ]
    if any("studies" in data for data in files.values()):
        rows.append(
            [
                SIMULATED,
                "none",
                "none: data sheets",
                "",
                "",
                f"[{SIMULATED}]({_FOLDER}/{SIMULATED}.md)",
            ]
        )
    return table(["how", "GPU", "host", "runs", "when", "pages"], rows)


def _dates(runs: Sequence[Run]) -> str:
    days = [min(run.date for run in runs)[:10], max(run.date for run in runs)[:10]]
    return " to ".join(dict.fromkeys(days))


def _number_of_pages(runs: Sequence[Run]) -> str:
    return f"[{len({run.page for run in runs})}]({_FOLDER}/README.md)"


def steps_table(works: Sequence[Work]) -> str:
    """Return the typical visit's steps of every policy, and what the headline policy comes to."""
    rows = []
    for work in works:
        run = work.typical
        if reference(run) != "stream":
            continue
        policy = headline(run)
        one = next(one for one in run.data["policies"] if name_of(one) == policy)
        rows.append(
            [
                work.name if run.origin == EMULATED else link(run, work.name),
                _work(run),
                *(_milliseconds(run.steps.get(name)) for name in _POLICIES),
                written(gain(run), ".2 ×") + ("" if policy == "auto" else f" ({policy})"),
                written(one["bound_s"] / one["step_s"], ".0 %"),
                _signed(off(one)),
                _visited(work),
            ]
        )
    head = ["work", "model, rows × tokens, within", *_POLICIES]
    return compact_table([*head, "over `stream`", "of its bound", "off by", "visit"], rows)


def _visited(work: Work) -> str:
    """Return which visit is the typical one, and of how many; nothing where none is another."""
    if work.origin == EMULATED and len(work.runs) == 1:
        return ""
    many = f", of {len(work.runs)}" if len(work.runs) > 1 else ""
    return work.typical.visit + many


def _signed(error: float) -> str:
    """Return by how much a prediction was above what was measured, or below."""
    return f"{round(100 * error):+d} %" if round(100 * error) else "0 %"


def _work(run: Run) -> str:
    work = run.data["workload"]
    words = f"{run.model.partition(',')[0]}, {work['rows']:,} × {work['prompt_len']:,}"
    return words + (f", {format_bytes(run.gpu_memory)}" if run.gpu_memory is not None else "")


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.1f}"


def rivals_table(works: Sequence[Work], least: int = 2) -> str:
    """Return steps beside those of transformers' own caches.

    Args:
        works: of a machine.
        least: how many of the rivals must have run where the cache does not fit the device.
    """
    rows = []
    for work in works:
        run = work.typical
        rivals = {name_of(one): one for one in run.data.get("rivals", [])}
        fits = reference(run) == PLAIN
        if len(rivals) < (1 if fits else least):
            continue
        cells = [_rival(run, rivals[name]) if name in rivals else "" for name in _RIVALS]
        policy = headline(run)
        ours = f"{_milliseconds(run.steps[policy])} ({policy})"
        rows.append([link(run, work.name), _work(run), ours, *cells])
    head = ["work", "model, rows × tokens, within", "headrace", *_RIVALS]
    return compact_table(head, rows)


def _rival(run: Run, one: dict[str, Any]) -> str:
    times = written(one["step_s"] / run.steps[headline(run)], ".2 ×")
    words = [f"{_milliseconds(one['step_s'])} ({times})"]
    if one.get("within_budget") is False:
        words.append("beyond the budget")
    if one.get("agreement") and not one["agreement"]["passed"]:
        words.append("**not exact**")
    return "; ".join(words)


def visits_table(works: Sequence[Work]) -> str:
    """Return the same work, visit by visit: what the host gave, and what became of it.

    Of many visits the newest; all of them have their own pages.
    """
    several = [work for work in works if len(work.runs) > 1 and reference(work.typical) == "stream"]
    rows = []
    for work in several:
        lines = [_visit(run) for run in work.by_date[-_VISITS_SHOWN:]]
        rows += [[work.name, *lines[0]], *(["", *line] for line in lines[1:])]
    head = ["work", "visit", "UTC", "link", "stream", "host", "off by", "auto", "off by"]
    return table([*head, "over `stream`"], rows) if rows else ""


def _visit(run: Run) -> list[str]:
    by_name = {name_of(one): one for one in run.data["policies"]}
    cells = []
    for name in ("host", "auto"):
        one = by_name.get(name)
        cells += [_milliseconds(one["step_s"]), _signed(off(one))] if one else ["", ""]
    profile = run.data.get("profile")
    return [
        link(run),
        run.date[5:16].replace("T", " "),
        format_rate(profile["h2d_bytes_per_s"]) if profile else "",
        _milliseconds(run.steps.get("stream")),
        *cells,
        written(gain(run), ".2 ×") if reference(run) == "stream" else "",
    ]


def predictions_table(works: Sequence[Work]) -> str:
    """Return how far off the predictions of each policy were, in all visits."""
    runs = [run for work in works for run in work.runs]
    rows = []
    for name in _POLICIES:
        errors = sorted(prediction_errors(runs, [name]))
        if errors:
            most = errors[ceil(0.9 * len(errors)) - 1]
            found = (statistics.median(errors), most, errors[-1])
            rows.append([name, str(len(errors)), *(written(error, ".1 %") for error in found)])
    return table(["policy", "steps", "median off by", "nine of ten within", "worst"], rows)


_AUDITED = {"weights": "models with streamed weights", "experts": "mixtures of experts"}


def exactness_table(files: Files) -> str:
    """Return what the newest checks of each machine found."""
    rows = []
    for (machine, name), (file, data) in sorted(checks_of(files).items()):
        page = f"[{file.parent}]({_FOLDER}/{file.parent}.md)"
        if "rows" in data:
            same = sum(bool(ok) for ok in data["rows"].values())
            cells = ["rows that come and go", f"{same} of {len(data['rows'])} policies", "", ""]
            rows.append([machine, *cells, page])
            continue
        for dtype in dict.fromkeys(one["dtype"] for one in data["audits"]):
            found = [one for one in data["audits"] if one["dtype"] == dtype]
            rows.append([machine, *_audited(name, dtype, found), page])
    head = [
        "machine",
        "check",
        "passed",
        "tokens",
        "worst logit error, of what is allowed",
        "all of it",
    ]
    return table(head, rows)


def _audited(name: str, dtype: str, audits: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{_AUDITED.get(name, 'models')}, {dtype}"
    yield f"{sum(one['passed'] for one in audits)} of {len(audits)}"
    same = sum(all(way["tokens_identical"] for way in one["results"]) for one in audits)
    yield f"identical in {same}" + (", near ties in the others" if same < len(audits) else "")
    worst = max(
        way["max_logit_error"] / one["tolerance"] for one in audits for way in one["results"]
    )
    yield written(worst, ".0 %")
