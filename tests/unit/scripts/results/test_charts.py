"""Pictures of results: bars are as long as what they show, and marks are where bounds are."""

import copy
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from scripts.results.__main__ import generated
from scripts.results.charts import prediction_chart, speed_chart, step_chart
from scripts.results.quoted import RESULTS, ROOT
from scripts.results.runs import load, runs_of
from scripts.results.works import works_of

FILE = Path("h100-i/opt-6.7b-24gib.json")
_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def data():
    return copy.deepcopy(load(ROOT / RESULTS)[FILE])


def drawn(picture):
    """Return the bars' lengths and the marks' distances from where bars begin, and all words."""
    root = ElementTree.fromstring(picture)
    bars = [rect for rect in root.iter(f"{_SVG}rect") if rect.get("x")]
    left = float(bars[0].get("x"))
    marks = [path.get("d") for path in root.iter(f"{_SVG}path") if path.get("stroke-width") == "2"]
    at = [float(re.match(r"M([\d.]+) ", path)[1]) - left for path in marks]
    words = [text.text for text in root.iter(f"{_SVG}text")]
    return [float(bar.get("width")) for bar in bars], at, words


def test_steps_and_bounds_are_drawn_to_one_scale(data):
    (work,) = works_of(runs_of({FILE: data}))
    run = work.typical
    lengths, marks, words = drawn(step_chart([work], "A machine, measured"))
    steps = [one["step_s"] for one in run.every]
    bounds = [one["bound_s"] for one in data["policies"]]
    scale = lengths[0] / steps[0]
    assert lengths == pytest.approx([step * scale for step in steps], abs=0.1)
    assert marks == pytest.approx([bound * scale for bound in bounds], abs=0.1)
    assert words[0] == "A machine, measured"
    assert f"{1e3 * steps[0]:.1f} ms" in words
    assert f"{1e3 * steps[-1]:.1f} ms, beyond the memory budget" in words


def test_a_bound_above_its_step_stays_in_the_picture(data):
    data["policies"][0]["bound_s"] = 2 * data["policies"][0]["step_s"]
    lengths, marks, _ = drawn(step_chart(works_of(runs_of({FILE: data})), "A machine, measured"))
    assert marks[0] == pytest.approx(2 * lengths[0], abs=0.1)
    assert marks[0] < 860


def test_speeds_are_over_stream_and_a_run_without_it_has_none(data):
    works = works_of(runs_of({FILE: data}))
    lengths, _, words = drawn(speed_chart(works, "A machine, measured"))
    stream, *others = data["policies"]
    ratios = [stream["step_s"] / one["step_s"] for one in others]
    assert lengths == pytest.approx([ratio / ratios[0] * lengths[0] for ratio in ratios], abs=0.1)
    assert {f"{ratio:.2f} ×" for ratio in ratios} <= set(words)
    assert {one["policy"] for one in others} <= set(words)
    del data["policies"][0]
    works = works_of(runs_of({FILE: data}))
    assert "<rect x=" not in speed_chart(works, "A machine, measured")


def test_a_line_shows_from_which_to_which_visit_a_speed_went(data):
    slower = copy.deepcopy(data)
    slower["policies"][-1]["step_s"] *= 2
    works = works_of(runs_of({FILE: data, Path("other/opt-6.7b-24gib.json"): slower}))
    picture = speed_chart(works, "A machine, measured")
    auto = data["policies"][0]["step_s"] / data["policies"][-1]["step_s"]
    lengths, _, words = drawn(picture)
    assert f"{auto / 2:.2f} × ({auto / 2:.2f} to {auto:.2f})" in words
    left = float(re.search(r'<rect x="([\d.]+)"', picture)[1])
    *_, (low, high) = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", picture)
    assert float(low) - left == pytest.approx(lengths[-1], abs=0.1)
    assert float(high) - left == pytest.approx(2 * lengths[-1], abs=0.1)


def test_predictions_of_every_visit_are_drawn(data):
    works = works_of(runs_of({FILE: data, Path("other/opt-6.7b-24gib.json"): copy.deepcopy(data)}))
    picture = prediction_chart(works, "A machine, measured")
    points = len(re.findall(r'<path d="[^"]+" fill="#', picture))
    assert points == 2 * len(data["policies"]) + len(data["policies"])  # the last are the legend


def test_every_drawing_of_the_documentation_is_made_from_results_or_from_the_simulator():
    made = {path.name for path in generated(ROOT) if path.suffix == ".svg"}
    there = {path.name for path in (ROOT / "docs/img").glob("*.svg")}
    assert there == made | {"how-it-works.svg"}
    drawn_of = {path.with_suffix("").name for path in (ROOT / "docs/img").glob("results-*.png")}
    assert drawn_of == {name.removesuffix(".svg") for name in made}
