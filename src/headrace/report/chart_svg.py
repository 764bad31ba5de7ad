"""Line charts as SVG, with what a pointer reads out.

Colours are custom properties, so that a page's style decides between light and dark; curves are
told apart by dashes and markers too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from headrace.report.chart import Chart, Point, Series
from headrace.report.chart_labels import Label, Room, arrange, free_place, rows_of, text_width
from headrace.report.chart_scale import Scale
from headrace.report.palette import LineStyle, marker_path
from headrace.report.svg_parts import number

_TOP, _ROW, _BOTTOM = 42.0, 17.0, 46.0
_RIGHT = 16.0
_MOST_RIGHT = 0.36
_X_GAP, _Y_GAP = 62.0, 40.0
_NARROW = 480
_NEAR_END = 0.8
_PARTS, _WORDS = 8, 40


def chart_svg(chart: Chart, width: int, height: int) -> str:
    """Return a chart.

    Args:
        chart: what it shows.
        width: of the picture in pixels; words have the same size at every width.
        height: the same.
    """
    drawing = _Drawing(chart, width, height)
    parts = [*drawing.axes(), *drawing.behind()]
    for series in chart.series:
        parts += drawing.curve(series)
    parts += [*drawing.names(), *drawing.spots()]
    if not any(series.all_points for series in chart.series):
        middle = (drawing.x.start + drawing.x.finish) / 2
        parts.append(_text(middle, height / 2, chart.empty, "ink halo", anchor="middle"))
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" tabindex="0" '
        f'font-size="12" aria-label="{escape(chart.description)}" '
        f'data-readout="{escape(drawing.readout())}" data-top="{drawing.y.finish:g}" '
        f'data-bottom="{drawing.y.start:g}">{"".join(parts)}</svg>'
    )


class _Drawing:
    """One chart at one size: its scales, and everything on them."""

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart, self.width = chart, width
        points = [point for series in chart.series for point in series.all_points]
        levels = [mark.y for mark in chart.marks if mark.y is not None]
        ys = [*(point.y for point in points), *levels, *(spot.y for spot in chart.spots)]
        if chart.y.kind != "linear" and ys:
            ys = [min(ys) / 1.12, max(ys) * 1.12]
        elif ys:
            ys = [*ys, max(ys) * 1.06]
        trial = Scale.over(chart.y, ys, height - _BOTTOM, _TOP)
        written = [text_width(chart.y.write(tick), 11) for tick in trial.ticks(_Y_GAP)]
        left = max(written, default=0.0) + 12
        self.x = Scale.over(chart.x, [point.x for point in points], left, width - self._right())
        over = [(mark.label, self.x.at(mark.x)) for mark in chart.marks if mark.x is not None]
        if chart.shade is not None:
            over.append((chart.shade.label, self.x.at(chart.shade.x)))
        self.over = [
            (text, middle, row)
            for (text, _), (middle, row) in zip(over, rows_of(over, width), strict=True)
        ]
        top = _TOP + _ROW * max((row for _, _, row in self.over), default=0)
        self.y = Scale.over(chart.y, ys, height - _BOTTOM, top)
        self.room = Room(left + 4, width - 2, top + 4, height - _BOTTOM - 3, self._crossed)
        self.named = [series for series in chart.series if series.label and series.all_points]
        self.taken: list[tuple[float, float, float, float]] = []
        ends = [(series, *self.at(series.all_points[-1])) for series in self.named]
        self.labels = arrange(
            [Label(series.label, series.note, x, y) for series, x, y in ends], self.room
        )
        for label in self.labels:
            middle = label.y + label.moved
            self.taken.append((label.span[0], middle - 8, label.span[1], middle + label.below))

    def _right(self) -> float:
        """Return the pixels that names need on the right of the plot."""
        xs = [point.x for series in self.chart.series for point in series.all_points]
        trial = Scale.over(self.chart.x, xs, 0.0, 1.0)
        far = [
            series
            for series in self.chart.series
            if series.all_points and trial.at(series.all_points[-1].x) > _NEAR_END
        ]
        widths = [max(text_width(one.label), text_width(one.note, 11)) for one in far]
        return min(max([_RIGHT, *(width + 14 for width in widths)]), _MOST_RIGHT * self.width)

    def at(self, point: Point) -> tuple[float, float]:
        """Return where a point is drawn."""
        return self.x.at(point.x), self.y.at(point.y)

    def axes(self) -> Iterator[str]:
        """Yield the grid, the marked values and the titles."""
        left, right, bottom = self.x.start, self.x.finish, self.y.start
        y_ticks = self.y.ticks(_Y_GAP)
        lines = "".join(f"M{number(left)} {number(self.y.at(t))}H{number(right)}" for t in y_ticks)
        yield f'<path class="grid" d="{lines}"/>'
        for tick in y_ticks:
            words = self.chart.y.write(tick)
            yield _text(left - 7, self.y.at(tick) + 4, words, "soft", anchor="end", size=11)
        x_ticks = self.x.ticks(_X_GAP if self.width > _NARROW else 0.8 * _X_GAP)
        lines = "".join(f"M{number(self.x.at(t))} {number(bottom)}v5" for t in x_ticks)
        yield f'<path class="axis" d="M{number(left)} {number(bottom)}H{number(right)}{lines}"/>'
        for tick in x_ticks:
            words = self.chart.x.write(tick)
            yield _text(self.x.at(tick), bottom + 18, words, "soft", anchor="middle", size=11)
        yield _text(2, 13, self.chart.y.title, "soft")
        title = self.chart.x.title
        end = min(max(right, text_width(title) + 2), self.width)
        yield _text(end, bottom + 37, title, "soft", anchor="end")

    def behind(self) -> Iterator[str]:
        """Yield what lies behind the curves: what cannot be, and the lines across."""
        top, bottom = self.y.finish, self.y.start
        shade = self.chart.shade
        if shade is not None:
            x, wide = self.x.at(shade.x), self.x.finish - self.x.at(shade.x)
            yield (
                f'<rect class="void" x="{number(x)}" y="{top:g}" width="{number(wide)}" '
                f'height="{number(bottom - top)}" fill="url(#void)"/>'
            )
            yield f'<path class="edge" d="M{number(x)} {top - 4:g}V{number(bottom)}"/>'
        for mark in self.chart.marks:
            kind = "mark strong" if mark.strong else "mark"
            if mark.x is not None:
                down = f"M{number(self.x.at(mark.x))} {top - 4:g}V{number(bottom)}"
                yield f'<path class="{kind}" d="{down}"/>'
            if mark.y is not None:
                y = self.y.at(mark.y)
                across = f"M{number(self.x.start)} {number(y)}H{number(self.x.finish)}"
                yield f'<path class="{kind}" d="{across}"/>'
                yield _text(self.x.finish - 4, y - 5, mark.label, "ink halo", anchor="end")
        for text, middle, row in self.over:
            yield _text(middle, top - 9 - _ROW * row, text, "ink halo", anchor="middle")

    def curve(self, series: Series) -> Iterator[str]:
        """Yield a curve."""
        style = series.style
        kind = "series" + (" strong" if series.strong else "") + (" faint" if series.faint else "")
        yield f'<g class="{kind}" style="{_colours(style)}">'
        thin, thick = (
            "".join(self._line(run) for run in runs) for runs in (series.thin, series.thick)
        )
        if thin:
            yield f'<path class="thin" d="{thin}"/>'
        if thick:
            dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
            yield f'<path class="line"{dash} d="{thick}"/>'
        size = 4.4 if series.strong else 3.8
        markers = "".join(
            marker_path(style.marker, *self.at(point), size) for point in series.points
        )
        if markers:
            yield f'<path class="marker" d="{markers}"/>'
        if series.ended and series.all_points:
            cross = marker_path("cross", *self.at(series.all_points[-1]), 5.5)
            yield f'<path class="cross" d="{cross}"/>'
        yield "</g>"

    def _line(self, points: Sequence[Point]) -> str:
        places = [f"{number(x)} {number(y)}" for x, y in map(self.at, points)]
        return f"M{'L'.join(places)}" if len(places) > 1 else ""

    def _crossed(self, left: float, top: float, right: float, bottom: float) -> int:
        """Return how many of some points of all curves lie in a box; words count as many."""
        crossed = 0
        for box in self.taken:
            beside = box[0] < right and left < box[2]
            crossed += _WORDS * (beside and box[1] < bottom and top < box[3])
        for series in self.chart.series:
            for one, other in pairwise(map(self.at, series.all_points)):
                for part in range(_PARTS + 1):
                    x = one[0] + (other[0] - one[0]) * part / _PARTS
                    y = one[1] + (other[1] - one[1]) * part / _PARTS
                    crossed += left < x < right and top < y < bottom
        return crossed

    def spots(self) -> Iterator[str]:
        """Yield the circled points."""
        places = [(self.x.at(spot.x), self.y.at(spot.y)) for spot in self.chart.spots]
        self.taken += [(x - 9, y - 9, x + 9, y + 9) for x, y in places]
        for spot, (x, y) in zip(self.chart.spots, places, strict=True):
            left, base = free_place(spot.label, x, y, self.room)
            self.taken.append((left, base - 11, left + text_width(spot.label), base + 4))
            yield (
                f'<g class="name" style="{_colours(spot.style)}">'
                f'<path class="ring" d="{marker_path("circle", x, y, 8)}"/>'
                f'<text class="halo" x="{number(left)}" y="{number(base)}">{escape(spot.label)}'
                "</text></g>"
            )

    def names(self) -> Iterator[str]:
        """Yield the names beside the curves' ends."""
        for series, label in zip(self.named, self.labels, strict=True):
            x = label.x - 8 if label.left else label.x + 8
            y = label.y + label.moved
            yield f'<g class="name" style="{_colours(series.style)}">'
            if abs(label.moved) > 5:
                line = f"M{number(label.x)} {number(label.y)}L{number(x)} {number(y)}"
                yield f'<path class="leader" d="{line}"/>'
            anchor = ' text-anchor="end"' if label.left else ""
            weight = "700" if series.strong else "600"
            yield (
                f'<text class="halo" x="{number(x)}" y="{number(y + 4)}" font-weight="{weight}"'
                f"{anchor}>{escape(label.text)}</text>"
            )
            if label.note:
                yield (
                    f'<text class="halo" x="{number(x)}" y="{number(y + 17)}" font-size="11"'
                    f"{anchor}>{escape(label.note)}</text>"
                )
            yield "</g>"

    def readout(self) -> str:
        """Return what a pointer reads out, as JSON: places, and at each the curves' values."""
        columns: dict[float, list[list[object]]] = {}
        for index, series in enumerate(self.chart.series):
            for point in series.all_points:
                y = round(self.y.at(point.y), 2)
                columns.setdefault(point.x, []).append([index, y, point.words])
        data = {
            "names": [
                [series.name, series.style.light, series.style.dark] for series in self.chart.series
            ],
            "columns": [
                [round(self.x.at(x), 2), self.chart.place(x), columns[x]] for x in sorted(columns)
            ],
        }
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def _colours(style: LineStyle) -> str:
    return f"--light:{style.light};--dark:{style.dark}"


def _text(
    x: float, y: float, text: str, kind: str, *, anchor: str = "start", size: int = 12
) -> str:
    style = "" if anchor == "start" else f' text-anchor="{anchor}"'
    style += "" if size == 12 else f' font-size="{size}"'
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}"{style}>{escape(text)}</text>'
