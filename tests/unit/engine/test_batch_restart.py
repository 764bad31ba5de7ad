"""Killed at any byte and started again, a batch has the results of one that was left alone."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batch_support import CHAT, FakeEngine, line_of, results_of, run_batch, write_lines

KINDS = {
    "text": lambda name: line_of(name, prompt=f"prompt {name}", logprobs=1),
    "several": lambda name: line_of(name, prompt=["a", f"ü {name}", "c"], n=2),
    "fails": lambda name: line_of(name, prompt=["a", "fail"]),
    "chat": lambda name: line_of(name, CHAT),
    "wrong": lambda name: line_of(name, temperature="ü"),
    "not json": lambda name: f"not json {name}".encode(),
}


@st.composite
def batches(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12))
    return [KINDS[kind](f"request {number} ü") for number, kind in enumerate(kinds)]


@settings(max_examples=60, deadline=None)
@given(
    lines=batches(),
    kills=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=5),
)
def test_a_batch_that_was_killed_ends_as_one_that_was_not(lines, kills):
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "in.jsonl", *lines)
        alone, killed = Path(folder) / "alone.jsonl", Path(folder) / "killed.jsonl"
        run_batch(path, alone)
        wanted = results_of(alone, created=False)
        for seed, (share, at_once) in enumerate(kills):
            run_batch(path, killed, FakeEngine(at_once, seed))
            # What a killed process has written is a prefix of what it would have written.
            content = killed.read_bytes()
            killed.write_bytes(content[: round(share * len(content))])
        whole_lines = killed.read_bytes().count(b"\n")
        counts = run_batch(path, killed, FakeEngine(2, 99))
        assert counts.skipped == whole_lines
        assert counts.done == counts.total == len(lines)
        assert results_of(killed, created=False) == wanted
