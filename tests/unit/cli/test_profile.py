import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from headrace.cli import main
from headrace.cli.profile_text import profile_text
from headrace.hardware.catalog import machine
from headrace.hardware.identity import local_identity
from headrace.hardware.profile import GemmPoint, Measurement
from headrace.hardware.profile_file import load_profile
from headrace.timeline import Origin

MEASURED = replace(
    machine("t4-pcie3"),
    name="a machine",
    origin=Origin.MEASURED,
    device="cpu",
    date="2026-01-02T03:04:05+00:00",
    source={},
    identity=local_identity(),
    h2d_curve=((1024, 1e9), (2**20, 16e9)),
    gemm_curve=(GemmPoint(64, 4096, 8192, "float32", 8.1e12),),
    measurements={
        "h2d_bytes_per_s[1048576]": Measurement(16e9, 15e9, 17e9, 3),
        "gemm_flops_per_s[float32,64]": Measurement(8.1e12, 8e12, 8.2e12, 3),
    },
    h2d_while_compute_bytes_per_s=12e9,
    h2d_while_attend_bytes_per_s=11e9,
    host_attend_while_h2d_bytes_per_s=13e9,
)


class Probes:
    """Stands in for what measures, and counts its calls."""

    def __init__(self):
        self.calls = []
        self.models = []

    def of_a_model(self, shape, device, dtype):
        self.models.append((shape.name, str(device), str(dtype)))
        return SimpleNamespace(by_name=dict)

    def __call__(self, device, shape=None, dtype=None, **options):
        self.calls.append((device, shape and shape.name, dtype))
        return replace(MEASURED, quick=options["quick"], emulates=options["emulate"])


@pytest.fixture
def probes(monkeypatch, tmp_path):
    from headrace.hardware import store

    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    probes = Probes()
    monkeypatch.setattr("headrace.hardware.probes.profile_machine", probes)
    monkeypatch.setitem(store.load_or_measure.__kwdefaults__, "measure", probes)
    monkeypatch.setattr("headrace.hf.host_probes.HostProbes", probes.of_a_model)
    return probes


def shown(capsys, *words):
    assert main(["profile", "--device", "cpu", "--quiet", *words]) == 0
    return capsys.readouterr().out


def test_a_stored_profile_is_shown_and_measured_anew_only_when_forced(probes, capsys):
    first, again = (shown(capsys, "--json") for _ in range(2))
    assert first == again
    assert len(probes.calls) == 1
    assert shown(capsys, "--force", "--json") == first
    assert len(probes.calls) == 2


def test_a_models_widths_and_a_dtype_are_measured(probes, capsys):
    shown(capsys, "--model", "opt-13b", "--dtype", "float32")
    assert probes.calls == [("cpu", "opt-13b", "float32")]
    assert probes.models == [("opt-13b", "cpu", "torch.float32")]


def test_a_forced_measurement_is_stored_where_it_is_looked_for(probes, capsys):
    path = json.loads(shown(capsys, "--force", "--model", "demo", "--json"))["path"]
    assert load_profile(path) == MEASURED
    assert json.loads(shown(capsys, "--model", "demo", "--json"))["path"] == path
    assert len(probes.calls) == 1


def test_a_store_that_cannot_be_written_is_said(probes, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "file"))
    assert "Not kept" in shown(capsys)
    assert json.loads(shown(capsys, "--force", "--json"))["path"] is None


def test_an_output_that_cannot_be_written_is_refused_before_measuring(probes, capsys, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "profile.json"):
        assert main(["profile", "--output", str(place)]) == 2
        assert str(place) in capsys.readouterr().err
    assert probes.calls == []


def test_an_output_may_be_in_a_new_folder(probes, capsys, tmp_path):
    file = tmp_path / "new" / "profile.json"
    assert f"Kept at {file}" in shown(capsys, "--output", str(file))
    assert load_profile(file) == MEASURED


def test_the_text_has_figures_spreads_and_conditions():
    lines = profile_text(MEASURED, None).splitlines()
    link = next(line for line in lines if line.startswith("link to the device"))
    assert "16.0 GB/s" in link
    assert "15.0 GB/s to 17.0 GB/s" in link
    assert link.endswith("alone")
    assert any("12.0 GB/s" in line and "while the device computes" in line for line in lines)
    assert any("11.0 GB/s" in line and "while the host's cores attend" in line for line in lines)
    attention = next(i for i, line in enumerate(lines) if line.startswith("host's attention"))
    assert "13.0 GB/s" in lines[attention + 1]
    assert lines[attention + 1].endswith("while the link to the device is busy")
    assert any("1.0 GB/s at 1 KiB, 16.0 GB/s at 1 MiB" in line for line in lines)


def test_an_emulated_link_is_labelled_in_the_head_and_in_its_rows():
    measured = {f"unpaced_{name}": found for name, found in MEASURED.measurements.items()}
    emulated = replace(MEASURED, origin=Origin.EMULATED, emulates="t4-pcie3", measurements=measured)
    text = profile_text(emulated, None)
    assert "EMULATED" in text
    assert "alone (emulated; here 16.0 GB/s)" in text
