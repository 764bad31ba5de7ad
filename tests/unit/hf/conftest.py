import pytest

from headrace.hf import host_probes, model_probes, probe_timing, step_probes


@pytest.fixture
def small(monkeypatch):
    """Small probes: no figure is judged here."""
    monkeypatch.setattr(model_probes, "_GRANULE_BYTES", 1 << 20)
    monkeypatch.setattr(model_probes, "_REBUILT_BYTES", 1 << 20)
    for module, name in (
        (model_probes, "REPEATS"),
        (probe_timing, "REPEATS"),
        (step_probes, "_STEPS"),
    ):
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(host_probes, "uncached_bytes", lambda least: 2 * least)
    for name, value in (
        ("_CALL_BYTES", 1 << 20),
        ("_COPIED_BYTES", 1 << 18),
        ("_COPY_BYTES", 1 << 16),
        ("_REPEATS", 2),
    ):
        monkeypatch.setattr(host_probes, name, value)
