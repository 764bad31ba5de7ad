import io

import pytest

from headrace.cli.batch_progress import Reporter, progress_line, summary_json, summary_text
from headrace.engine.batch_run import BatchCounts
from headrace.timeline import Origin


def counts(**given):
    return BatchCounts(**{"total": 1000, "start_s": 100.0} | given)


@pytest.mark.parametrize(
    ("given", "now_s", "line"),
    [
        ({"start_s": None, "failed": 1}, 5, "1/1,000 requests, 1 error"),
        ({}, 100, "0/1,000 requests, 0 errors"),
        (
            {"skipped": 500, "skipped_failed": 3, "completed": 90, "failed": 12, "refused": 2}
            | {"generated_tokens": 5000},
            120.0,
            "602/1,000 requests, 5.0 requests/s, 250.0 tokens/s, 1:20 left, 15 errors",
        ),
        (
            {"completed": 1, "generated_tokens": 5},
            110.0,
            "1/1,000 requests, 0.1 requests/s, 0.5 tokens/s, 2:46:30 left, 0 errors",
        ),
    ],
)
def test_a_line_says_how_far_how_fast_and_how_long(given, now_s, line):
    assert progress_line(counts(**given), now_s) == line


def test_a_log_gets_a_line_now_and_then_and_the_last_one(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    shown, now_s = [], [100.0]
    report = Reporter(shown.append, lambda: now_s[0])
    for completed in range(1, 1001):
        now_s[0] += 0.1
        report(counts(completed=completed))
    assert len(shown) == 11
    assert shown[-1].startswith("1,000/1,000 requests")


def test_the_summary_counts_what_this_run_and_earlier_ones_did():
    ended = counts(skipped=600, skipped_failed=3, completed=390, failed=10, engine_s=20.0)
    ended.generated_tokens, ended.prompt_tokens = 5000, 70
    assert summary_json(ended, 65.0, "out.jsonl") == {
        "total": 1000,
        "completed": 390,
        "failed": 10,
        "skipped": 600,
        "skipped_failed": 3,
        "prompt_tokens": 70,
        "tokens": 5000,
        "tokens_per_s": 250.0,
        "origin": "measured",
        "seconds": 65.0,
        "output": "out.jsonl",
    }
    text = summary_text(summary_json(ended, 65.0, "out.jsonl", Origin.EMULATED))
    for part in (
        "tokens/s (emulated)",
        "1,000 requests",
        "390 completed",
        "600 were done before",
        "13 errors",
        "1:05",
    ):
        assert part in text


def test_without_an_engine_there_is_no_rate():
    assert summary_json(counts(start_s=None), 1.0, "x")["tokens_per_s"] == 0.0
