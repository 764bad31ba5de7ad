"""One self-contained HTML page that shows what ran when: zoomable, printable, without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from headrace.report.html_parts import facts_html, page_html, table_html
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
    return page_html(
        "timeline.html",
        title=title,
        styles=("timeline.css",),
        scripts=_SCRIPTS,
        lead=escape(f"{_LEAD} {_LEAD_PAIR}" if paired else _LEAD),
        facts=facts_html(facts),
        table=_figures(table or ()),
        picture=timeline_svg(timelines),
        data=embed(page_data(timelines)),
    )


def read_timeline_page(path: str | Path) -> tuple[Timeline, ...]:
    """Return the timelines inside a page that ``write_timeline_page`` wrote."""
    page = Path(path).read_text("utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    if match is None:
        raise ValueError(f"{path} is not a timeline page: it has no data")
    return timelines_in(json.loads(match[1]))


def _figures(rows: Sequence[Mapping[str, object]]) -> str:
    table = table_html(rows)
    return f'<section class="figures" aria-label="Figures">{table}</section>' if table else ""
