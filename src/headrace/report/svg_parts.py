"""What a still picture is made of: time axis, bars, legend, words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from headrace.report.palette import LOOKS, Look, look_of
from headrace.timeline import Span, Timeline

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, SOFT, LINE, TRACK = "#1b1f27", "#5c6472", "#d9dde4", "#eef0f4"
MARGIN, LABELS, GAP = 20, 176, 8
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
class Axis:
    """Where a time is drawn: ``x = left + time × scale``."""

    left: float
    width: float
    seconds: float

    def x(self, time_s: float) -> float:
        """Return where a time is drawn; what lies outside is drawn at the border."""
        return self.left + min(max(time_s / self.seconds, 0.0), 1.0) * self.width

    def ticks(self) -> list[float]:
        """Return round times, at least 70 pixels apart."""
        rough = self.seconds * 70 / self.width
        power = 10.0 ** floor(log10(rough))
        unit = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [unit * n for n in range(floor(self.seconds / unit * (1 + 1e-9)) + 1)]


def bars_of(
    spans: Sequence[Span], origin_s: float, axis: Axis, y: float, height: float
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
        paths[look].append(f"M{number(low)} {y:g}h{number(bar)}v{height}h-{number(bar)}z")
        word = _word(look, span, bar)
        if word:
            middle = (low + high) / 2
            words.append(
                text_at(
                    middle, y + height / 2 + 4, word, fill=look.ink, anchor="middle", role="bar"
                )
            )
    for x in sorted(columns):
        base = y + height
        for look, part in columns[x].items():
            tall = min(part * height, base - y)
            paths[look].append(f"M{x} {number(base)}h1v-{number(tall)}h-1z")
            base -= tall
    bars = [f'<path fill="{fill_of(look)}" d="{"".join(d)}"/>' for look, d in paths.items()]
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


def time_axis(axis: Axis, y: float) -> tuple[list[str], float]:
    """Draw grid lines from the top to ``y`` and the times under them."""
    ticks = axis.ticks()
    unit, scale = next(
        (pair for pair in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if ticks[-1] * pair[1] >= 1),
        ("ns", 1e9),
    )
    lines = "".join(f"M{number(axis.x(tick))} {MARGIN + 26}V{number(y)}" for tick in ticks)
    parts = [f'<path d="{lines}" stroke="{LINE}" stroke-width=".75" stroke-dasharray="2 3"/>']
    for tick in ticks:
        text = f"{tick * scale:g}" if tick else f"0 {unit}"
        parts.append(text_at(axis.x(tick), y + 14, text, fill=SOFT, anchor="middle", size=11))
    return parts, y + 16


def looks_of(timelines: Sequence[Timeline], least_share: float = 0.0) -> list[Look]:
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


def legend_of(timelines: Sequence[Timeline], width: float, y: float) -> tuple[list[str], float]:
    """Draw the legend from ``y`` on; return its parts and where it ends."""
    parts: list[str] = []
    x = float(MARGIN)
    for look in looks_of(timelines, _LEAST_SHARE):
        advance = 24 + 6.6 * len(look.name) + 16
        if x + advance > width - MARGIN + 16:
            x, y = float(MARGIN), y + 20
        parts.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="18" height="12" rx="2" '
            f'fill="{fill_of(look)}"/>'
        )
        parts.append(text_at(x + 24, y + 10, look.name, fill=SOFT))
        x += advance
    return parts, y + 14


def patterns_of(timelines: Sequence[Timeline]) -> str:
    """Return the definitions of the fills that the timelines use."""
    patterns = []
    for look in looks_of(timelines):
        hatch = _hatch(look, 'stroke="#fff" stroke-opacity=".5"')
        patterns.append(_pattern(look, f'fill="{look.light}"', hatch))
    return f"<defs>{''.join(patterns)}</defs>"


def themed_patterns(looks: Iterable[Look]) -> str:
    """Return definitions of fills whose colours a page's style chooses.

    Each has its colours as custom properties ``--light`` and ``--dark``, and the classes ``fill``
    and ``hatch``.
    """
    patterns = []
    for look in dict.fromkeys(looks):
        colours = f'class="fill" style="--light:{look.light};--dark:{look.dark}"'
        patterns.append(_pattern(look, colours, _hatch(look, 'class="hatch"')))
    return f"<defs>{''.join(patterns)}</defs>"


def fill_of(look: Look) -> str:
    """Return the fill of a look, where its pattern is defined."""
    return f"url(#{_pattern_id(look)})"


def _pattern(look: Look, colour: str, hatch: str) -> str:
    return (
        f'<pattern id="{_pattern_id(look)}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" {colour}/>{hatch}</pattern>'
    )


def _hatch(look: Look, stroke: str) -> str:
    lines = _HATCHING.get(look.hatching)
    return f'<path d="{lines}" {stroke} fill="none"/>' if lines else ""


def _pattern_id(look: Look) -> str:
    return f"hr-{look.light[1:]}-{look.hatching}"


def text_at(
    x: float,
    y: float,
    text: str,
    *,
    fill: str = INK,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    halo: bool = False,
    role: str = "",
) -> str:
    """Return a line of text; a halo keeps lines behind it off the letters, a role is its class."""
    style = "" if size == 12 else f' font-size="{size}"'
    style += "" if weight == 400 else f' font-weight="{weight}"'
    style += "" if anchor == "start" else f' text-anchor="{anchor}"'
    style += ' stroke="#fff" stroke-width="4" paint-order="stroke"' if halo else ""
    style += f' class="{role}"' if role else ""
    return f'<text x="{number(x)}" y="{number(y)}" fill="{fill}"{style}>{escape(text)}</text>'


def number(value: float) -> str:
    """Return a coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
