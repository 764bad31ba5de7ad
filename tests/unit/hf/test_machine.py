import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.support import shared_model

from headrace.errors import ConfigurationError, ProfileError
from headrace.hardware import store
from headrace.hardware.probes import add_extra_probes
from headrace.hardware.profile_file import load_profile, profile_from_json, profile_to_json
from headrace.hardware.store import profile_path
from headrace.hf import joint_probes, model_probes
from headrace.hf.machine import machine_profile, shape_of
from headrace.hf.model_probes import (
    attend_call_s,
    attend_rate,
    dense_rate,
    host_attend_rate,
    load_call_s,
    rebuild_call_s,
    rebuild_rate,
)

FIGURES = (
    "attend_bytes_per_s",
    "attend_call_s",
    "dense_bytes_per_s",
    "h2d_while_attend_bytes_per_s",
    "host_attend_bytes_per_s",
    "host_attend_while_h2d_bytes_per_s",
    "load_call_s",
    "rebuild_call_s",
    "rebuild_flops_per_s",
)


@pytest.fixture
def small(monkeypatch):
    """Small probes: no figure is judged here."""
    monkeypatch.setattr(model_probes, "_GRANULE_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_REBUILT_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_HOST_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_REPEATS", 2)
    monkeypatch.setattr(joint_probes, "_BUFFER_BYTES", 1 << 18)
    monkeypatch.setattr(joint_probes, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(joint_probes, "_REPEATS", 2)


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


def test_rates_of_the_demo_are_positive(demo, small):
    shape = shape_of(demo.model)
    cache = (shape, torch.device("cpu"), torch.float32)
    for rate in (
        attend_rate(*cache),
        load_call_s(*cache[1:]),
        host_attend_rate(shape, torch.float32),
        host_attend_rate(shape, torch.float32, beside_compute=True),
        rebuild_rate(demo.model, shape),
        dense_rate(demo.model, shape),
    ):
        assert 0 < rate < math.inf
    for call_s in (attend_call_s(*cache), rebuild_call_s(demo.model, shape)):
        assert 0 <= call_s < math.inf


@pytest.mark.parametrize(
    ("device", "call_s"),
    [("cuda", 7.0), ("cpu", 3.0)],  # a call takes 3 s, and 2 s more for each page
)
def test_a_call_is_without_its_work_where_both_add_up(device, call_s):
    measured = model_probes._call_s(lambda pages: 3.0 + 2.0 * pages, 2, torch.device(device))
    assert measured == pytest.approx(call_s)


def test_a_call_never_takes_less_than_nothing():
    assert model_probes._call_s(lambda pages: pages**2, 2, torch.device("cpu")) == 0.0


@pytest.mark.parametrize("name", ["opt", "llama-gqa", "gpt-neox", "phi3"])
def test_rates_of_other_architectures_are_positive(name, small):
    model = shared_model(name)
    shape = shape_of(model)
    assert 0 < attend_rate(shape, torch.device("cpu"), torch.float32) < math.inf
    assert 0 < rebuild_rate(model, shape) < math.inf
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_cannot_be_rebuilt_has_a_rate_without_limit(demo, monkeypatch, small):
    class Attachment:
        projections = ("not found",) * 6

    shape = shape_of(demo.model)
    monkeypatch.setattr(model_probes, "attach", lambda model: Attachment)
    monkeypatch.setattr(model_probes, "detach", lambda model: None)
    assert rebuild_rate(demo.model, shape) == math.inf
    assert rebuild_call_s(demo.model, shape) == 0


def test_a_rate_without_limit_can_be_stored(emulated):
    profile = replace(emulated, rebuild_flops_per_s=math.inf)
    assert profile_from_json(profile_to_json(profile)) == profile


def test_the_median_leaves_the_warm_up_out(monkeypatch):
    moments = iter([0.0, 100.0, 100.0, 101.0, 101.0, 104.0, 104.0, 106.0])
    monkeypatch.setattr(model_probes, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    monkeypatch.setattr(model_probes, "_REPEATS", 3)
    assert model_probes.median_s(lambda: None, torch.device("cpu")) == 2.0


def test_the_machine_is_measured_once_at_the_models_shapes(demo, probes):
    lines = []
    profile = machine_profile(demo.model, progress=lines.append)
    for figure in FIGURES:
        assert 0 <= getattr(profile, figure) < math.inf
        assert any(line.startswith(figure) for line in lines)
    again = machine_profile(demo.model)
    assert again == profile
    ((device, _, quick, emulate),) = probes
    assert (device, quick, emulate) == ("cpu", True, None)
    path = profile_path("cpu", shape_of(demo.model))
    assert load_profile(path) == profile
    assert "256x256-float32" in path.name


def test_figures_of_the_model_are_added_to_a_stored_profile(demo, probes, emulated):
    shape = shape_of(demo.model)
    stored = replace(emulated, quick=True, emulates="t4-pcie3")
    store.save_profile(stored, profile_path("cpu", shape, None, "t4-pcie3"))
    profile = machine_profile(demo.model, emulate="t4-pcie3")
    assert probes == []
    assert all(profile.is_measured(figure) for figure in FIGURES)
    assert profile.h2d_bytes_per_s == stored.h2d_bytes_per_s
    assert machine_profile(demo.model, emulate="t4-pcie3") == profile


def test_a_link_is_emulated_on_request(demo, probes):
    profile = machine_profile(demo.model, emulate="a100-40gb-pcie4", quick=False)
    assert profile.emulates == "a100-40gb-pcie4"
    assert [call[2:] for call in probes] == [(False, "a100-40gb-pcie4")]


def test_emulated_cores_are_measured_while_the_same_cores_compute(demo, probes, monkeypatch):
    asked = []

    def host_attend_rate(shape, dtype, *, beside_compute):
        asked.append(beside_compute)
        return 3e9

    monkeypatch.setattr(model_probes, "host_attend_rate", host_attend_rate)
    assert machine_profile(demo.model, emulate="t4-pcie3").host_attend_rate == 3e9
    assert set(asked) == {True}
    machine_profile(demo.model)
    assert asked[-1] is False


def test_what_cannot_be_emulated_is_refused(demo):
    with pytest.raises((ProfileError, ConfigurationError), match="h300"):
        machine_profile(demo.model, emulate="h300")
