"""The script for a CUDA machine, as far as it runs without one."""

import json
from dataclasses import replace

import pytest
import torch
from scripts import gpu_check
from tests.support import make_batch, make_model
from transformers import PreTrainedModel

from headrace.bench import suite
from headrace.bench.catalogue import Case
from headrace.engine.loading import LoadedModel
from headrace.hardware.catalog import machine
from headrace.hardware.identity import local_identity
from headrace.report.timeline_page import read_timeline_page
from headrace.timeline import Origin

WHERE = {
    "gpu": "A GPU",
    "cpu": "A CPU",
    "cpu_cores": 16,
    "cuda": "12.8",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "commit": "0123456789ab",
    "date": "2026-01-02T03:04:05+00:00",
}
STREAM = {
    "policy": "stream",
    "recompute_fraction": 0.0,
    "step_s": 0.2,
    "predicted_step_s": 0.19,
    "bound_s": 0.18,
    "link_bytes_per_s": 49e9,
    "link_busy": 0.995,
    "device_busy": 0.1,
    "speedup_over_stream": 1.0,
}
MEASURED = {
    "environment": WHERE,
    "workload": {"model": "opt-6.7b", "layers": None, "rows": 64, "prompt_len": 1024},
    "profile": {"h2d_bytes_per_s": 50e9},
    "policies": [
        STREAM,
        {**STREAM, "policy": "recompute", "recompute_fraction": 0.98, "speedup_over_stream": 1.9},
        {**STREAM, "policy": "resident", "speedup_over_stream": None},
    ],
}
AUDITED = {
    "environment": WHERE,
    "audits": [
        {
            "model": "demo",
            "dtype": "float32",
            "passed": True,
            "tolerance": 1e-4,
            "results": [{"max_logit_error": 2e-7}, {"max_logit_error": 3e-7}],
        },
        {
            "model": "opt",
            "dtype": "bfloat16",
            "passed": False,
            "tolerance": 2e-3,
            "results": [{"max_logit_error": 5e-1}],
        },
    ],
}


