from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.report.reader import Reader

from headrace.report.page_data import embed, page_data
from headrace.report.palette import LOOKS
from headrace.report.panels import panels_of, step_s, steps_of
from headrace.report.timeline_page import read_timeline_page, timeline_page, write_timeline_page
from headrace.timeline import Lane, Origin, Span, Timeline

HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \"'\u2028"


def timeline(
    label: str = "stream", origin: Origin = Origin.PREDICTED, steps: int = 2, start_s: float = 0.0
) -> Timeline:
    """Loads and the compute behind them, 1 ms each; the next step's load runs ahead."""
    spans = []
    for number in range(steps):
        at = start_s + number * 2e-3
        for layer in (0, 1):
            load = at + layer * 1e-3
            spans += [
                Span(Lane.LOAD_KV, "load_kv", number, layer, 0, load, load + 1e-3, 32_000_000),
                Span(Lane.COMPUTE, "attend", number, layer, 0, load + 1e-3, load + 15e-4, 8, 10**9),
            ]
    return Timeline(origin, label, tuple(spans))


def page_of(*timelines: Timeline, title: str = "Demo", **more: object) -> str:
    return timeline_page(timelines, title=title, facts={"Model": "demo"}, **more)  # type: ignore[arg-type]


def test_the_page_parses_and_needs_nothing_from_outside() -> None:
    page = page_of(timeline(), table=[{"policy": "stream", "ms": 2.0}])
    reader = Reader(page)
    for _, attributes in reader.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    assert "@import" not in page
    assert "url(" not in page.partition("<style>")[2].partition("</style>")[0]
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for t, a in reader.tags if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert reader.text["title"].startswith("Demo")


def test_the_timelines_come_out_of_the_page_again(tmp_path: Path) -> None:
    given = (timeline(), timeline(origin=Origin.EMULATED, start_s=4e4), timeline("kvpr", steps=1))
    write_timeline_page(tmp_path / "page.html", given, title="Demo", facts={})
    found = read_timeline_page(tmp_path / "page.html")
    assert len(found) == len(given)
    for one, other in zip(found, given, strict=True):
        assert (one.origin, one.label) == (other.origin, other.label)
        ordered = sorted(other.spans, key=lambda span: (span.start_s, list(Lane).index(span.lane)))
        for read, span in zip(one.spans, ordered, strict=True):
            assert read.start_s == pytest.approx(span.start_s, abs=2e-9)
            assert read.finish_s == pytest.approx(span.finish_s, abs=2e-9)
            assert replace(read, start_s=span.start_s, finish_s=span.finish_s) == span


def test_a_file_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html></html>")
    with pytest.raises(ValueError, match="not a timeline page"):
        read_timeline_page(tmp_path / "page.html")


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    spans = (Span(Lane.COMPUTE, HOSTILE, 0, 0, 0, 0.0, 1.0),)
    given = Timeline(Origin.MEASURED, HOSTILE, spans)
    path = tmp_path / "page.html"
    write_timeline_page(
        path, [given], title=HOSTILE, facts={HOSTILE: HOSTILE}, table=[{HOSTILE: HOSTILE}]
    )
    page = path.read_text("utf-8")
    reader = Reader(page)
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert page.count("</script>") == 2
    assert reader.text["h1"] == HOSTILE
    assert HOSTILE in reader.text["dd"]
    assert read_timeline_page(path) == (given,)


@pytest.mark.parametrize("timelines", [(), (Timeline(Origin.PREDICTED, "stream", ()),)])
def test_without_operations_the_page_says_so(timelines: tuple[Timeline, ...]) -> None:
    page = page_of(*timelines)
    assert "There are no operations to show." in page
    Reader(page)


def test_predicted_and_measured_of_one_label_share_a_panel() -> None:
    measured, predicted = timeline(origin=Origin.MEASURED), timeline()
    panels = panels_of([measured, predicted, timeline("kvpr"), timeline()])
    assert [panel.label for panel in panels] == ["stream", "kvpr", "stream"]
    assert panels[0].timelines == (predicted, measured)


def test_a_step_begins_where_the_computing_before_it_ends() -> None:
    steps = steps_of(timeline(steps=3))
    assert [step.number for step in steps] == [0, 1, 2]
    assert [step.start_s for step in steps] == pytest.approx([0.0, 25e-4, 45e-4])
    assert steps[-1].finish_s == pytest.approx(65e-4)
    assert step_s(timeline(steps=3)) == pytest.approx(2e-3)
    assert step_s(Timeline(Origin.PREDICTED, "", ())) is None


def test_the_data_is_compact_and_has_shares_for_rows_in_use() -> None:
    given = timeline(steps=500)
    data = page_data([given])
    assert len(embed(data)) < 30 * len(given.spans)
    rows = data["panels"][0]["rows"]
    assert [row["name"] for row in rows["machine"]] == ["Link to GPU", "GPU"]
    assert [row["name"] for row in rows["lanes"]] == ["K/V to GPU", "GPU"]
    assert rows["machine"][0]["shares"] == [
        pytest.approx(given.busy_share([Lane.LOAD_KV]), abs=1e-6)
    ]


def test_the_origin_is_told_in_plain_words() -> None:
    origins = (Origin.PREDICTED, Origin.MEASURED, Origin.EMULATED)
    page = page_of(*(timeline(origin.value, origin) for origin in origins))
    for words in ("predicted", "measured", "measured on an emulated link"):
        assert f'"words":"{words}"' in page


def test_a_table_has_the_columns_of_all_rows() -> None:
    page = page_of(
        timeline(), table=[{"policy": "a", "ms": 1.23456}, {"policy": "b", "full": True}]
    )
    assert re.findall(r"<th scope[^>]*>([^<]*)", page) == ["policy", "ms", "full"]
    assert '<td class="number">1.235</td>' in page
    assert "<td>yes</td>" in page


def test_kinds_of_one_row_differ_without_hue() -> None:
    def grey(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    rows = (
        ["load_activations", "load_kv", "load_weights"],
        ["rebuild", "attend", "attend_new", "dense", "merge"],
        ["store_kv", "store_activations"],
    )
    for row in rows:
        for at, one in enumerate(row):
            for other in row[at + 1 :]:
                first, second = LOOKS[one], LOOKS[other]
                if first.hatching == second.hatching:
                    assert abs(grey(first.light) - grey(second.light)) > 50, (one, other)
                    assert abs(grey(first.dark) - grey(second.dark)) > 35, (one, other)
