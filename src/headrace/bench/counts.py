"""What a run takes of the device: its memory, and its energy."""

from __future__ import annotations

import ctypes
from types import TracebackType

import torch
from torch import nn

from headrace.hf.weights import device_bytes

_LIBRARY = "libnvidia-ml.so.1"


class MemoryCount:
    """Counts a run's device memory, as if no other run were open. On a CPU it counts nothing.

    Args:
        model: whose weights are counted with every run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._others = self._peak = self._reserved = 0

    def start(self) -> None:
        """Begin, before anything of the run is there."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            weights = device_bytes(self._model, self._device)
            self._others = max(0, torch.cuda.memory_allocated(self._device) - weights)

    def note(self) -> None:
        """Note the peak, once the prompts and the first steps have run."""
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device) - self._others
            self._reserved = torch.cuda.memory_reserved(self._device)

    def peak_bytes(self, on_cpu: int) -> int:
        """Return the peak of prompts and first steps; on a CPU what is given."""
        return self._peak if self._device.type == "cuda" else on_cpu

    @property
    def grown_bytes(self) -> int:
        """Device memory that torch has reserved since, for whatever run."""
        if self._device.type != "cuda":
            return 0
        return torch.cuda.memory_reserved(self._device) - self._reserved


class EnergyCount:
    """Adds up what a GPU takes while this is entered, by the counter of its driver (NVML).

    Args:
        device: the device; for anything but a GPU that tells, nothing is counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = _gpu_handle(device)
        self._total_mj = self._start_mj = 0

    def __enter__(self) -> EnergyCount:
        self._start_mj = self._read_mj()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._total_mj += self._read_mj() - self._start_mj

    def per_step(self, steps: int) -> float | None:
        """Return the joules of a step, given how many there were; None where nothing is told."""
        return self._total_mj / 1e3 / steps if self._total_mj > 0 and steps else None

    def _read_mj(self) -> int:
        if self._handle is None:
            return 0
        library, gpu = self._handle
        value = ctypes.c_ulonglong()
        failed = library.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(value))
        return 0 if failed else value.value


def _gpu_handle(device: torch.device) -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """Return the driver's library and its handle of a GPU, or None where there is none."""
    if device.type != "cuda":
        return None
    try:
        library = ctypes.CDLL(_LIBRARY)
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        gpu = ctypes.c_void_p()
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(
            uuid.encode(), ctypes.byref(gpu)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else (library, gpu)
