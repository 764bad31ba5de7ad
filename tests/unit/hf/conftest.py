import pytest

from headrace.hf import joint_probes, model_probes, probe_timing, step_probes


@pytest.fixture
def small(monkeypatch):
    """Small probes: no figure is judged here."""
    monkeypatch.setattr(model_probes, "_GRANULE_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_REBUILT_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_HOST_BYTES", 1 << 20)
    for module, name in (
        (model_probes, "REPEATS"),
        (probe_timing, "REPEATS"),
        (step_probes, "_STEPS"),
    ):
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(joint_probes, "_BUFFER_BYTES", 1 << 18)
    monkeypatch.setattr(joint_probes, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(joint_probes, "_REPEATS", 2)
