"""The page as a reader uses it, in headless Chromium (skipped where there is none)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.report.timeline_page import write_timeline_page
from headrace.timeline import Lane, Origin, Span, Timeline

INK = """[...document.querySelectorAll('canvas[role=img]')].map(canvas => {
  const dots = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < dots.length; i += 4) if (dots[i + 3] === 255)
    colours.add((dots[i] << 16) + (dots[i + 1] << 8) + dots[i + 2]);
  return colours.size;
})"""
BOX = """(() => { const box = document.querySelector('canvas[role=img]').getBoundingClientRect();
  return [box.left, box.top, box.width, box.height]; })()"""


def timeline(label: str, origin: Origin, steps: int, layers: int) -> Timeline:
    spans = []
    load_s = 1e-3 if label == "stream" else 5e-4
    for number in range(steps * layers):
        at, step, layer = number * load_s, number // layers, number % layers
        spans.append(Span(Lane.LOAD_KV, "load_kv", step, layer, 0, at, at + load_s, 32_000_000))
        spans.append(Span(Lane.COMPUTE, "attend", step, layer, 0, at + load_s / 2, at + load_s))
    return Timeline(origin, label, tuple(spans))


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    timelines = [
        timeline(label, origin, 3, 4)
        for label in ("stream", "recompute")
        for origin in (Origin.PREDICTED, Origin.EMULATED)
    ]
    path = tmp_path / "page.html"
    write_timeline_page(path, timelines, title="Demo", facts={"Model": "demo"})
    browser.open(path)
    yield browser
    assert browser.errors == []
    assert all(url.startswith("file:") for url in browser.requests)


def test_both_panels_are_drawn_and_compared(page: Any) -> None:
    assert all(colours > 4 for colours in page.run(INK))
    text = page.run("document.querySelector('main').innerText")
    assert "measured on an emulated link: 4.00 ms a step, 0.0 % more than predicted" in text
    assert "2.00 × the speed of stream" in text
    label = page.run("document.querySelector('canvas[role=img]').getAttribute('aria-label')")
    assert "Link to GPU busy 100 %" in label


def test_wheel_drag_keys_and_buttons_change_the_view(page: Any) -> None:
    state = "[...document.querySelectorAll('.bar button')].map(b => b.disabled).join()"
    whole = page.run(state)
    left, top, width, _ = page.run(BOX)
    x, y = left + width / 2, top + 25
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    page.settle()
    zoomed = page.run(state)
    assert zoomed != whole
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    for at in range(10):
        page.mouse("mouseMoved", x + (at + 1) * 40, y, button="left", buttons=1)
    page.mouse("mouseReleased", x + 400, y, button="left", clickCount=1)
    page.settle()
    assert page.run("document.querySelector('[data-do=left]').disabled") is True
    page.press("0")
    assert page.run(state) == whole
    page.press("]")
    assert page.run("document.getElementById('step').textContent") == "Step 1"
    page.run("document.querySelector('[data-do=all]').click()")
    page.settle()
    assert page.run("document.getElementById('step').textContent") == "Step 0"


def test_a_tooltip_tells_what_an_operation_is(page: Any) -> None:
    left, top, width, _ = page.run(BOX)
    page.mouse("mouseMoved", left + width * 0.98, top + 25)
    page.settle()
    text = page.run("document.getElementById('tip').innerText")
    assert text.splitlines() == [
        "K/V to the GPU",
        "layer 3, granule 0, step 2",
        "1.00 ms, from 11.0 ms",
        "30.5 MiB at 32.0 GB/s",
        "predicted",
    ]
    page.run("document.querySelector('canvas[role=img]').focus()")
    page.press("n")
    assert "layer 0" in page.run("document.getElementById('said').textContent")
    page.press("n")
    assert "layer 1" in page.run("document.getElementById('said').textContent")
    page.press("ArrowDown")
    assert "emulated" in page.run("document.getElementById('said').textContent")


def test_a_row_for_each_lane(page: Any) -> None:
    page.run("document.getElementById('lanes').click()")
    page.settle()
    names = page.run("[...document.querySelectorAll('.name b')].map(name => name.textContent)")
    assert names[:2] == ["K/V to GPU", "GPU"]
    assert all(colours > 4 for colours in page.run(INK))


def test_it_prints(page: Any) -> None:
    assert page.pdf().startswith(b"%PDF")
    assert all(colours > 4 for colours in page.run(INK))


@pytest.mark.parametrize(("width", "dark"), [(800, False), (420, True)])
def test_narrow_and_dark_pages_do_not_overflow(
    browser: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "page.html"
    write_timeline_page(
        path, [timeline("stream", Origin.PREDICTED, 2, 3)], title="Demo", facts={"a": "b" * 200}
    )
    browser.open(path, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 28)") is dark
    assert browser.errors == []


def test_twenty_thousand_bars_are_drawn_in_time(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_timeline_page(
        path, [timeline("stream", Origin.MEASURED, 100, 100)], title="Many", facts={}
    )
    browser.open(path)
    browser.run("document.querySelector('[data-do=all]').click()")
    browser.settle()
    frame_ms = browser.run(
        """(async () => { const times = [];
        for (let i = 0; i < 20; i++) {
          document.querySelector(`[data-do=${i % 2 ? 'out' : 'in'}]`).click();
          const start = performance.now();
          await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
          times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[10]; })()"""
    )
    assert frame_ms < 250
    assert browser.errors == []


@pytest.mark.parametrize("spans", [None, ()])
def test_an_empty_page_is_readable(browser: Any, tmp_path: Path, spans: tuple[()] | None) -> None:
    timelines = [] if spans is None else [Timeline(Origin.PREDICTED, "stream", spans)]
    path = tmp_path / "page.html"
    write_timeline_page(path, timelines, title="Nothing", facts={})
    browser.open(path)
    text = browser.run("document.querySelector('main').innerText")
    assert "There are no operations to show." in text
    assert browser.errors == []
