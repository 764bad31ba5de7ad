"""Charts: axes, labels, and the SVG that they become."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise

import pytest

from headrace.report.chart import Chart, Mark, Point, Series, Shade, Spot
from headrace.report.chart_labels import Label, Room, arrange, free_place, rows_of, text_width
from headrace.report.chart_scale import AxisSpec, Scale
from headrace.report.chart_svg import chart_svg
from headrace.report.palette import LINES, Marker, marker_path

HOSTILE = "</svg><script>alert(1)</script>\"'&"
STYLE = LINES["stream"]


def axis(kind: str, low: float, high: float, length: float = 400.0) -> Scale:
    return Scale(kind, low, high, 0.0, length)  # type: ignore[arg-type]


def series(name: str, factor: float, **more: object) -> Series:
    points = tuple(Point(x, factor * x, f"{factor * x:g} s") for x in (1.0, 2.0, 4.0, 8.0))
    given = {"points": points, "thick": (points,), "label": name, **more}
    return Series(name, STYLE, **given)  # type: ignore[arg-type]


def chart(*curves: Series, **more: object) -> Chart:
    return Chart(
        AxisSpec("rows", "log2", lambda value: f"{value:g}", 1.0, 10.0),
        AxisSpec("seconds", "log", lambda value: f"{value:g} s"),
        curves,
        "what there is to see",
        lambda value: f"{value:g} rows",
        **more,  # type: ignore[arg-type]
    )


def parsed(given: Chart, width: int = 640, height: int = 400) -> ElementTree.Element:
    return ElementTree.fromstring(chart_svg(given, width, height))


def of_kind(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if kind in (one.get("class") or "").split()]


def coordinates(path: str) -> list[tuple[float, float]]:
    """Return the points of a path of M and L."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path or "")]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (axis("linear", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (axis("log", 0.01, 10), [0.01, 0.03, 0.1, 0.3, 1, 3, 10]),
        (axis("log", 1.1, 1.9), [1.2, 1.4, 1.6, 1.8]),
        (axis("log2", 300, 8200), [512, 1024, 2048, 4096, 8192]),
        (axis("log2", 1, 2000, 200), [1, 8, 64, 512]),
    ],
)
def test_marked_values_are_round_and_apart(scale: Scale, ticks: list[float]) -> None:
    found = scale.ticks(50.0)
    assert found == pytest.approx(ticks)
    places = [scale.at(tick) for tick in found]
    assert all(0 <= place <= 400.001 for place in places)
    assert all(high - low >= 30 for low, high in pairwise(places))


@pytest.mark.parametrize("kind", ["linear", "log", "log2"])
def test_a_scale_is_monotonic_and_stays_inside(kind: str) -> None:
    scale = axis(kind, 1, 100)
    places = [scale.at(value) for value in (0, 0.5, 1, 3, 30, 100, 1000)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 400.0)


@pytest.mark.parametrize("kind", ["linear", "log", "log2"])
@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0]])
def test_few_values_make_a_scale_too(kind: str, values: list[float]) -> None:
    spec = AxisSpec("", kind, str)  # type: ignore[arg-type]
    scale = Scale.over(spec, values, 0.0, 100.0)
    assert scale.low < scale.high
    assert scale.ticks(40.0)


def room(crossed: Callable[[float, float, float, float], int] = lambda *box: 0) -> Room:
    return Room(0.0, 600.0, 40.0, 350.0, crossed)


def test_labels_do_not_run_into_each_other() -> None:
    given = [Label(f"curve {n}", "memory" if n % 2 else "", 400.0, 345.0 - n) for n in range(6)]
    placed = arrange(given, room())
    assert [label.text for label in placed] == [label.text for label in given]
    boxes = sorted(
        (label.y + label.moved - 7.5, label.y + label.moved + label.below) for label in placed
    )
    assert all(low[1] <= high[0] + 0.01 for low, high in pairwise(boxes))
    assert boxes[-1][1] <= 350.01


def test_a_label_stands_where_it_has_room_and_crosses_least() -> None:
    inside, outside = Label("resident", "", 300.0, 100.0), Label("resident", "", 580.0, 100.0)
    assert [label.left for label in arrange([inside], room())] == [False]
    assert [label.left for label in arrange([outside], room())] == [True]
    busy_right = room(lambda left, top, right, bottom: int(right > 320))
    assert [label.left for label in arrange([inside], busy_right)] == [True]


