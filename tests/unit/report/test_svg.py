from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from headrace.report.svg import timeline_svg
from headrace.timeline import Lane, Origin, Span, Timeline

SVG = "{http://www.w3.org/2000/svg}"


def timeline(label: str, count: int, load_s: float, origin: Origin = Origin.PREDICTED) -> Timeline:
    """A link that is always busy, and a GPU that computes for half of each load's time."""
    spans = []
    for number in range(count):
        at = number * load_s
        spans.append(Span(Lane.LOAD_KV, "load_kv", 0, number, 0, at, at + load_s, 10**6))
        spans.append(Span(Lane.COMPUTE, "attend", 0, number, 0, at + load_s / 2, at + load_s))
    return Timeline(origin, label, tuple(spans))


def words(picture: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_picture_says_who_is_faster_and_what_is_busy() -> None:
    slow, fast = timeline("stream", 4, 2e-3), timeline("recompute", 4, 1e-3)
    shown = words(timeline_svg([slow, fast], captions={"stream": "All K/V travel."}))
    assert "predicted: 8.0 ms" in shown
    assert "predicted: 4.0 ms, 2.00 × the speed of stream" in shown
    assert shown.count("busy 100 %") == 2
    assert shown.count("busy 50 %") == 2
    assert "All K/V travel." in shown


def test_predicted_and_measured_are_told_apart_and_not_compared() -> None:
    pair = [timeline("stream", 2, 1e-3), timeline("stream", 2, 1e-3, Origin.EMULATED)]
    shown = words(timeline_svg([*pair, timeline("kvpr", 2, 1e-3, Origin.MEASURED)]))
    assert "predicted: 2.0 ms; measured on an emulated link: 2.0 ms" in shown
    assert "measured: 2.0 ms" in shown
    assert {"predicted 100 %", "emulated 100 %"} <= set(shown)


def test_bars_narrower_than_a_pixel_are_merged() -> None:
    picture = timeline_svg([timeline("stream", 20_000, 1e-6)])
    assert len(picture) < 150_000
    ElementTree.fromstring(picture)


def test_words_are_escaped_and_the_picture_has_a_title() -> None:
    picture = timeline_svg([timeline("<b>&", 2, 1e-3)], title="<i>&")
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == "<i>&"
    assert "<b>&" in words(picture)


@pytest.mark.parametrize("timelines", [[], [Timeline(Origin.PREDICTED, "stream", ())]])
def test_without_operations_the_picture_says_so(timelines: list[Timeline]) -> None:
    assert "There are no operations to show." in words(timeline_svg(timelines))


def test_a_window_and_a_row_for_each_lane() -> None:
    shown = words(timeline_svg([timeline("stream", 4, 1e-3)], window_s=2e-3, by_lane=True))
    assert {"K/V to GPU", "GPU"} <= set(shown)
    assert "K/V, layer 3" not in shown
    assert any(text.startswith("K/V, layer 1") for text in shown)
