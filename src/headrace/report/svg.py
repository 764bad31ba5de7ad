"""A still picture of timelines, for documents: SVG on a white card, readable on any page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil

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
from headrace.report.svg_parts import (
    FONT,
    GAP,
    INK,
    LABELS,
    LINE,
    MARGIN,
    SOFT,
    TRACK,
    Axis,
    bars_of,
    legend_of,
    number,
    patterns_of,
    text_at,
    time_axis,
)
from headrace.timeline import Origin, Timeline
from headrace.units import format_seconds


def timeline_svg(
    timelines: Sequence[Timeline],
    *,
    width: int = 960,
    title: str = "What the link and the GPU do, over time",
    captions: Mapping[str, str] | None = None,
    window_s: float | None = None,
    by_lane: bool = False,
    speeds: Mapping[str, str] | None = None,
    compact: bool = False,
    inline: bool = False,
) -> str:
    """Return a picture of timelines, stacked over one time axis.

    Args:
        timelines: what to draw; those of one label and different origin share a panel.
        width: of the picture, in pixels.
        title: what the picture shows, for those who do not see it.
        captions: a line of words for a panel, by its label.
        window_s: draw only this many seconds from the start (default: all).
        by_lane: draw a row for each lane instead of one for each part of the machine.
        speeds: what is said of a panel's speed, by its label, instead of its step's time.
        compact: write names over the rows instead of beside them, for narrow pictures.
        inline: leave out card and fills, for a page that has ``svg_parts.themed_patterns``.
    """
    words = _Words(by_lane, compact, captions or {}, speeds or {})
    shown = [timeline for timeline in timelines if timeline.spans]
    seconds = window_s or max((timeline.duration_s for timeline in shown), default=0.0) or 1.0
    labels = 0 if compact else LABELS
    axis = Axis(MARGIN + labels, width - 2 * MARGIN - labels, seconds)
    parts: list[str] = []
    y = float(MARGIN)
    panels = panels_of(timelines)
    for panel in panels:
        drawn, y = _panel(panel, panels[0], axis, y, words)
        parts += [f"<g><title>{escape(_summary(panel))}</title>", *drawn, "</g>"]
        y += 16
    if not shown:
        parts.append(text_at(MARGIN, y + 14, "There are no operations to show."))
        y += 40
    else:
        grid, y = time_axis(axis, y - 6)
        legend, y = legend_of(shown, width, y + 20)
        parts = [*grid, *parts, *legend]
    height = ceil(y + MARGIN - 6)
    description = escape(" ".join(_summary(panel) for panel in panels))
    if inline:
        inset = 2 if compact else MARGIN // 2
        box = f"{inset} {inset} {width - 2 * inset} {height - 2 * inset}"
        return (
            f'<svg viewBox="{box}" role="img" font-size="12" '
            f'aria-label="{escape(title)}. {description}">{"".join(parts)}</svg>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-family="{FONT}" font-size="12">'
        f"<title>{escape(title)}</title><desc>{description}</desc>{patterns_of(shown)}"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" fill="#ffffff" '
        f'stroke="{LINE}"/>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Words:
    """What is written into panels, and where."""

    by_lane: bool
    compact: bool
    captions: Mapping[str, str]
    speeds: Mapping[str, str]


def _panel(
    panel: Panel, first: Panel, axis: Axis, y: float, words: _Words
) -> tuple[list[str], float]:
    """Draw one panel from ``y`` on; return its parts and where it ends."""
    speed = words.speeds.get(panel.label)
    speed = speed or "; ".join(_speed(timeline, first) for timeline in panel.timelines)
    right = axis.left + axis.width
    parts = [
        text_at(MARGIN, y + 13, panel.label, size=15, weight=600, halo=True),
        text_at(right, y + 13, speed, fill=SOFT, anchor="end", halo=True),
    ]
    y += 22
    caption = words.captions.get(panel.label)
    if caption:
        parts.append(text_at(MARGIN, y + 11, caption, fill=SOFT, halo=True))
        y += 20
    half = 30 if len(panel.timelines) == 1 else 20
    for row in panel.rows(LANE_ROWS if words.by_lane else MACHINE_ROWS):
        height = (half + 2) * len(panel.timelines) - 2
        middle = y + 12 if words.compact else y + height / 2 + 4
        parts.append(text_at(MARGIN, middle, row.name, weight=600, halo=words.compact))
        y += 17 if words.compact else 0
        for timeline in panel.timelines:
            share = f"{100 * timeline.busy_share(row.lanes):.0f} %"
            word = "busy" if len(panel.timelines) == 1 else timeline.origin.value
            at = (right, y - 5) if words.compact else (axis.left - 10, y + half / 2 + 4)
            parts.append(
                text_at(
                    *at, f"{word} {share}", fill=SOFT, anchor="end", size=11, halo=words.compact
                )
            )
            parts += _track(timeline, row, axis, y, half)
            y += half + 2
        y += GAP - 2
    return parts, y - GAP


def _track(timeline: Timeline, row: Row, axis: Axis, y: float, height: float) -> list[str]:
    """Draw one timeline's row: the track for as long as the timeline lasts, bars, step marks."""
    start, finish = axis.left, axis.x(timeline.duration_s)
    parts = [
        f'<rect x="{start}" y="{y:g}" width="{number(finish - start)}" height="{height}" rx="2" '
        f'fill="{TRACK}"/>'
    ]
    spans = sorted(timeline.select(row.lanes), key=lambda span: span.start_s)
    parts += bars_of(spans, timeline.start_s, axis, y, height)
    for step in steps_of(timeline)[1:]:
        x = axis.x(step.start_s - timeline.start_s)
        parts.append(f'<path d="M{number(x)} {y - 2:g}v{height + 4:g}" stroke="{INK}"/>')
    return parts


def _speed(timeline: Timeline, first: Panel) -> str:
    """Return a timeline's time in words, and how it compares with the first panel's."""
    time_s = step_s(timeline)
    if time_s is None:
        return ORIGIN_WORDS[timeline.origin]
    each = " a step" if len(timeline.steps) > 1 else ""
    words = f"{ORIGIN_WORDS[timeline.origin]}: {format_seconds(time_s)}{each}"
    reference_s = _reference_s(first, timeline.origin)
    if first.label != timeline.label and reference_s and time_s:
        words += f", {reference_s / time_s:.2f} × the speed of {first.label}"
    return words


def _reference_s(first: Panel, origin: Origin) -> float | None:
    same = (timeline for timeline in first.timelines if timeline.origin is origin)
    return next((step_s(timeline) for timeline in same), None)


def _summary(panel: Panel) -> str:
    """Return a panel in words."""
    sentences = []
    for timeline in panel.timelines:
        shares = ", ".join(
            f"{row.name} busy {100 * timeline.busy_share(row.lanes):.0f} %"
            for row in panel.rows(MACHINE_ROWS)
        )
        length = format_seconds(timeline.duration_s)
        sentences.append(f"{panel.label}, {ORIGIN_WORDS[timeline.origin]}: {length}; {shares}.")
    return " ".join(sentences)