def test_words_over_lines_take_another_row_where_they_would_meet() -> None:
    text = "this workload: 4,096"
    (first, row), (second, other), (_, far) = rows_of([(text, 100), (text, 140), (text, 400)], 500)
    assert (row, other, far) == (0, 1, 0)
    assert text_width(text) / 2 <= first < second


def test_words_near_a_point_avoid_the_curves() -> None:
    above = room(lambda left, top, right, bottom: int(top < 200))
    left, base = free_place("best: 69 %", 300.0, 200.0, above)
    assert base > 210
    assert 0 <= left <= 600


@pytest.mark.parametrize("marker", ["circle", "square", "diamond", "triangle", "down", "cross"])
def test_every_marker_is_around_its_point(marker: Marker) -> None:
    assert marker_path(marker, 10.0, 20.0, 4.0).startswith("M10.00 20.00m")


def test_curves_are_told_apart_without_colour() -> None:
    looks = [(style.dash, style.marker) for style in LINES.values()]
    assert len(set(looks)) == len(looks)


def test_curves_are_drawn_inside_the_plot_and_named() -> None:
    root = parsed(chart(series("one", 1.0), series("two", 2.0, strong=True)))
    lines = [line.get("d") or "" for line in of_kind(root, "line")]
    assert len(lines) == 2
    for line in lines:
        places = coordinates(line)
        assert len(places) == 4
        assert all(0 < x < 640 and 42 <= y <= 354 for x, y in places)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
    words = [text.text for text in root.iter() if text.tag.endswith("text")]
    assert {"one", "two", "rows", "seconds"} <= set(words)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "what there is to see"
    assert "strong" in (of_kind(root, "series")[1].get("class") or "")


def test_what_is_only_bounded_is_drawn_thin_and_what_ends_is_crossed() -> None:
    points = series("one", 1.0).points
    curve = series(
        "one", 1.0, points=points[:2], thick=(points[:2],), thin=(points[1:],), ended=True,
        note="device memory",
    )  # fmt: skip
    root = parsed(chart(curve, shade=Shade(8.0, "at most 8 rows")))
    assert len(coordinates(of_kind(root, "thin")[0].get("d") or "")) == 3
    assert (of_kind(root, "cross")[0].get("d") or "").startswith("M")
    assert float(of_kind(root, "void")[0].get("width") or 0) > 10
    words = [text.text for text in root.iter() if text.tag.endswith("text")]
    assert {"device memory", "at most 8 rows"} <= set(words)


def test_marks_and_spots_are_drawn_with_their_words() -> None:
    marks = (Mark("here", x=2.0, strong=True), Mark("auto", y=3.0))
    root = parsed(chart(series("one", 1.0), marks=marks, spots=(Spot(4.0, 4.0, "best", STYLE),)))
    assert len(of_kind(root, "mark")) == 2
    assert len(of_kind(root, "ring")) == 1
    words = [text.text for text in root.iter() if text.tag.endswith("text")]
    assert {"here", "auto", "best"} <= set(words)


def test_the_readout_has_all_values_at_each_place() -> None:
    root = parsed(chart(series("one", 1.0), series("two", 2.0)))
    data = json.loads(root.get("data-readout") or "")
    assert [name for name, *_ in data["names"]] == ["one", "two"]
    assert [place for _, place, _ in data["columns"]] == ["1 rows", "2 rows", "4 rows", "8 rows"]
    assert [(index, words) for index, _, words in data["columns"][2][2]] == [(0, "4 s"), (1, "8 s")]


def test_without_curves_the_chart_says_so() -> None:
    assert "There is nothing to show." in chart_svg(chart(), 640, 400)


@pytest.mark.parametrize("width", [348, 640])
def test_hostile_words_stay_words(width: int) -> None:
    curve = series(HOSTILE, 1.0, note=HOSTILE, ended=True)
    drawn = chart(curve, marks=(Mark(HOSTILE, x=2.0),), spots=(Spot(1.0, 1.0, HOSTILE, STYLE),))
    root = parsed(drawn, width)
    assert not [one for one in root.iter() if one.tag.endswith("script")]
    assert json.loads(root.get("data-readout") or "")["names"][0][0] == HOSTILE
