import json
import subprocess
import sys

import pytest
from tests.e2e.in_process import run_here

from headrace.report.timeline_page import read_timeline_page

MACHINE = ("--hardware", "h200-141gb-pcie5")
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


def ask(model, rows, prompt, generate, *options):
    work = {"--rows": rows, "--prompt": prompt, "--generate": generate}
    return ["plan", model, *(str(word) for pair in work.items() for word in pair), *options]


EXAMPLE = ask("llama-3-8b", 64, 4096, 128, *MACHINE)


def test_the_published_example_answers_in_json(headrace):
    done = headrace(*EXAMPLE, "--gpu-memory", "24GiB", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert plan.keys() >= REQUIRED
    assert plan["feasible"]
    assert sum(plan["split"].values()) == pytest.approx(1)
    assert plan["gpu_bytes"] <= plan["gpu_budget_bytes"] == 24 * 2**30
    assert plan["bound_s"] <= plan["step_s"]
    assert set(plan["policies"]) == {"resident", "stream", "kvpr", "recompute", "host", "auto"}
    assert plan["solve_s"] > 0
    assert plan["generation"]["total_s"] > plan["generation"]["ttft_s"] > 0


def test_planning_for_a_named_machine_imports_neither_torch_nor_transformers(headrace):
    code = (
        "import sys; from headrace.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys(); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    words = [*EXAMPLE, "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_report_says_what_is_chosen_and_why(capsys):
    done = run_here(capsys, *ask("opt-6.7b", 64, 1024, 128, "--hardware", "a100-40gb-pcie4"))
    assert done.returncode == 0
    for words in ("policy  auto", "data-sheet", "binds", "Device memory", "kvpr", "tokens/s"):
        assert words in done.stdout


def test_a_plan_that_does_not_fit_is_an_answer(capsys):
    words = ask("opt-13b", 64, 1800, 128, "--gpu-memory", "24GiB", *MACHINE)
    words += ["--keep-weights", "--without", "stream,recompute,host"]
    told = run_here(capsys, *words)
    assert told.returncode == 0
    assert "THIS CANNOT RUN" in told.stdout
    plan = json.loads(run_here(capsys, *words, "--json").stdout)
    assert not plan["feasible"]
    assert plan["limits"]["most_rows"] == 0
    assert f"--gpu-memory {plan['limits']['least_gpu_bytes'] >> 20}MiB" in told.stdout


def test_a_timeline_page_holds_the_plan_and_the_stream(capsys, tmp_path):
    page = tmp_path / "plan.html"
    words = ask("opt-6.7b", 8, 512, 32, "--hardware", "paper-a100")
    done = run_here(capsys, *words, "--policy", "kvpr", "--timeline", page, "--json")
    assert json.loads(done.stdout)["timeline"] == str(page)
    timelines = read_timeline_page(page)
    assert [timeline.label for timeline in timelines] == ["stream", "kvpr"]
    assert {timeline.origin for timeline in timelines} == {"predicted"}
