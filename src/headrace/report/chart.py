"""What a line chart shows: curves with their names, lines across, circled points.

Nothing here knows of plans; ``chart_svg.py`` draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.report.chart_scale import AxisSpec
from headrace.report.palette import LineStyle


@dataclass(frozen=True, slots=True)
class Point:
    """A value of a curve.

    Attributes:
        x: where.
        y: the value.
        words: the value as it is read out.
    """

    x: float
    y: float
    words: str


@dataclass(frozen=True, slots=True)
class Series:
    """A curve.

    Attributes:
        name: what it is called.
        style: its looks.
        points: marked points, ascending.
        thick: runs of points with a thick line through them.
        thin: runs of points with a thin line through them.
        faint: whether it is drawn as something that cannot be.
        ended: whether it ends at its last point, which is then crossed.
        strong: whether it is the one to look at.
        label: what stands beside its end.
        note: what stands under that, in small letters.
    """

    name: str
    style: LineStyle
    points: tuple[Point, ...]
    thick: tuple[tuple[Point, ...], ...] = ()
    thin: tuple[tuple[Point, ...], ...] = ()
    faint: bool = False
    ended: bool = False
    strong: bool = False
    label: str = ""
    note: str = ""

    @property
    def all_points(self) -> list[Point]:
        """Marked points, and those of the thin lines where there are none; ascending."""
        found = {point.x: point for run in self.thin for point in run}
        found |= {point.x: point for point in self.points}
        return [found[x] for x in sorted(found)]


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across the chart: at an ``x`` or at a ``y``, with words."""

    label: str
    x: float | None = None
    y: float | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """A point that is circled, with words."""

    x: float
    y: float
    label: str
    style: LineStyle


@dataclass(frozen=True, slots=True)
class Shade:
    """What lies right of ``x`` and cannot be, with words over its edge."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart shows.

    Attributes:
        x: the axis to the right.
        y: the axis up.
        series: the curves; the last is drawn on top.
        description: the chart in words, for those who do not see it.
        place: how a place on the x axis is read out.
        marks: lines across.
        spots: points that are circled.
        shade: what cannot be.
        empty: what is written where there is no curve.
    """

    x: AxisSpec
    y: AxisSpec
    series: tuple[Series, ...]
    description: str
    place: Callable[[float], str]
    marks: tuple[Mark, ...] = ()
    spots: tuple[Spot, ...] = ()
    shade: Shade | None = None
    empty: str = "There is nothing to show."
