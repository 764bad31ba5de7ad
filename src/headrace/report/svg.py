"""A still picture of timelines, for documents: SVG on a white card, readable on any page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from headrace.report.palette import LOOKS, Look, look_of
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
from headrace.timeline import Origin, Span, Timeline
from headrace.units import format_seconds

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_INK, _SOFT, _LINE, _TRACK = "#1b1f27", "#5c6472", "#d9dde4", "#eef0f4"
_MARGIN, _LABELS, _GAP = 20, 176, 8
_LEAST_SHARE = 0.002
_HATCHING = {
    "diagonal": "M-2 8L8 -2M-2 2L2 -2M4 8L8 4",
    "back": "M-2 -2L8 8M4 -2L8 2M-2 4L2 8",
    "dots": "M1 1h1.6v1.6h-1.6zM4 4h1.6v1.6h-1.6z",
    "cross": "M0 3H6M3 0V6",
    "horizontal": "M0 3H6",
    "vertical": "M3 0V6",
}


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a time is drawn: ``x = left + time × scale``."""

    left: float
    width: float
    seconds: float

    def x(self, time_s: float) -> float:
        return self.left + min(max(time_s / self.seconds, 0.0), 1.0) * self.width

    def ticks(self) -> list[float]:
        """Return round times, at least 70 pixels apart."""
        rough = self.seconds * 70 / self.width
        power = 10.0 ** floor(log10(rough))
        unit = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [unit * n for n in range(floor(self.seconds / unit * (1 + 1e-9)) + 1)]


