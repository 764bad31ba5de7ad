"""The data inside a timeline page: compact, and readable back to timelines.

Steps repeat the same operations, so an operation is written once and a span only refers to it.
Times are whole nanoseconds since the timeline's first start; starts are written as differences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from headrace.report.palette import LOOKS, look_of
from headrace.report.panels import (
    LANE_ROWS,
    MACHINE_ROWS,
    ORIGIN_WORDS,
    Panel,
    Row,
    panels_of,
    step_s,
    steps_of,
)
from headrace.timeline import Lane, Origin, Span, Timeline


def page_data(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Return everything that the page's script draws, JSON-compatible."""
    present = {(span.kind, span.lane) for timeline in timelines for span in timeline.spans}
    lanes = list(Lane)
    order = [*LOOKS, *sorted({kind for kind, _ in present} - set(LOOKS))]
    first_lane = dict(sorted(present, key=lambda pair: lanes.index(pair[1]), reverse=True))
    kinds = [kind for kind in order if kind in first_lane]
    looks = [look_of(kind, first_lane[kind]) for kind in kinds]
    return {
        "kinds": [
            {
                "kind": kind,
                "name": look.name,
                "short": look.short,
                "light": look.light,
                "dark": look.dark,
                "hatching": look.hatching,
            }
            for kind, look in zip(kinds, looks, strict=True)
        ],
        "lanes": [lane.value for lane in lanes],
        "panels": [_panel_data(panel, kinds) for panel in panels_of(timelines)],
    }


def embed(data: dict[str, Any]) -> str:
    """Return JSON that may stand in a script tag: no ``<`` can end the tag or open a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def timelines_in(data: dict[str, Any]) -> tuple[Timeline, ...]:
    """Return the timelines that ``page_data`` wrote, to the nanosecond, spans by their start."""
    kinds = [entry["kind"] for entry in data["kinds"]]
    lanes = [Lane(lane) for lane in data["lanes"]]
    return tuple(
        _read_timeline(entry, panel["label"], kinds, lanes)
        for panel in data["panels"]
        for entry in panel["timelines"]
    )


def _panel_data(panel: Panel, kinds: Sequence[str]) -> dict[str, Any]:
    return {
        "label": panel.label,
        "rows": {
            "machine": _rows_data(panel, MACHINE_ROWS),
            "lanes": _rows_data(panel, LANE_ROWS),
        },
        "timelines": [_timeline_data(timeline, kinds) for timeline in panel.timelines],
    }


def _rows_data(panel: Panel, rows: Sequence[Row]) -> list[dict[str, Any]]:
    lanes = list(Lane)
    return [
        {
            "name": row.name,
            "lanes": [lanes.index(lane) for lane in row.lanes],
            "shares": [round(each.busy_share(row.lanes), 6) for each in panel.timelines],
        }
        for row in panel.rows(rows)
    ]


def _timeline_data(timeline: Timeline, kinds: Sequence[str]) -> dict[str, Any]:
    origin_s = timeline.start_s
    lane_index = {lane: index for index, lane in enumerate(Lane)}
    kind_index = {kind: index for index, kind in enumerate(kinds)}
    operations: dict[tuple[int, ...], int] = {}
    spans: list[int] = []
    reached_ns = 0
    for span in sorted(timeline.spans, key=lambda each: (each.start_s, lane_index[each.lane])):
        operation = (
            lane_index[span.lane],
            kind_index[span.kind],
            span.layer,
            span.granule,
            span.size_bytes,
            span.flops,
        )
        number = operations.setdefault(operation, len(operations))
        start_ns = _ns(span.start_s - origin_s)
        duration_ns = _ns(span.finish_s - origin_s) - start_ns
        spans += (number, span.step, start_ns - reached_ns, duration_ns)
        reached_ns = start_ns
    return {
        "origin": timeline.origin.value,
        "words": ORIGIN_WORDS[timeline.origin],
        "start_s": origin_s,
        "step_s": step_s(timeline),
        "steps": [
            [step.number, _ns(step.start_s - origin_s), _ns(step.finish_s - origin_s)]
            for step in steps_of(timeline)
        ],
        "operations": [list(operation) for operation in operations],
        "spans": spans,
    }


def _read_timeline(
    entry: dict[str, Any], label: str, kinds: Sequence[str], lanes: Sequence[Lane]
) -> Timeline:
    spans: list[Span] = []
    numbers = entry["spans"]
    start_ns = 0
    for at in range(0, len(numbers), 4):
        operation, step, difference_ns, duration_ns = numbers[at : at + 4]
        lane, kind, layer, granule, size_bytes, flops = entry["operations"][operation]
        start_ns += difference_ns
        start_s = entry["start_s"] + start_ns * 1e-9
        finish_s = entry["start_s"] + (start_ns + duration_ns) * 1e-9
        spans.append(
            Span(
                lanes[lane], kinds[kind], step, layer, granule, start_s, finish_s, size_bytes, flops
            )
        )
    return Timeline(Origin(entry["origin"]), label, tuple(spans))


def _ns(duration_s: float) -> int:
    return round(duration_s * 1e9)
