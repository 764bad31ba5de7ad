import json
import subprocess
import sys

import pytest

from headrace.report.timeline_page import read_timeline_page

QUESTION = "plan llama-3-8b --rows 64 --prompt 4096 --generate 128 --hardware h200-141gb-pcie5"
REQUIRED = {
    "feasible",
    "policy",
    "schedule",
    "split",
    "step_s",
    "bound_s",
    "tokens_per_s",
    "binding",
    "gpu_bytes",
    "host_bytes",
    "speedup_over_stream",
}


def test_the_published_example_answers_in_json(headrace):
    done = headrace(*QUESTION.split(), "--gpu-memory", "24GiB", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert plan.keys() >= REQUIRED
    assert plan["feasible"]
    assert sum(plan["split"].values()) == pytest.approx(1)
    assert plan["gpu_bytes"] <= plan["gpu_budget_bytes"] == 24 * 2**30
    assert plan["bound_s"] <= plan["step_s"]
    assert set(plan["policies"]) == {"resident", "stream", "kvpr", "recompute"}


def test_planning_for_a_named_machine_imports_neither_torch_nor_transformers(headrace):
    code = (
        "import sys; from headrace.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys(); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    words = [*QUESTION.split(), "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_report_says_what_is_chosen_and_why(headrace):
    done = headrace(*["plan", "opt-6.7b", "--rows", "64", "--prompt", "1024", "--generate", "128"], "--hardware",
                    "a100-40gb-pcie4")  # fmt: skip
    assert done.returncode == 0
    for words in ("policy  recompute", "data-sheet", "binds", "Device memory", "kvpr", "tokens/s"):
        assert words in done.stdout


def test_a_plan_that_does_not_fit_is_an_answer(headrace):
    words = [
        "plan",
        "opt-13b",
        "--rows",
        "8",
        "--prompt",
        "1800",
        "--generate",
        "128",
        "--gpu-memory",
        "24GiB",
    ]
    words += ["--hardware", "h200-141gb-pcie5"]
    told = headrace(*words)
    assert told.returncode == 0
    assert "THIS CANNOT RUN" in told.stdout
    assert "It would fit with --rows 5 (policy stream)" in told.stdout
    plan = json.loads(headrace(*words, "--json").stdout)
    assert (plan["feasible"], plan["most_rows"]) == (False, 5)
    assert json.loads(headrace(*words, "--rows", 5, "--json").stdout)["feasible"]


def test_a_timeline_page_holds_the_plan_and_the_stream(headrace, tmp_path):
    page = tmp_path / "plan.html"
    words = [
        "plan",
        "opt-6.7b",
        "--rows",
        "8",
        "--prompt",
        "512",
        "--generate",
        "32",
        "--hardware",
        "paper-a100",
    ]
    done = headrace(*words, "--policy", "kvpr", "--timeline", page, "--json")
    assert json.loads(done.stdout)["timeline"] == str(page)
    timelines = read_timeline_page(page)
    assert [timeline.label for timeline in timelines] == ["stream", "kvpr"]
    assert {timeline.origin for timeline in timelines} == {"predicted"}