def timeline_svg(
    timelines: Sequence[Timeline],
    *,
    width: int = 960,
    title: str = "What the link and the GPU do, over time",
    captions: Mapping[str, str] | None = None,
    window_s: float | None = None,
    by_lane: bool = False,
) -> str:
    """Return a picture of timelines, stacked over one time axis.

    Args:
        timelines: what to draw; those of one label and different origin share a panel.
        width: of the picture, in pixels.
        title: what the picture shows, for those who do not see it.
        captions: a line of words for a panel, by its label.
        window_s: draw only this many seconds from the start (default: all).
        by_lane: draw a row for each lane instead of one for each part of the machine.
    """
    shown = [timeline for timeline in timelines if timeline.spans]
    seconds = window_s or max((timeline.duration_s for timeline in shown), default=0.0) or 1.0
    axis = _Axis(_MARGIN + _LABELS, width - 2 * _MARGIN - _LABELS, seconds)
    parts: list[str] = []
    y = float(_MARGIN)
    panels = panels_of(timelines)
    for panel in panels:
        drawn, y = _panel(panel, panels[0], axis, y, (captions or {}).get(panel.label), by_lane)
        parts += [f"<g><title>{escape(_summary(panel))}</title>", *drawn, "</g>"]
        y += 16
    if not shown:
        parts.append(_text(_MARGIN, y + 14, "There are no operations to show."))
        y += 40
    else:
        grid, y = _time_axis(axis, y - 6)
        legend, y = _legend(shown, width, y + 20)
        parts = [*grid, *parts, *legend]
    height = ceil(y + _MARGIN - 6)
    description = escape(" ".join(_summary(panel) for panel in panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-family="{_FONT}" font-size="12">'
        f"<title>{escape(title)}</title><desc>{description}</desc>{_patterns(shown)}"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" fill="#ffffff" '
        f'stroke="{_LINE}"/>{"".join(parts)}</svg>'
    )


def _panel(
    panel: Panel, first: Panel, axis: _Axis, y: float, caption: str | None, by_lane: bool
) -> tuple[list[str], float]:
    """Draw one panel from ``y`` on; return its parts and where it ends."""
    words = "; ".join(_speed(timeline, first) for timeline in panel.timelines)
    right = axis.left + axis.width
    parts = [
        _text(_MARGIN, y + 13, panel.label, size=15, weight=600, halo=True),
        _text(right, y + 13, words, fill=_SOFT, anchor="end", halo=True),
    ]
    y += 22
    if caption:
        parts.append(_text(_MARGIN, y + 11, caption, fill=_SOFT, halo=True))
        y += 20
    half = 30 if len(panel.timelines) == 1 else 20
    for row in panel.rows(LANE_ROWS if by_lane else MACHINE_ROWS):
        height = (half + 2) * len(panel.timelines) - 2
        parts.append(_text(_MARGIN, y + height / 2 + 4, row.name, weight=600))
        for timeline in panel.timelines:
            share = f"{100 * timeline.busy_share(row.lanes):.0f} %"
            word = "busy" if len(panel.timelines) == 1 else timeline.origin.value
            middle = y + half / 2 + 4
            parts.append(
                _text(axis.left - 10, middle, f"{word} {share}", fill=_SOFT, anchor="end", size=11)
            )
            parts += _track(timeline, row, axis, y, half)
            y += half + 2
        y += _GAP - 2
    return parts, y - _GAP


def _track(timeline: Timeline, row: Row, axis: _Axis, y: float, height: float) -> list[str]:
    """Draw one timeline's row: the track for as long as the timeline lasts, bars, step marks."""
    start, finish = axis.left, axis.x(timeline.duration_s)
    parts = [
        f'<rect x="{start}" y="{y:g}" width="{_n(finish - start)}" height="{height}" rx="2" '
        f'fill="{_TRACK}"/>'
    ]
    spans = sorted(timeline.select(row.lanes), key=lambda span: span.start_s)
    parts += _bars(spans, timeline.start_s, axis, y, height)
    for step in steps_of(timeline)[1:]:
        x = axis.x(step.start_s - timeline.start_s)
        parts.append(f'<path d="M{_n(x)} {y - 2:g}v{height + 4:g}" stroke="{_INK}"/>')
    return parts


def _bars(
    spans: Sequence[Span], origin_s: float, axis: _Axis, y: float, height: float
) -> list[str]:
    """Draw spans: a path for each kind. What is narrower than a pixel adds to its column's height.

    So the coloured area is the busy time at every width.
    """
    paths: dict[Look, list[str]] = defaultdict(list)
    columns: dict[int, dict[Look, float]] = defaultdict(lambda: defaultdict(float))
    words: list[str] = []
    for span in spans:
        if span.start_s - origin_s >= axis.seconds:
            continue
        look = look_of(span.kind, span.lane)
        low, high = axis.x(span.start_s - origin_s), axis.x(span.finish_s - origin_s)
        if high - low < 1:
            _spread(columns, look, low, high)
            continue
        bar = high - low - (0.6 if high - low > 3 else 0)
        paths[look].append(f"M{_n(low)} {y:g}h{_n(bar)}v{height}h-{_n(bar)}z")
        word = _word(look, span, bar)
        if word:
            middle = (low + high) / 2
            words.append(_text(middle, y + height / 2 + 4, word, fill=look.ink, anchor="middle"))
    for x in sorted(columns):
        base = y + height
        for look, part in columns[x].items():
            tall = min(part * height, base - y)
            paths[look].append(f"M{x} {_n(base)}h1v-{_n(tall)}h-1z")
            base -= tall
    bars = [
        f'<path fill="url(#{_pattern_id(look)})" d="{"".join(d)}"/>' for look, d in paths.items()
    ]
    return bars + words


def _spread(columns: dict[int, dict[Look, float]], look: Look, low: float, high: float) -> None:
    """Add a bar of less than a pixel to the one or two pixel columns that it covers."""
    edge = floor(low) + 1
    columns[edge - 1][look] += min(high, edge) - low
    if high > edge:
        columns[edge][look] += high - edge


def _word(look: Look, span: Span, bar: float) -> str:
    """Return what fits into a bar: the kind and layer, the kind, or nothing."""
    full = f"{look.short}, layer {span.layer}" if span.layer >= 0 else look.short
    return next((word for word in (full, look.short) if len(word) * 7 + 6 <= bar), "")


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


def _time_axis(axis: _Axis, y: float) -> tuple[list[str], float]:
    """Draw grid lines from the top to ``y`` and the times under them."""
    ticks = axis.ticks()
    unit, scale = next(
        (pair for pair in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if ticks[-1] * pair[1] >= 1),
        ("ns", 1e9),
    )
    lines = "".join(f"M{_n(axis.x(tick))} {_MARGIN + 26}V{_n(y)}" for tick in ticks)
    parts = [f'<path d="{lines}" stroke="{_LINE}" stroke-width=".75" stroke-dasharray="2 3"/>']
    for tick in ticks:
        text = f"{tick * scale:g}" if tick else f"0 {unit}"
        parts.append(_text(axis.x(tick), y + 14, text, fill=_SOFT, anchor="middle", size=11))
    return parts, y + 16


def _looks(timelines: Sequence[Timeline], least_share: float = 0.0) -> list[Look]:
    """Return the looks that the timelines use, in the order of the legend.

    Args:
        timelines: what is drawn.
        least_share: leave out what never takes this share of its timeline: it is too thin to see.
    """
    shares: dict[Look, float] = defaultdict(float)
    for timeline in timelines:
        totals: dict[Look, float] = defaultdict(float)
        for span in timeline.spans:
            totals[look_of(span.kind, span.lane)] += span.duration_s
        for look, total_s in totals.items():
            shares[look] = max(shares[look], total_s / (timeline.duration_s or 1.0))
    known = list(LOOKS.values())
    used = [look for look, share in shares.items() if share >= least_share]
    return sorted(used, key=lambda look: (known.index(look) if look in known else 99, look.name))


def _legend(timelines: Sequence[Timeline], width: float, y: float) -> tuple[list[str], float]:
    parts: list[str] = []
    x = float(_MARGIN)
    for look in _looks(timelines, _LEAST_SHARE):
        advance = 24 + 6.6 * len(look.name) + 16
        if x + advance > width - _MARGIN + 16:
            x, y = float(_MARGIN), y + 20
        parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="18" height="12" rx="2" '
            f'fill="url(#{_pattern_id(look)})"/>'
        )
        parts.append(_text(x + 24, y + 10, look.name, fill=_SOFT))
        x += advance
    return parts, y + 14


def _patterns(timelines: Sequence[Timeline]) -> str:
    patterns = []
    for look in _looks(timelines):
        lines = _HATCHING.get(look.hatching)
        hatch = (
            f'<path d="{lines}" stroke="#fff" stroke-opacity=".5" fill="none"/>' if lines else ""
        )
        patterns.append(
            f'<pattern id="{_pattern_id(look)}" width="6" height="6" '
            f'patternUnits="userSpaceOnUse"><rect width="6" height="6" fill="{look.light}"/>'
            f"{hatch}</pattern>"
        )
    return f"<defs>{''.join(patterns)}</defs>"


def _pattern_id(look: Look) -> str:
    return f"hr-{look.light[1:]}-{look.hatching}"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    fill: str = _INK,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    halo: bool = False,
) -> str:
    style = "" if size == 12 else f' font-size="{size}"'
    style += "" if weight == 400 else f' font-weight="{weight}"'
    style += "" if anchor == "start" else f' text-anchor="{anchor}"'
    style += ' stroke="#fff" stroke-width="4" paint-order="stroke"' if halo else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" fill="{fill}"{style}>{escape(text)}</text>'


def _n(value: float) -> str:
    """Return a coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
