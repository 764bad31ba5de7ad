from dataclasses import replace

import pytest
from tests.fixtures import one_thread

from headrace.engine.loading import LoadedModel, load_model
from headrace.hardware.catalog import machine
from headrace.hardware.identity import local_identity
from headrace.hardware.profile import HardwareProfile
from headrace.timeline import Origin

__all__ = ["demo", "emulated", "no_stored_profile", "one_thread"]


@pytest.fixture(autouse=True)
def no_stored_profile(monkeypatch, tmp_path):
    """No test reads or writes the profiles of who runs it."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="package")
def demo() -> LoadedModel:
    """The model that is shipped, in float32."""
    return load_model("demo", device="cpu", dtype="float32")


@pytest.fixture
def emulated() -> HardwareProfile:
    """A profile of this machine with a made-up link, as an emulation has it."""
    return replace(
        machine("a100-40gb-pcie4"),
        name="a CPU",
        origin=Origin.EMULATED,
        device="cpu",
        emulates="a100-40gb-pcie4",
        h2d_bytes_per_s=2e8,
        d2h_bytes_per_s=2e8,
        identity=local_identity(),
        source={},
    )
