"""One self-contained HTML page that shows what ran when: zoomable, printable, without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from headrace.report.page_data import embed, page_data, timelines_in
from headrace.report.panels import panels_of
from headrace.report.svg import timeline_svg
from headrace.timeline import Timeline

_LEAD = (
    "Each picture shows one way of using a KV cache that lives in host memory: on top the link "
    "that feeds the GPU, under it the GPU’s own work, all on one time axis. A row without gaps is "
    "the bottleneck; the pale track is time spent waiting."
)
_LEAD_PAIR = (
    "Where a row is double, the upper half is what the plan predicted and the lower half what was "
    "measured, aligned at the start of a step."
)
_SCRIPTS = ("data.js", "draw.js", "view.js", "point.js", "page.js")
_NUMERIC = tuple("0123456789+-−")


def write_timeline_page(
    path: str | Path,
    timelines: Sequence[Timeline],
    *,
    title: str,
    facts: Mapping[str, str],
    table: Sequence[Mapping[str, object]] | None = None,
) -> None:
    """Write timelines as one HTML page that needs nothing but a browser.

    Timelines of the same label and different origin (predicted, measured) share a panel; panels
    are stacked in the order given, and speeds are compared with the first one.

    Args:
        path: the file to write.
        timelines: what to show; may be empty.
        title: the page's title.
        facts: what a reader should know of the run (model, hardware, workload), by name.
        table: figures for a table under the pictures: a mapping a row, whose keys are the columns.
    """
    Path(path).write_text(timeline_page(timelines, title=title, facts=facts, table=table), "utf-8")


def timeline_page(
    timelines: Sequence[Timeline],
    *,
    title: str,
    facts: Mapping[str, str],
    table: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """Return the page that ``write_timeline_page`` writes."""
    paired = any(len(panel.timelines) > 1 for panel in panels_of(timelines))
    return Template(_asset("timeline.html")).substitute(
        title=escape(title),
        style=_asset("timeline.css"),
        lead=escape(f"{_LEAD} {_LEAD_PAIR}" if paired else _LEAD),
        facts=_facts(facts),
        table=_table(table or ()),
        picture=timeline_svg(timelines),
        data=embed(page_data(timelines)),
        script="\n".join(_asset(name) for name in _SCRIPTS),
    )


def read_timeline_page(path: str | Path) -> tuple[Timeline, ...]:
    """Return the timelines inside a page that ``write_timeline_page`` wrote."""
    page = Path(path).read_text("utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    if match is None:
        raise ValueError(f"{path} is not a timeline page: it has no data")
    return timelines_in(json.loads(match[1]))


def _asset(name: str) -> str:
    return files("headrace").joinpath("assets", "report", name).read_text("utf-8")


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    numeric = {column for column in columns if all(_is_number(row.get(column)) for row in rows)}
    head = "".join(
        f'<th scope="col"{_align(column in numeric)}>{escape(str(column))}</th>'
        for column in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_align(column in numeric)}>{escape(_words(row.get(column)))}</td>"
            for column in columns
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<section class="figures" aria-label="Figures"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>"
    )


def _align(number: bool) -> str:
    return ' class="number"' if number else ""


def _is_number(value: object) -> bool:
    """Return whether a cell is a number, a text that starts with one, or empty."""
    return value is None or (not isinstance(value, bool) and _words(value)[:1] in _NUMERIC)


def _words(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
    return str(value)
