"""The page of a plan: its structure, its words and its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html import escape, unescape
from pathlib import Path

import pytest
from tests.unit.report.reader import Reader

from headrace.cli.plan_report import write_plan_report
from headrace.plan.policies import Policy
from headrace.plan.whatif import Improvement
from headrace.report.palette import LOOKS
from headrace.report.plan_bars import Segment, bar
from headrace.report.plan_charts import figures
from headrace.report.plan_page import PlanReport, plan_page
from headrace.report.plan_words import seconds, share, shares, size, speed, times

Reports = Callable[[str], PlanReport]
HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \"'\u2028"
NAMES = ("mha", "gqa", "batches", "resident", "chosen", "unfit", "unfit resident")


def readouts(page: str) -> list[dict[str, list]]:
    """Return what can be read out of the wide charts, in the order of the page."""
    found = re.findall(r'data-readout="([^"]*)"', page)
    return [json.loads(unescape(data)) for data in found[::2]]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_parses_and_needs_nothing_from_outside(plan_report: Reports, name: str) -> None:
    page = plan_page(plan_report(name))
    reader = Reader(page)
    for _, attributes in reader.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    assert "@import" not in page
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for _, a in reader.tags if "http-equiv" in a)
    assert (policy or "").startswith("default-src 'none'")
    assert "$" not in page.replace("${", "")
    identities = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("name", NAMES)
def test_every_fill_is_defined_and_every_picture_has_a_name(
    plan_report: Reports, name: str
) -> None:
    reader = Reader(plan_page(plan_report(name)))
    defined = {a.get("id") for tag, a in reader.tags if tag == "pattern"}
    used = {a["fill"] for _, a in reader.tags if (a.get("fill") or "").startswith("url(#")}
    assert {(fill or "")[5:-1] for fill in used} <= defined
    for tag, attributes in reader.tags:
        if tag == "svg":
            hidden = attributes.get("aria-hidden") == "true"
            assert hidden or (attributes["role"] == "img" and attributes["aria-label"])


def test_the_head_says_what_was_asked_and_what_comes_out(plan_report: Reports) -> None:
    report = plan_report("mha")
    plan = report.plan
    page = plan_page(report)
    text = " ".join(Reader(page).words)
    assert f"{seconds(plan.step_s)} a step" in text
    assert f"{speed(plan.tokens_per_s)} tokens/s" in text
    assert f"{times(plan.speedup_over_stream)} the speed of stream" in text
    assert "All figures are predicted, from the data-sheet rates of a100-40gb-pcie4" in text
    assert "32 rows of 512 prompt tokens, 32 to generate" in text
    for reason in plan.reasons:
        assert escape(reason) in page
    for improvement in report.improvements:
        assert escape(improvement.what) in page
        assert times(improvement.gain) in text


def test_every_policy_has_a_bar_that_sums_to_the_whole(plan_report: Reports) -> None:
    page = plan_page(plan_report("mha"))
    rows = re.findall(r'<li class="policy[^"]*">.*?</li>', page)
    names = [re.findall(r"<b>(.*?)</b>", row)[0] for row in rows]
    assert names[0] == "auto"
    assert set(names) == {policy.value for policy in Policy}
    for row in rows:
        widths = [
            float(width)
            for width in re.findall(r'<rect class="part" x="[\d.]+%" width="([\d.]+)%"', row)
        ]
        assert sum(widths) == pytest.approx(100, abs=0.05)
    auto = dict(re.findall(r"<title>(\w+): (.*?)</title>", rows[0]))
    assert auto == shares(asdict(plan_report("mha").plan.split))


def test_memory_is_told_against_its_budget(plan_report: Reports) -> None:
    report = plan_report("mha")
    text = " ".join(Reader(plan_page(report)).words)
    assert f"{size(report.plan.gpu_bytes)} of {size(2.3 * 2**30)}" in text
    assert f"{size(report.plan.host_bytes)} of 8 GiB" in text
    assert "too much" not in text


def test_the_charts_hold_the_numbers_of_the_studies(plan_report: Reports) -> None:
    report = plan_report("mha")
    page = plan_page(report)
    contexts, rows, shares_read = readouts(page)
    studies = report.studies
    for data, study in ((contexts, studies.contexts), (rows, studies.rows)):
        names = [name for name, *_ in data["names"]]
        assert set(names) == {curve.policy.value for curve in study.curves}
        assert len(data["columns"]) == len({p.x for curve in study.curves for p in curve.points})
    here = f"{studies.contexts.here:,.0f} tokens"
    values = next(values for _, place, values in contexts["columns"] if place == here)
    told = {contexts["names"][index][0]: words for index, _, words in values}
    assert told["auto"] == seconds(report.plan.step_s)
    assert told["stream"] == seconds(report.plan.stream_step_s)
    assert {name for name, *_ in shares_read["names"]} == {"recompute", "kvpr"}
    assert page.count("<details>") == 3
    assert f'<td class="number">{here.removesuffix(" tokens")}</td>' in page


def test_rebuilding_is_explained_for_both_kinds_of_attention(plan_report: Reports) -> None:
    mha, gqa = (
        figures(report.plan, report.asked, report.studies, report.activation_ratio)[1].takeaway
        for report in (plan_report("mha"), plan_report("gqa"))
    )
    assert "It is best to rebuild 100 %" in mha
    assert "X has 0.50 times the bytes of K/V" in mha
    assert "The paper’s schedule does best at" in mha
    assert "Here it is best to rebuild nothing: X has 2.00 times the bytes of K/V" in gqa


def test_ends_of_curves_are_told(plan_report: Reports) -> None:
    page = plan_page(plan_report("gqa"))
    assert "nothing fits (host memory)" in page
    assert 'class="cross"' in page
    assert 'class="void"' in page


def test_batches_and_streamed_weights_are_told(plan_report: Reports) -> None:
    report = plan_report("batches")
    text = " ".join(Reader(plan_page(report)).words)
    assert f"{share(report.plan.weights_streamed)} of weights streamed" in text
    assert f"{report.plan.schedule.value}-by-{report.plan.schedule.value}, 2 batches" in text
    assert "All 2 batches go through" in text


def test_a_chosen_policy_is_the_one_to_look_at(plan_report: Reports) -> None:
    report = plan_report("chosen")
    page = plan_page(report)
    assert "<span>kvpr:</span>" in page
    assert re.search(r'<li class="policy chosen"><div class="name"><b>kvpr</b>', page)
    assert set(report.speeds) == {"stream", "kvpr"}


def test_what_does_not_fit_is_said_with_what_would(plan_report: Reports) -> None:
    report = plan_report("unfit")
    page = plan_page(report)
    text = " ".join(Reader(page).words)
    assert "does not fit" in text
    assert re.search(r"[\d.]+ [GM]iB too much", text)
    assert 'class="limit"' in page
    assert "What runs when" not in text
    assert "would be if it fitted, by what the rates allow" in text


def test_a_policy_that_does_not_fit_names_one_that_does(plan_report: Reports) -> None:
    text = " ".join(Reader(plan_page(plan_report("unfit resident"))).words)
    assert "at most would fit, all else being equal" in text
    assert re.search(r"auto\s+would fit, and take", text)


def test_hostile_words_stay_words(plan_report: Reports, tmp_path: Path) -> None:
    report = plan_report("mha")
    hostile = replace(
        report,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        origin=HOSTILE,
        headline=HOSTILE,
        reasons=(HOSTILE,),
        improvements=(Improvement(HOSTILE, 1.0, 1.0, 2.0),),
        timelines=[replace(one, label=HOSTILE) for one in report.timelines[:1]],
        speeds={HOSTILE: HOSTILE},
        window=HOSTILE,
        plan=replace(report.plan, gpu_items={**report.plan.gpu_items, HOSTILE: 2**30}),
    )
    path = tmp_path / "page.html"
    write_plan_report(path, hostile)
    page = path.read_text("utf-8")
    reader = Reader(page)
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert page.count("</script>") == 1
    assert sum(HOSTILE in words for words in reader.words) >= 8


def test_nothing_that_helps_is_said(plan_report: Reports) -> None:
    page = plan_page(replace(plan_report("mha"), improvements=()))
    assert "Nothing that was tried" in page


def test_a_bar_of_memory_has_a_line_at_its_budget() -> None:
    segments = [Segment("weights", 3.0, LOOKS["load_weights"], "3 GiB")]
    drawn = bar(segments, 4.0, "Device memory: 3 of 2", limit=2.0)
    assert 'x1="50%"' in drawn
    assert 'width="75%"' in drawn
    assert ">3 GiB</text>" in drawn


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (seconds(0.0919), "91.9 ms"),
        (seconds(0.54296), "543 ms"),
        (seconds(0.05), "50 ms"),
        (seconds(2.276), "2.28 s"),
        (seconds(0.9999), "1 s"),
        (seconds(0.0), "0 s"),
        (size(24 * 2**30), "24 GiB"),
        (size(1023 * 2**20), "1023 MiB"),
        (size(0), "0 B"),
        (times(5.858), "5.9 ×"),
        (times(1.4995), "1.50 ×"),
        (share(0.004), "< 1 %"),
        (share(0.999), "> 99 %"),
        (speed(6.7412), "6.74"),
    ],
)
def test_figures_are_short(written: str, words: str) -> None:
    assert written == words


def test_shares_sum_to_a_hundred() -> None:
    told = shares({"resident": 0.2146, "stream": 0.1652, "recompute": 0.0, "host": 0.6202})
    assert told == {"resident": "21 %", "stream": "17 %", "host": "62 %"}
    assert shares({"stream": 0.996, "host": 0.004}) == {"stream": "> 99 %", "host": "< 1 %"}
