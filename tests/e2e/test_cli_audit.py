import json

import pytest
from tests.e2e.in_process import assert_refused, disturb_attention, run_here

from headrace.cli.audit import WAYS

DEMO = ("audit", "demo", "--dtype", "float32")
SHORT = (*DEMO, "--quiet", "--max-tokens", "3", "--prompt", "def add(a, b):\n    return")


def test_every_policy_agrees_with_the_plain_model(headrace):
    done = headrace(*DEMO, "--max-tokens", 6)
    assert done.returncode == 0
    assert "3 prompts, 6 tokens each, against plain transformers:" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("passed")]
    assert [(row[0], float(row[1])) for row in rows] == [(way[0], way[1] or 0.0) for way in WAYS]
    assert {row[2] for row in rows} == {"identical"}
    assert "allowed: 1.0e-04 of the logits' range" in done.stdout
    assert "policy kvpr, 0.37 rebuilt" in done.stderr


def test_the_same_in_json(capsys):
    done = run_here(capsys, *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["passed"] is True
    assert data["tolerance"] == 1e-4
    assert "float32" in data["tolerance_from"]
    assert [result["policy"] for result in data["results"]] == [policy for policy, _ in WAYS]
    for result in data["results"]:
        assert result["passed"] is result["tokens_identical"] is True
        assert 0 <= result["max_logit_error"] <= data["tolerance"]
        # Without a compiler, torch attends on the host, and that is said.
        assert all("host attends" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--policies", "stream"), [("stream", 0.0)]),
        (("--policies", "recompute,resident"), [("resident", 0), ("recompute", 0.37),
                                                ("recompute", 1.0)]),
        (("--policies", "stream,kvpr", "--recompute-fraction", "0.6"),
         [("stream", 0.0), ("kvpr", 0.6)]),
        (("--recompute-fraction", "0"), [("resident", 0), ("stream", 0), ("host", 0), ("kvpr", 0),
                                         ("recompute", 0), ("host", 0)]),
    ],
)  # fmt: skip
def test_policies_and_fractions_can_be_chosen(capsys, words, expected):
    data = json.loads(run_here(capsys, *SHORT, *words, "--json").stdout)
    found = [(result["policy"], result["recompute_fraction"]) for result in data["results"]]
    assert found == expected
    assert data["passed"]


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_disagreement_is_exit_code_1(capsys, monkeypatch, factor):
    disturb_attention(monkeypatch, factor)
    words = (*SHORT, "--policies", "stream")
    done = run_here(capsys, *words)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED" in done.stdout
    assert "allowed: 1.0e-04" in done.stdout
    done = run_here(capsys, *words, "--json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    (result,) = data["results"]
    assert data["passed"] is result["passed"] is False
    assert (result["max_logit_error"] is None) == (factor != factor)


def test_in_half_precision_it_says_where_the_tolerance_comes_from(capsys):
    words = ("--quiet", "--max-tokens", "2", "--policies", "stream", "--prompt", "import os\n")
    done = run_here(capsys, "audit", "demo", *words)
    assert done.returncode == 0
    assert "2 times what the plain model differs from itself by" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((*DEMO, "--policies", "stream,fast"), ["'fast'", "resident, stream, kvpr, recompute"]),
        ((*DEMO, "--max-tokens", "0"), ["0 tokens", "1 or more"]),
        ((*DEMO, "--prompt", ""), ["a prompt is empty"]),
        ((*DEMO, "--prompt", "x = 1\n" * 300), ["1024", "shorten the prompt"]),
        ((*SHORT, "--recompute-fraction", "7"), ["recompute_fraction is 7.0", "0 to 1"]),
        (("audit", "/no/such/model"), ["'/no/such/model'", "config.json"]),
        ((*DEMO, "--prompt-file", "/no/such.txt"), ["'/no/such.txt'"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, *words, "--quiet"), parts)