@pytest.fixture
def pretended(monkeypatch):
    """Pretend that there is a CUDA device; models stay where they are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(PreTrainedModel, "cuda", lambda self: self)
    monkeypatch.setattr(gpu_check, "environment", lambda: WHERE)
    monkeypatch.setattr(gpu_check, "quiet_libraries", lambda: None)


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main([str(word) for word in words])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_part_is_named_with_those_there_are(capsys, tmp_path):
    message = refused(capsys, "--output", tmp_path, "exactnes")
    assert "unknown part 'exactnes'" in message
    for part in ("exactness", "opt-6.7b-24gib", *gpu_check.WORKLOADS):
        assert part in message


def test_an_output_is_asked_for(capsys):
    assert "--output" in refused(capsys)


def test_without_a_cuda_device_nothing_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "out"
    assert "no CUDA device" in refused(capsys, "--output", output)
    assert not output.exists()


def test_parts_are_the_checks_and_the_cases():
    assert list(gpu_check.PARTS) == [*gpu_check.CHECKS, *gpu_check.CASES]


def test_a_workload_stands_for_its_cases_and_each_runs_once():
    assert gpu_check.expanded(["rows", "fits", "fits-8"]) == ["rows", "fits-1", "fits-8", "fits-64"]
    assert gpu_check.expanded([]) == []


@pytest.mark.parametrize("kind", [*gpu_check.ARCHITECTURES, *gpu_check.MIXTURES])
def test_small_models_of_every_architecture_are_built(pretended, kind):
    model = gpu_check.tiny_model(kind, torch.bfloat16)
    assert model.config.model_type == kind
    assert gpu_check.vocab_size_of(model) == 1000
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, setting in {**gpu_check.ARCHITECTURES, **gpu_check.MIXTURES}[kind].items():
        assert getattr(model.config, name) == setting


def test_the_batch_is_ragged_and_within_every_context():
    ids, mask = gpu_check.ragged_batch(1000)
    lengths = mask.sum(dim=1).tolist()
    assert len(set(lengths)) == len(lengths)
    assert ids.shape == mask.shape == (len(lengths), max(lengths))
    assert int(ids.max()) < 1000
    assert max(lengths) + gpu_check.EXACT_STEPS < 1024


def test_the_summary_is_of_all_files(tmp_path):
    (tmp_path / "opt-6.7b.json").write_text(json.dumps(MEASURED))
    (tmp_path / "exactness.json").write_text(json.dumps(AUDITED))
    (tmp_path / "notes.txt").write_text("not ours")
    lines = gpu_check.summary(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## exactness", "## opt-6.7b"]
    assert sum("A GPU, A CPU (16 cores), CUDA 12.8" in line for line in lines) == 2
    assert "| demo | float32 | passed | 3.0e-07 | 1.0e-04 |" in lines
    assert "| opt | bfloat16 | FAILED | 5.0e-01 | 2.0e-03 |" in lines
    assert "opt-6.7b, all layers, 64 rows × 1024 tokens; link 50.0 GB/s" in lines
    assert (
        "| stream | 0% | 0% | 200.0 ms | 190.0 ms | 180.0 ms | 98.0% | 99.5% | 10.0% | 1.00 × |"
        in lines
    )
    assert any(line.startswith("| recompute | 0% | 98% |") and "1.90 ×" in line for line in lines)
    assert any(line.startswith("| resident |") and line.endswith("|  |") for line in lines)


def test_the_summary_of_nothing_is_a_heading(tmp_path):
    assert gpu_check.summary(tmp_path).strip() == "# Measured on a CUDA machine"


def test_a_part_that_fails_does_not_take_the_others_along(pretended, capsys, tmp_path, monkeypatch):
    def broken(directory, say):
        raise RuntimeError("out of memory")

    parts = {
        "broken": broken,
        "exactness": lambda directory, say: {"passed": False, "audits": AUDITED["audits"]},
        "opt-6.7b": lambda directory, say: MEASURED,
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    output = tmp_path / "new" / "folder"
    assert gpu_check.main(["--output", str(output)]) == 1
    shown = capsys.readouterr()
    assert "out of memory" in shown.err
    assert "failed: broken, exactness" in shown.out
    assert {file.name for file in output.iterdir()} == {
        "exactness.json",
        "opt-6.7b.json",
        "summary.md",
    }
    written = json.loads((output / "opt-6.7b.json").read_text())
    assert (written["schema_version"], written["environment"]) == (2, WHERE)
    assert "opt-6.7b" in (output / "summary.md").read_text()
    assert gpu_check.main(["--output", str(output), "opt-6.7b"]) == 0
    assert "all parts passed" in capsys.readouterr().out


def test_what_the_time_does_not_allow_is_left_out_and_said(
    pretended, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_check, "PARTS", {"late": lambda *_: pytest.fail("it ran")})
    assert gpu_check.main(["--output", str(tmp_path), "--limit-s", "-1"]) == 0
    assert "late: left out, the time is up" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["summary.md"]


def test_the_audit_runs_every_architecture_in_both_precisions(
    pretended, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_check, "EXACT_STEPS", 2)
    monkeypatch.setattr(gpu_check, "WAYS", (("recompute", 0.37),))
    monkeypatch.setattr(gpu_check, "ARCHITECTURES", {"opt": gpu_check.ARCHITECTURES["opt"]})
    short = make_batch((40, 23))
    batch = (short.input_ids, short.attention_mask)
    monkeypatch.setattr(gpu_check, "ragged_batch", lambda vocab_size: batch)
    monkeypatch.setattr(
        gpu_check, "load_model", lambda name, dtype: LoadedModel(name, make_model("llama"), None)
    )
    assert gpu_check.main(["--output", str(tmp_path), "exactness"]) == 0
    data = json.loads((tmp_path / "exactness.json").read_text())
    assert data["passed"]
    assert [(one["model"], one["dtype"]) for one in data["audits"]] == [
        ("demo", "float32"),
        ("opt", "float32"),
        ("demo", "bfloat16"),
        ("opt", "bfloat16"),
    ]
    assert "all parts passed" in capsys.readouterr().out


def test_a_case_is_measured_and_summed_up(pretended, capsys, tmp_path, monkeypatch):
    profile = replace(
        machine("h200-141gb-pcie5"),
        origin=Origin.MEASURED,
        device="cpu",
        identity=local_identity(),
    )
    policies, rivals = ("stream", "recompute"), ("transformers", "transformers-offloaded")
    case = Case("small", "opt-6.7b", 2, 90, policies, rivals, layers=1, rounds=1, steps=2)
    tiny = LoadedModel("opt-6.7b, 1 layers (random weights)", make_model("opt"), None)
    monkeypatch.setattr(gpu_check, "CASES", {"small": case})
    monkeypatch.setattr(gpu_check, "PARTS", {"small": gpu_check.measure("small")})
    monkeypatch.setattr(gpu_check, "SuiteOptions", lambda device: suite.SuiteOptions("cpu"))
    monkeypatch.setattr(suite, "dummy_model", lambda *_, **__: tiny)
    monkeypatch.setattr(suite, "machine_profile", lambda *_, **__: profile)
    assert gpu_check.main(["--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    # The bound comes before anything is measured.
    assert shown.index("stream: bound") < shown.index("stream: prompts")
    data = json.loads((tmp_path / "small.json").read_text())
    assert [one["policy"] for one in data["policies"]] == list(policies)
    assert [one["rival"] for one in data["rivals"]] == ["transformers"]
    assert [one["name"] for one in data["unable"]] == ["transformers-offloaded"]
    assert data["workload"]["rows"] == 2
    assert data["passed"]
    labels = {timeline.label for timeline in read_timeline_page(tmp_path / "small.timeline.html")}
    assert labels == {f"{tiny.name}, {policy}" for policy in policies}
    text = (tmp_path / "summary.md").read_text()
    assert "opt-6.7b, 1 layers, 2 rows × 90 tokens" in text
    assert "| recompute |" in text
    assert "| transformers |" in text
    assert "- transformers-offloaded cannot run: its cache is offloaded by CUDA streams" in text
    assert "- stream: agrees, tokens identical to transformers" in text


def test_a_case_whose_tokens_differ_has_failed(pretended, capsys, tmp_path, monkeypatch):
    different = {**MEASURED, "passed": False}
    monkeypatch.setattr(gpu_check, "PARTS", {"opt-6.7b-24gib": lambda directory, say: different})
    assert gpu_check.main(["--output", str(tmp_path)]) == 1
    assert "failed: opt-6.7b-24gib" in capsys.readouterr().out
