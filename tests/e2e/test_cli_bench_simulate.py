import json
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.e2e.in_process import assert_refused, run_here

from headrace.cli import bench_simulate
from headrace.plan.paper import studies

STUDIES = ("latency-model", "latency", "throughput", "low-end-latency", "low-end-throughput")
WITHOUT_TORCH = """
import sys
from headrace.cli import bench_simulate, main
bench_simulate.studies = lambda: ()
code = main(["bench", "--simulate", "paper", "--json", "--quiet"])
assert "torch" not in sys.modules
sys.exit(code)
"""


def short_studies():
    """The two settings of each kind that take least."""
    found = {study.key: study for study in studies()}
    latency, throughput = found["latency"], found["low-end-throughput"]
    return (
        replace(latency, cases=latency.cases[:2]),
        replace(throughput, cases=throughput.cases[:1]),
    )


@pytest.fixture
def shortened(monkeypatch):
    monkeypatch.setattr(bench_simulate, "studies", short_studies)


def simulate(capsys, *words):
    return run_here(capsys, "bench", "--simulate", "paper", *words)


def test_the_studies_are_tables(shortened, capsys):
    done = simulate(capsys, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "simulated, from data sheets: nothing of them was run" in done.stdout
    assert "arXiv 2411.17089" in done.stdout
    lines = done.stdout.splitlines()
    heads = [line for line in lines if line.startswith("model")]
    for head in heads:
        for column in ("stream", "paper (kvpr)", "auto + host", "auto, free", "reported"):
            assert column in head
    assert "synchronous" in heads[0]
    first, second, last = (line for line in lines if line.startswith("opt-6.7b"))
    assert first.endswith("–")
    assert second.endswith("−35.8% against Hugging Face Accelerate")
    assert last.endswith("–")
    assert "a100-40gb-pcie4, 64 rows: seconds of all decode steps." in lines
    assert "rtx4090-pcie4, 256 rows (8 batches of 32): tokens/s while decoding." in lines


def test_json_has_the_same_and_says_what_is_simulated(shortened, capsys):
    done = simulate(capsys, "--json")
    assert done.returncode == 0
    assert "low-end-throughput: opt-6.7b, prompts of 256 tokens" in done.stderr
    data = json.loads(done.stdout)
    assert (data["schema_version"], data["study"], data["origin"]) == (1, "paper", "predicted")
    assert data["label"].startswith("simulated")
    latency, throughput = data["studies"]
    assert {latency["origin"], throughput["origin"]} == {"predicted"}
    short, long = latency["cases"]
    assert short["workload"] == {
        "rows": 64,
        "prompt_len": 128,
        "generate_len": 32,
        "batches": 1,
    }
    assert short["reported"] is None
    assert long["reported"]["share"] == 0.358
    assert long["reported"]["source"]
    assert long["reported"]["origin"] == "measured by the paper's authors"
    assert short["simulated"].keys() <= data["methods"].keys()
    for case in (short, long, *throughput["cases"]):
        for one in case["simulated"].values():
            assert one["decode_s"] > 0
            assert one["tokens_per_s"] > 0
            assert sum(one["split"].values()) == pytest.approx(1)
        assert case["simulated"]["stream"]["latency_saved_over_stream"] == 0


def test_figures_and_page_are_written(shortened, capsys, tmp_path):
    done = simulate(capsys, "--quiet", "--json", "--output", tmp_path / "paper.json")
    assert json.loads((tmp_path / "paper.json").read_text()) == json.loads(done.stdout)
    assert simulate(capsys, "--quiet", "--output", tmp_path / "paper.md").returncode == 0
    page = (tmp_path / "paper.md").read_text()
    assert page.startswith("# ")
    assert "simulated, from data sheets: nothing of them was run" in page
    assert "| opt-6.7b | 128 | 128 |" in page
    assert "−35.8% against Hugging Face Accelerate |" in page


def test_nothing_of_torch_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["studies"] == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--simulate", "papers"), ["--simulate is 'papers'", "allowed is paper"]),
        (("demo", "--simulate", "paper"), ["NAME is 'demo'", "measures nothing"]),
        (("--simulate", "paper", "--rows", "4"), ["--rows is 4", "leave one of them out"]),
        (("--simulate", "paper", "--dummy-weights"), ["--dummy-weights"]),
        (("--simulate", "paper", "--emulate", "t4-pcie3"), ["--emulate is 't4-pcie3'"]),
        (("--simulate", "paper", "--gpu-memory", "8GiB"), ["--gpu-memory is '8GiB'"]),
        (("--simulate", "paper", "--timeline", "a.html"), ["--timeline is 'a.html'"]),
        (("--simulate", "paper", "--output", "a.txt"), ["'a.txt'", "FILE.json and FILE.md"]),
        (("--simulate", "paper", "--output", "/no/such/a.md"), ["'/no/such/a.md'"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, "bench", *words, "--quiet"), parts)


@pytest.mark.slow
def test_the_whole_study(headrace):
    done = headrace("bench", "--simulate", "paper", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert tuple(study["key"] for study in data["studies"]) == STUDIES
    for study in data["studies"]:
        for case in study["cases"]:
            methods = case["simulated"]
            assert methods["stream"]["decode_s"] > methods["kvpr"]["decode_s"]
            assert methods["kvpr"]["decode_s"] > 0.99 * methods["auto"]["decode_s"]
