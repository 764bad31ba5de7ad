import json

import pytest
from tests.e2e.in_process import assert_refused, run_here

from headrace.engine import loading
from headrace.report.timeline_page import read_timeline_page

EMULATED = "a100-40gb-pcie4"
SMALL = (
    *("--dtype", "float32", "--rows", "2", "--prompt", "64", "--rounds", "1", "--steps", "2"),
    *("--policies", "stream,recompute"),
)
FIGURES = {
    "policy",
    "origin",
    "recompute_fraction",
    "prefill_s",
    "step_s",
    "step_s_min",
    "step_s_max",
    "predicted_step_s",
    "prediction_error",
    "bound_s",
    "link_bytes_per_step",
    "link_bytes_per_s",
    "link_busy",
    "device_busy",
    "peak_gpu_bytes",
    "host_bytes",
    "speedup_over_stream",
    "notes",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def measured(headrace, files):
    words = ("--output", files / "bench.json", "--timeline", files / "bench.html", "--json")
    return headrace("bench", "demo", *SMALL, *words)


def test_policies_are_measured_side_by_side(measured):
    assert measured.returncode == 0
    data = json.loads(measured.stdout)
    assert data["model"] == "demo"
    assert data["workload"] == {"rows": 2, "prompt_len": 64, "weights_on_host": 0.0}
    stream, recompute = data["policies"]
    assert (stream["policy"], recompute["policy"]) == ("stream", "recompute")
    for one in (stream, recompute):
        assert one.keys() >= FIGURES
        assert one["origin"] == "emulated"
        assert 0 < one["step_s_min"] <= one["step_s"] <= one["step_s_max"]
        assert one["predicted_step_s"] > 0
        assert one["bound_s"] > 0
    assert stream["speedup_over_stream"] == 1
    assert recompute["speedup_over_stream"] == stream["step_s"] / recompute["step_s"]
    assert "round 1 of 1: recompute" in measured.stderr


def test_column_by_column_and_row_by_row_with_streamed_weights(stored_profile, capsys):
    words = ("--weights-on-host", "0.25", "--batches", "1,2", "--policies", "stream")
    done = run_here(capsys, "bench", "demo", *SMALL[:10], *words, "--json", "--quiet")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["workload"]["weights_on_host"] == pytest.approx(0.25, abs=0.05)
    column, row = data["policies"]
    assert (column["batches"], row["batches"]) == (1, 2)
    # Row-by-row, each batch brings the weights in anew; the cache comes once either way.
    assert 1.2 < row["link_bytes_per_step"] / column["link_bytes_per_step"] <= 2
    assert row["predicted_step_s"] > column["predicted_step_s"]


def test_an_emulated_link_and_the_machine_are_said(measured):
    data = json.loads(measured.stdout)
    assert "slowed down on purpose" in data["machine"]
    assert EMULATED in data["machine"]
    assert data["environment"].keys() >= {"cpu", "gpu", "torch", "commit", "date"}


def test_the_figures_are_written_as_they_are_shown(measured, files):
    assert json.loads((files / "bench.json").read_text()) == json.loads(measured.stdout)


def test_the_page_has_prediction_and_measurement_of_each_policy(measured, files):
    timelines = read_timeline_page(files / "bench.html")
    assert [timeline.label for timeline in timelines] == [
        *["demo, stream"] * 2,
        *["demo, recompute"] * 2,
    ]
    assert [timeline.origin for timeline in timelines] == ["predicted", "emulated"] * 2
    assert all(timeline.steps == (0, 1) for timeline in timelines)


def test_the_report_is_a_table(stored_profile, capsys):
    done = run_here(capsys, "bench", "demo", *SMALL, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo, float32, 2 rows × 64 tokens" in done.stdout
    assert "slowed down on purpose" in done.stdout
    lines = done.stdout.splitlines()
    (head,) = (line for line in lines if line.startswith("policy"))
    for column in ("step", "predicted", "bound", "link busy", "speed"):
        assert column in head
    assert any(line.startswith("stream ") and line.endswith("1.00 ×") for line in lines)
    assert any(line.startswith("recompute ") for line in lines)


@pytest.mark.parametrize(
    ("words", "layers", "dtype"),
    [((), 2, "bfloat16"), (("--layers", "3", "--dtype", "float16"), 3, "float16")],
)
def test_a_published_shape_gets_random_weights_and_on_a_cpu_few_layers(
    stored_profile, capsys, monkeypatch, words, layers, dtype
):
    asked = []

    def dummy_model(name, **options):
        asked.append((name, options))
        demo = loading.load_model("demo", device="cpu", dtype="float32")
        return loading.LoadedModel("a slice", demo.model, None)

    monkeypatch.setattr(loading, "dummy_model", dummy_model)
    small = ("--rows", "1", "--prompt", "40", "--rounds", "1", "--steps", "1", "--json", "--quiet")
    done = run_here(capsys, "bench", *words, *small, "--policies", "kvpr")
    assert done.returncode == 0
    ((name, options),) = asked
    assert (name, options["layers"], options["dtype"]) == ("opt-6.7b", layers, dtype)
    data = json.loads(done.stdout)
    assert data["model"] == "a slice"
    (kvpr,) = data["policies"]
    assert kvpr["speedup_over_stream"] is None


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("demo", "--rows", "0"), ["--rows is 0", "1 up"]),
        (("demo", "--steps", "-1"), ["--steps is -1", "1 up"]),
        (("demo", "--batches", "1,0"), ["--batches is '1,0'", "1 to --rows"]),
        (("demo", "--batches", "9"), ["--batches is '9'", "1 to --rows (8)"]),
        (("demo", "--prompt", "64", "--weights-on-host", "1.5"), ["share is 1.5", "0 to 1"]),
        (("demo", "--prompt", "64", "--weights-on-host", "-1"), ["share is -1.0", "0 to 1"]),
        (("demo", "--layers", "0"), ["published shapes", "'demo'"]),
        (("demo", "--dummy-weights"), ["published shapes", "'demo'"]),
        (("opt-6.7b", "--layers", "0"), ["layers is 0", "1 to 32"]),
        (("opt-6.7b", "--layers", "33"), ["layers is 33", "1 to 32"]),
        (("demo", "--prompt", "1020"), ["--prompt is 1020", "prompts of up to 999 tokens"]),
        (("demo", *SMALL, "--policies", "stream,fast"), ["'fast'", "recompute"]),
        (("demo", *SMALL, "--host-memory", "16KiB"), ["16.0 KiB", "more host memory"]),
        (("demo", *SMALL, "--gpu-memory", "much"), ["--gpu-memory is 'much'"]),
        (("/no/such/model",), ["'/no/such/model'", "config.json"]),
        (("demo", *SMALL, "--emulate", "h300"), ["'h300'", EMULATED]),
        (("demo", *SMALL, "--output", "/no/such/file.json"), ["--output is '/no/such/file.json'"]),
        (("demo", *SMALL, "--timeline", "/"), ["--timeline is '/'"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(stored_profile, capsys, words, parts):
    assert_refused(run_here(capsys, "bench", *words, "--quiet"), parts)
