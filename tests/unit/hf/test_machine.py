import math
from dataclasses import replace

import pytest

from headrace.errors import ConfigurationError, ProfileError
from headrace.hardware import store
from headrace.hardware.probes import CURVES, EXTRA_FIELDS, add_extra_probes
from headrace.hardware.profile_file import load_profile
from headrace.hardware.store import profile_path
from headrace.hf.machine import machine_profile, shape_of

OF_A_GPU = ("host_page_s", "mail_", "launch_")
OF_A_CPU = {name for name in EXTRA_FIELDS if not name.startswith(OF_A_GPU)}
"""What is measured of a model on a CPU: a GPU has short pages, mail, and work to be launched."""


@pytest.fixture
def probes(monkeypatch, small, emulated):
    """Stands in for the measurement of the machine itself; the model's probes are real."""
    calls = []

    def measure(device, shape, dtype, *, extra_probes, progress, emulate, quick):
        calls.append((device, shape.name, quick, emulate))
        found = replace(emulated, emulates=emulate, quick=quick)
        return add_extra_probes(found, extra_probes, repeats=1, progress=progress)

    monkeypatch.setitem(store.load_or_measure.__kwdefaults__, "measure", measure)
    return calls


def test_the_shape_is_the_models_in_the_dtype_of_its_weights(demo):
    shape = shape_of(demo.model)
    widths = (shape.num_layers, shape.d_model, shape.num_heads, shape.num_kv_heads, shape.head_dim)
    assert widths == (6, 256, 4, 4, 64)
    assert shape.dtype == "float32"


def test_the_machine_is_measured_once_at_the_models_shapes(demo, probes):
    lines = []
    profile = machine_profile(demo.model, progress=lines.append)
    for figure in OF_A_CPU:
        assert 0 <= getattr(profile, figure) < math.inf
        assert any(line.startswith(figure) for line in lines)
    for curve in CURVES:
        assert [rows for rows, _ in getattr(profile, curve)] == [1, 4, 8, 32, 64]
    again = machine_profile(demo.model)
    assert again == profile
    ((device, _, quick, emulate),) = probes
    assert (device, quick, emulate) == ("cpu", True, None)
    shape = shape_of(demo.model)
    path = profile_path("cpu", shape, kind=shape.kind)
    assert load_profile(path) == profile
    assert "256x256-float32" in path.name


def test_figures_of_the_model_are_added_to_a_stored_profile(demo, probes, emulated):
    shape = shape_of(demo.model)
    stored = replace(emulated, quick=True, emulates="t4-pcie3")
    store.save_profile(stored, profile_path("cpu", shape, None, "t4-pcie3"))
    profile = machine_profile(demo.model, emulate="t4-pcie3")
    assert probes == []
    assert all(profile.is_measured(figure) for figure in OF_A_CPU)
    assert profile.h2d_bytes_per_s == stored.h2d_bytes_per_s
    assert machine_profile(demo.model, emulate="t4-pcie3") == profile


def test_a_link_is_emulated_on_request(demo, probes):
    profile = machine_profile(demo.model, emulate="a100-40gb-pcie4", quick=False)
    assert profile.emulates == "a100-40gb-pcie4"
    assert [call[2:] for call in probes] == [(False, "a100-40gb-pcie4")]


def test_what_cannot_be_emulated_is_refused(demo):
    with pytest.raises((ProfileError, ConfigurationError), match="h300"):
        machine_profile(demo.model, emulate="h300")
