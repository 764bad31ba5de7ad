import json
import re

import pytest
from tests.e2e.in_process import assert_refused, run_here

from headrace.bench import suite
from headrace.hf.weights import placed_weights

TINY = (
    *("--rows", "2", "--prompt", "64", "--layers", "1", "--narrow", "8"),
    *("--rounds", "1", "--steps", "1"),
)
POLICY = {
    "policy", "origin", "resident_fraction", "recompute_fraction", "host_fraction", "prefill_s",
    "step_s", "step_s_min", "step_s_max", "tokens_per_s", "predicted_step_s", "prediction_error",
    "bound_s", "bound_share", "link_bytes_per_step", "link_bytes_per_s", "link_busy", "device_busy",
    "lanes_busy", "host_attend_bytes_per_s", "dram_bytes_per_s", "rebuild_flops_per_s",
    "peak_gpu_bytes", "host_bytes", "energy_j_per_step", "speedup_over_stream", "of_profile",
    "agreement", "notes",
}  # fmt: skip
CASE = {
    "case", "machine", "model", "workload", "asked", "adapted", "alternating", "foreseen",
    "policies", "rivals", "unable", "passed", "profile", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def measured(headrace, files):
    words = ("--output", files / "suite.json", "--page", files / "suite.html", "--json")
    return headrace("bench", "paper-latency-512", *TINY, *words)


def test_policies_and_rivals_run_the_same_work(measured):
    assert measured.returncode == 0, measured.stderr
    data = json.loads(measured.stdout)
    assert data["schema_version"] == 2
    assert data["workloads"] == ["paper-latency-512"]
    (case,) = data["cases"]
    assert case.keys() >= CASE
    policies = ["stream", "kvpr", "recompute", "host", "auto"]
    assert [one["policy"] for one in case["policies"]] == policies
    for one in case["policies"]:
        assert one.keys() >= POLICY
        assert one["origin"] == "emulated"
    (rival,) = case["rivals"]
    assert (rival["rival"], rival["origin"]) == ("transformers", "measured")
    assert 0 < rival["step_s_min"] <= rival["step_s"] <= rival["step_s_max"]


def test_heads_are_divided_evenly(stored_profile, capsys):
    done = run_here(capsys, "bench", "fits-1", *TINY, "--narrow", "3", "--json", "--quiet")
    assert done.returncode == 1
    (unable,) = json.loads(done.stdout)["unable"]
    assert "narrow is 3; it must divide the 32 heads and 8 key/value heads" in unable["reason"]


def test_what_cannot_run_says_why(measured):
    (case,) = json.loads(measured.stdout)["cases"]
    assert [one["name"] for one in case["unable"]] == [
        "transformers-offloaded",
        "transformers-static",
    ]
    assert all("CUDA" in one["reason"] for one in case["unable"])


def test_first_tokens_are_compared_with_the_plain_models(measured):
    data = json.loads(measured.stdout)
    (case,) = data["cases"]
    assert case["rivals"][0]["agreement"] is None
    for one in case["policies"]:
        found = one["agreement"]
        assert found["compared_with"] == "transformers"
        assert found["steps"] == 4
        assert 0 <= found["max_logit_error"] <= found["tolerance"]
        assert found["passed"]
    assert data["verdict"]["passed"]


def test_sizes_and_budget_that_differ_from_what_is_asked_are_said(measured):
    (case,) = json.loads(measured.stdout)["cases"]
    assert case["asked"]["rows"] == 64
    # A slow machine has a slow link, and takes a row less.
    assert case["workload"]["rows"] in (1, 2)
    assert case["workload"]["prompt_len"] == 64
    assert case["workload"]["layers"] == 1
    assert any("at most so much was asked for" in words for words in case["adapted"])
    assert any(words.startswith("device memory 16GiB asked") for words in case["adapted"])


def test_the_bound_of_every_policy_is_known_beforehand(measured):
    (case,) = json.loads(measured.stdout)["cases"]
    for foreseen, one in zip(case["foreseen"], case["policies"], strict=True):
        assert foreseen["policy"] == one["policy"]
        assert 0 < foreseen["bound_s"] <= foreseen["predicted_step_s"] * 1.001
        assert foreseen["reason"] == ""


def test_the_files_have_the_same_figures_and_the_page_needs_nothing_else(measured, files):
    assert json.loads((files / "suite.json").read_text()) == json.loads(measured.stdout)
    page = (files / "suite.html").read_text()
    assert "paper-latency-512" in page
    assert "transformers-offloaded: its cache is offloaded" in page
    assert "Emulated" in page
    assert "<script src" not in page
    assert "<link" not in page
    assert "$" not in page.split("<script")[0]


def test_the_report_says_the_bound_before_the_figures(stored_profile, capsys):
    words = ("--policies", "stream,auto", "--rivals", "none", "--quiet")
    done = run_here(capsys, "bench", "paper-latency-512", *TINY, *words)
    assert (done.returncode, done.stderr) == (0, "")
    asked, taken = "all 32 layers asked", r"[12] rows × 64 tokens, 1 of 32 layers \(1/8 as wide\)"
    assert re.search(f"{asked}, {taken}", done.stdout)
    assert done.stdout.index("stream: bound") < done.stdout.index("tokens/s")
    assert "Compared with stream over the first 4 tokens" in done.stdout
    assert "transformers" not in done.stdout
    assert "slowed down on purpose" in done.stdout


def test_a_share_of_the_weights_is_streamed(stored_profile, capsys, monkeypatch):
    placed = []
    place = suite.place

    def noted(model, *more):
        place(model, *more)
        placed.append(placed_weights(model).share)

    monkeypatch.setattr(suite, "place", noted)
    words = ("--policies", "stream", "--rivals", "transformers", "--json", "--quiet")
    done = run_here(capsys, "bench", "paper-throughput-opt-6.7b", *TINY, *words)
    assert done.returncode == 0
    (case,) = json.loads(done.stdout)["cases"]
    assert case["workload"]["weights_on_host"] == placed[0] == 1.0
    assert case["unable"][0]["name"] == "transformers"
    assert "100% of the layers' weights are on the host" in case["unable"][0]["reason"]


def test_a_case_that_cannot_run_does_not_take_the_others_along(stored_profile, capsys, monkeypatch):
    run_case = suite.run_case

    def failing(case, *more):
        if case.name == "fits-1":
            raise suite.HeadraceError("there is no room")
        return run_case(case, *more)

    monkeypatch.setattr(suite, "run_case", failing)
    words = ("--policies", "stream", "--rivals", "none", "--json", "--quiet")
    done = run_here(capsys, "bench", "fits-1", "paper-latency-512", *TINY, *words)
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["unable"] == [{"name": "fits-1", "reason": "there is no room"}]
    assert [case["case"] for case in data["cases"]] == ["paper-latency-512"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("fits", "no-such"), ["'no-such'", "paper-latency", "suite"]),
        (("fits", "--prompt", "0"), ["--prompt is 0", "1 up"]),
        (("fits-1", "--narrow", "0"), ["--narrow is 0", "1 up"]),
        (("fits", "--layers", "-1"), ["--layers is -1"]),
        (("fits", "--gpu-memory", "8GiB"), ["--gpu-memory is '8GiB'", "no such setting"]),
        (("fits", "--batches", "2"), ["--batches is '2'", "no such setting"]),
        (("fits", "--policies", "stream,fast"), ["'stream,fast'", "recompute"]),
        (("fits", "--rivals", "vllm"), ["'vllm'", "transformers-static"]),
        (("fits", "--emulate", "a100-40gb-pcie4,h300"), ["'h300'", "rtx4090-pcie4"]),
        (("fits", "--output", "/no/such/file.json"), ["--output is '/no/such/file.json'"]),
        (("fits", "--page", "/"), ["--page is '/'"]),
        (("demo", "--page", "a.html"), ["--page is 'a.html'", "only named workloads"]),
        (("host-attention", "--rivals", "none"), ["--rivals is 'none'"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, "bench", *words, "--quiet"), parts)
