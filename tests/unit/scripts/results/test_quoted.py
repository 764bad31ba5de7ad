"""Every figure in README and docs has its source, and the check for that can fail."""

import json

import pytest
from scripts.results.quoted import HELP, ROOT, complaints, pages

RUN = {
    "policies": [{"policy": "stream", "step_s": 0.6}, {"policy": "auto", "step_s": 0.2353}],
    "text": ["policy     step", "auto   235.3 ms", "stream 600.0 ms", "done in 3.0 s"],
}
SOURCE = "from a/run.json\n"
AUTO = "235.3 ms = policies[auto].step_s\n"


@pytest.mark.parametrize("page", pages(ROOT), ids=str)
def test_every_figure_of_the_documentation_has_its_source(page):
    found = complaints(ROOT, page)
    assert not found, "\n".join([*found, HELP])


def test_the_log_says_that_its_figures_are_no_results():
    assert "no results" in (ROOT / "docs/log.md").read_text("utf-8")


def test_a_comment_behind_an_empty_line_is_of_another_block(tmp_path):
    nothing, too_many = checked(tmp_path, f"It took 235.3 ms.\n\n{said(SOURCE, AUTO)}")
    assert "'235.3 ms' has no source" in nothing
    assert "'235.3 ms', which is not in this block" in too_many


def checked(root, text):
    """Return the complaints about a page, in a repository that has one result."""
    (root / "benchmarks/results/a").mkdir(parents=True)
    (root / "benchmarks/results/a/run.json").write_text(json.dumps(RUN), "utf-8")
    (root / "README.md").write_text(text, "utf-8")
    return complaints(root, pages(root)[0])


def said(*lines):
    return "<!-- figures\n" + "".join(lines) + "-->\n"


@pytest.mark.parametrize(
    "text",
    [
        "Nothing of 64 rows × 128 tokens.",
        f"It took 235.3 ms.\n{said(SOURCE, AUTO)}",
        f"It took\n235.3\nms.\n{said(SOURCE, AUTO)}",
        f"| auto |\n|---|\n| 235.3 ms |\n{said(SOURCE, AUTO)}",
        f"235.3 ms and again 235.3 ms\n{said(SOURCE, AUTO, AUTO)}",
        f"2.55 × of it\n{said(SOURCE, '2.55 × = policies[stream].step_s / policies[auto].step_s')}",
        f"At 80 %, and 80 %.\n{said('80 %: a setting')}",
        "Code: `--gpu-memory 24GiB`, and [a link](page-1.5.md).",
        '```json\n{"step_s": 1.5}\n```',
        "    an indented line of 2.5 s\n    and one more",
        "<!-- output of a/run.json -->\n```text\npolicy step\n…\nstream 600.0 ms\n```",
        "<!-- table of a/run.json: auto -->\n| 1.5 s |\n<!-- end of table -->",
    ],
)
def test_what_has_its_source_passes(tmp_path, text):
    assert checked(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It took 235.3 ms.", "README.md:1: '235.3 ms' has no source"),
        ("One.\n\nIt took\n235.3 ms.", "README.md:3: '235.3 ms' has no source"),
        (f"235.3 ms, then 235.3 ms\n{said(SOURCE, AUTO)}", "here 2 times, 1 with a source"),
        (
            f"It took 235.4 ms.\n{said(SOURCE, AUTO.replace('.3', '.4'))}",
            "is 235.3 ms by a/run.json",
        ),
        (f"It took long.\n{said(SOURCE, AUTO)}", "'235.3 ms', which is not in this block"),
        (f"It took 235.3 ms.\n{said(SOURCE, AUTO, AUTO)}", "has '235.3 ms' 2 times, the text 1"),
        (f"It took 235.3 ms.\n{said(AUTO)}", "needs a line 'from FOLDER/FILE.json'"),
        (f"It took 235.3 ms.\n{said(SOURCE, '235.3 ms')}", "is neither"),
        (f"It took 235.3 ms.\n{said(SOURCE.replace('run', 'no'), AUTO)}", "there is no file"),
        (f"It took 235.3 ms.\n{said(SOURCE, AUTO.replace('auto', 'host'))}", "'host'"),
        ("```text\nauto 235.3 ms\n```", "has no source"),
        (
            "<!-- output of a/run.json -->\n```text\nauto 235.4 ms\n```",
            "'auto 235.4 ms' is not what a/run.json has there",
        ),
        (
            "<!-- output of a/run.json -->\n```text\npolicy step\nstream 600.0 ms\n```",
            "is not what",
        ),
        ("<!-- output of a/no.json -->\n```text\nx\n```", "there is no file"),
        ("<!-- output of a/run.json -->\n\n```text\nauto 235.3 ms\n```", "has no source"),
        ("- a list\n- of 1.5 s\n", "'1.5 s' has no source"),
        ("# A heading of 1.5 s\n", "'1.5 s' has no source"),
    ],
)
def test_what_has_not_is_named(tmp_path, text, words):
    found = checked(tmp_path, text)
    assert len(found) == 1, found
    assert words in found[0]
