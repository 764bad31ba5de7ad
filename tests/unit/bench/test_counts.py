import ctypes
from types import SimpleNamespace

import pytest
import torch
from tests.support import make_model

from headrace.bench import counts
from headrace.bench.counts import EnergyCount, MemoryCount

GPU = torch.device("cuda", 0)


class Driver:
    """NVML, as far as it is called: a counter of millijoules."""

    def __init__(self, readings, known="GPU-12-ab", failed=0):
        self._readings, self._known, self._failed = iter(readings), known.encode(), failed

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):  # noqa: N802
        return 0 if uuid == self._known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu, value):  # noqa: N802
        if not self._failed:
            ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = next(self._readings)
        return self._failed


def pretend(monkeypatch, driver):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    properties = SimpleNamespace(uuid="12-ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_energy_is_what_the_driver_counts_while_steps_are_timed(monkeypatch):
    pretend(monkeypatch, Driver([1000, 5000, 9000, 11000]))
    energy = EnergyCount(GPU)
    with energy:
        pass
    with energy:
        pass
    # 4 J and 2 J; the 4 J in between are nobody's.
    assert energy.per_step(3) == pytest.approx(2.0)


@pytest.mark.parametrize("driver", [Driver([], known="GPU-other"), Driver([], failed=3)])
def test_a_gpu_that_does_not_tell_has_no_energy(monkeypatch, driver):
    pretend(monkeypatch, driver)
    energy = EnergyCount(GPU)
    with energy:
        pass
    assert energy.per_step(3) is None


def test_without_the_drivers_library_there_is_none(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert EnergyCount(GPU).per_step(3) is None
    assert EnergyCount(torch.device("cpu")).per_step(3) is None


def test_memory_is_a_runs_own(monkeypatch):
    model = make_model("llama")
    memory = MemoryCount(model)
    memory.start()
    memory.note()
    assert memory.peak_bytes(17) == 17
    assert memory.grown_bytes == 0
    held = {"memory_allocated": 1000, "max_memory_allocated": 5000, "memory_reserved": 6000}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    for name in held:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: held[name])
    monkeypatch.setattr(counts, "device_bytes", lambda *_: 300)
    memory._device = GPU
    memory.start()
    memory.note()
    held["memory_reserved"] = 6500
    # Of the 1000 bytes that were there before, 300 are the weights, which every run needs.
    assert memory.peak_bytes(17) == 5000 - 700
    assert memory.grown_bytes == 500
