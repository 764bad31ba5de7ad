import json

import pytest
from tests.e2e.in_process import assert_refused, disturb_attention, run_here

from headrace.cli import demo
from headrace.cli.audit import WAYS
from headrace.report.timeline_page import read_timeline_page


@pytest.fixture(autouse=True)
def short(stored_profile, monkeypatch, tmp_path):
    """Few steps, a profile that all tests share, and a folder for the page."""
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "STEPS_PER_ROUND", 2)
    monkeypatch.chdir(tmp_path)


def test_it_shows_texts_times_audit_and_timeline(capsys, tmp_path):
    done = run_here(capsys, "demo", "--rows", 2, "--prompt", 120)
    assert done.returncode == 0
    text = done.stdout
    assert text.count("── prompt ") == 2
    assert "wrote the same text." in text
    assert "2 prompts of up to 120 tokens, float32" in text
    assert "slowed down on purpose" in text
    lines = text.splitlines()
    for policy in demo.POLICIES:
        assert any(line.startswith(f"{policy} ") and line.endswith("×") for line in lines)
    assert "stream brings all keys and values through the link" in text
    audited = [line for line in lines if line.endswith("  passed")]
    assert len(audited) == len(WAYS)
    assert all(" identical " in line for line in audited)
    assert "open demo.timeline.html in a browser" in text
    assert "round 1 of 1: stream" in done.stderr
    timelines = read_timeline_page(tmp_path / "demo.timeline.html")
    assert [timeline.origin for timeline in timelines] == ["predicted", "emulated"] * 4
    assert [timeline.label for timeline in timelines[::2]] == [
        f"demo, {policy}" for policy in demo.POLICIES
    ]


def test_the_same_in_json(capsys, tmp_path):
    page = tmp_path / "page.html"
    words = ("--rows", 2, "--prompt", 60, "--timeline", page, "--json", "--quiet")
    done = run_here(capsys, "demo", *words)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert len(data["prompts"]) == 2
    assert set(data["outputs"]) == set(demo.POLICIES)
    first, *others = data["outputs"].values()
    assert len(first) == 2
    assert all(other == first for other in others)
    assert [one["policy"] for one in data["policies"]] == list(demo.POLICIES)
    assert {one["origin"] for one in data["policies"]} == {"emulated"}
    audit = data["audit"]
    assert audit["passed"] is audit["tokens_identical"] is True
    assert 0 <= audit["max_logit_error"] <= audit["tolerance"] == 1e-4
    assert data["timeline"] == str(page)
    assert page.is_file()


def test_a_failed_audit_is_exit_code_1_and_said(capsys, monkeypatch):
    disturb_attention(monkeypatch, float("nan"))
    words = ("demo", "--rows", 1, "--prompt", 40, "--quiet")
    done = run_here(capsys, *words)
    assert done.returncode == 1
    assert done.stdout.count("FAILED") == len(WAYS)
    done = run_here(capsys, *words, "--json")
    assert done.returncode == 1
    audit = json.loads(done.stdout)["audit"]
    assert (audit["passed"], audit["max_logit_error"]) == (False, None)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--rows", "0"), ["--rows is 0", "1 up"]),
        (("--prompt", "0"), ["--prompt is 0", "1 up"]),
        (("--prompt", "2000"), ["--prompt is 2000", "room for prompts of up to 1017 tokens"]),
        (("--emulate", "h300"), ["'h300'", demo.EMULATED]),
        (("--timeline", "/no/such/page.html"), ["--timeline is '/no/such/page.html'"]),
        (("--dtype", "int8"), ["int8", "float32"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, "demo", *words, "--quiet"), parts)
