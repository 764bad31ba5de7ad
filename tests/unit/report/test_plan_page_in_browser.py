"""A plan's page as a reader sees it, in headless Chromium (skipped where there is none)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.report.plan_page import PlanReport, write_plan_page

Reports = Callable[[str], PlanReport]
WIDTHS = (1280, 390)
NAMES = ("mha", "gqa", "batches", "unfit")

PLOTS = """[...document.querySelectorAll('svg.plot')].filter(p => p.getClientRects().length)"""
GEOMETRY = f"""{PLOTS}.map(plot => {{
  const box = plot.viewBox.baseVal;
  return [...plot.querySelectorAll('.series path')].map(path => {{
    const b = path.getBBox();
    return {{ kind: path.getAttribute('class'), wide: b.width, tall: b.height,
      inside: b.x >= 0 && b.y >= 0 && b.x + b.width <= box.width && b.y + b.height <= box.height }};
  }});
}})"""
CLIPPED = """[...document.querySelectorAll('.card svg text')]
  .filter(text => text.getClientRects().length)
  .map(text => [text.textContent, text.getBoundingClientRect(),
                text.closest('.card').getBoundingClientRect()])
  .filter(([, own, card]) => own.left < card.left || own.right > card.right + 0.5 ||
                             own.top < card.top || own.bottom > card.bottom)
  .map(([words]) => words)"""
SPILLED = """[...document.querySelectorAll('svg.stack text')].filter(text =>
  [...text.parentNode.querySelectorAll('rect')].every(rect => {
    const [own, part] = [text.getBoundingClientRect(), rect.getBoundingClientRect()];
    return own.left < part.left || own.right > part.right;
  })).map(text => text.textContent)"""
OVERFLOWING = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('svg') && !e.closest('.numbers') && !e.closest('.unseen'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))"""
OVERLAPPING = f"""{PLOTS}.flatMap(plot => {{
  const names = [...plot.querySelectorAll('.name text[font-weight]')];
  const boxes = names.map(name => name.getBoundingClientRect());
  return names.filter((name, i) => boxes.some((other, j) => j < i
    && boxes[i].left < other.right - 3 && other.left < boxes[i].right - 3
    && boxes[i].top < other.bottom - 4 && other.top < boxes[i].bottom - 4))
    .map(name => name.textContent);
}})"""


@pytest.fixture
def opened(browser: Any, plan_report: Reports, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    path = tmp_path / "plan.html"

    def open_page(name: str, width: int = 1280, dark: bool = False) -> Any:
        write_plan_page(path, plan_report(name))
        browser.open(path, width=width, dark=dark)
        return browser

    yield open_page
    assert browser.errors == []
    assert browser.requests == [path.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_every_chart_is_drawn_inside_its_box(opened: Any, name: str, width: int) -> None:
    charts = opened(name, width).run(GEOMETRY)
    assert len(charts) == 3
    for paths in charts:
        assert all(path["inside"] for path in paths)
        lines = [path for path in paths if path["kind"] in ("line", "thin")]
        assert lines or name == "unfit"
        assert all(path["wide"] > 5 for path in lines)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_words_are_clipped_and_nothing_overflows(opened: Any, name: str, width: int) -> None:
    page = opened(name, width)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.settle()
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OVERFLOWING) == []
    assert page.run(CLIPPED) == []
    assert page.run(SPILLED) == []
    assert page.run(OVERLAPPING) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_words_in_charts_are_large_enough_to_read(opened: Any, width: int) -> None:
    heights = opened("mha", width).run(
        f"{PLOTS}.flatMap(plot => [...plot.querySelectorAll('text')]"
        ".map(text => text.getBoundingClientRect().height))"
    )
    assert min(heights) > 9


def test_the_pointer_reads_out_all_curves(opened: Any) -> None:
    page = opened("mha")
    left, top, wide, tall = page.run(
        "(() => { const plot = document.querySelector('#contexts .plot');"
        "plot.scrollIntoView({block: 'center'}); const b = plot.getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    page.mouse("mouseMoved", left + wide * 0.5, top + tall * 0.5)
    page.settle()
    names = page.run("[...document.querySelectorAll('#tip dt')].map(name => name.textContent)")
    assert {"auto", "stream", "recompute", "kvpr", "host"} <= set(names)
    assert page.run("document.querySelector('#tip b').textContent").endswith("tokens")
    values = page.run("[...document.querySelectorAll('#tip dd')].map(value => value.textContent)")
    assert all(value.endswith((" ms", " s")) for value in values)
    assert page.run("document.querySelectorAll('#contexts .cursor circle').length") >= 5
    page.mouse("mouseMoved", 2, 2)
    page.settle()
    assert page.run("document.getElementById('tip').hidden") is True
    assert page.run("document.querySelectorAll('.cursor circle').length") == 0


def test_the_keys_walk_along_a_chart_and_say_it(opened: Any) -> None:
    page = opened("mha")
    page.run("document.querySelector('#rows .plot').focus()")
    page.press("ArrowRight")
    first = page.run("document.getElementById('said').textContent")
    page.press("ArrowRight")
    second = page.run("document.getElementById('said').textContent")
    assert first.startswith("1 row: ")
    assert second.startswith("2 rows: ")
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden") is True


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_differ_and_read_well(opened: Any, dark: bool) -> None:
    page = opened("mha", dark=dark)
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 28)") is dark
    fill = "getComputedStyle(document.querySelector('pattern .fill')).fill"
    light = page.run("document.querySelector('pattern .fill').style.getPropertyValue('--light')")
    assert (page.run(fill) == page.run(_as_rgb(light))) is not dark
    auto = page.run("getComputedStyle(document.querySelector('.series.strong .line')).stroke")
    assert (auto == "rgb(27, 31, 39)") is not dark


def test_it_prints_light_and_wide(opened: Any) -> None:
    page = opened("mha", width=703, dark=True)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    page.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    page.settle()
    try:
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        wide = "document.querySelector('#contexts .wide').getClientRects().length"
        assert page.run(wide) == 1
        assert page.run(wide.replace("wide", "narrow")) == 0
        assert page.run("document.querySelector('#contexts details').getClientRects().length") == 0
        assert page.run("document.documentElement.scrollWidth") <= 703
        assert page.run(OVERFLOWING) == []
        assert page.run(CLIPPED) == []
        charts = page.run(GEOMETRY)
        assert all(path["inside"] for paths in charts for path in paths)
    finally:
        page.call("Emulation.setEmulatedMedia", media="", features=[])
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") <= 5


def _as_rgb(colour: str) -> str:
    """Return an expression for a colour as a computed style has it."""
    channels = ", ".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return f"'rgb({channels})'"
