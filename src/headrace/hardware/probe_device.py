"""The device as the probes see it: buffers, a clock, and work that keeps a lane busy.

CUDA and CPU differ in these few methods only. Work is a callable that starts device operations on
the current stream; on a CPU it has finished when it returns.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Protocol

import torch
from torch import Tensor

from headrace.errors import ConfigurationError
from headrace.hardware.identity import GpuIdentity, gpu_driver_version, host_memory_limit_bytes

Work = Callable[[], object]


class ProbeDevice(Protocol):
    """What the probes need of a device."""

    name: str
    torch_device: torch.device
    gpu: GpuIdentity | None
    memory_bytes: int

    def host_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes in host memory, pinned where the device can use that."""

    def device_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes in the device's memory."""

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a random ``[rows, columns]`` matrix in the device's memory."""

    def transfer(self, target: Tensor, source: Tensor) -> None:
        """Start a copy of contiguous bytes from one side of the link to the other."""

    def seconds(self, work: Work) -> float:
        """Run ``work`` on an otherwise idle lane and return how long the device took."""

    def keep_busy(self, work: Work, started: Event, stop: Event) -> None:
        """Run ``work`` over and over on a lane of its own, without a gap, until ``stop`` is set.

        ``started`` is set as soon as the lane is busy.
        """


class CpuProbeDevice:
    """The CPU: its device memory is host memory, and a transfer is one thread's ``memcpy``.

    torch's own ``copy_`` would take all cores from the work that the transfer shall hide behind.
    """

    def __init__(self) -> None:
        self.name = "cpu"
        self.torch_device = torch.device("cpu")
        self.gpu: GpuIdentity | None = None
        self.memory_bytes = host_memory_limit_bytes()

    def host_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes."""
        return _random_bytes(torch.empty(size_bytes, dtype=torch.uint8))

    def device_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes."""
        return self.host_buffer(size_bytes)

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a random matrix."""
        return torch.randn(rows, columns).to(dtype)

    def transfer(self, target: Tensor, source: Tensor) -> None:
        """Copy with the calling thread; others may run Python meanwhile."""
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)

    def seconds(self, work: Work) -> float:
        """Return how long ``work`` took by the wall clock."""
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def keep_busy(self, work: Work, started: Event, stop: Event) -> None:
        """Run ``work`` until ``stop`` is set."""
        while not stop.is_set():
            work()
            started.set()


class CudaProbeDevice:
    """The current CUDA device, timed by events on a stream of its own."""

    def __init__(self) -> None:
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        self.name = "cuda"
        self.torch_device = torch.device("cuda", index)
        self.memory_bytes = properties.total_memory
        self.gpu: GpuIdentity | None = GpuIdentity(
            name=properties.name,
            memory_bytes=properties.total_memory,
            cuda_version=str(torch.version.cuda),
            driver_version=gpu_driver_version(),
        )
        self._measured = torch.cuda.Stream(index)
        self._background = torch.cuda.Stream(index)

    def host_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes in pinned memory."""
        return _random_bytes(torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True))

    def device_buffer(self, size_bytes: int) -> Tensor:
        """Return random bytes in the GPU's memory."""
        empty = torch.empty(size_bytes, dtype=torch.uint8, device=self.torch_device)
        return self._filled(_random_bytes(empty))

    def matrix(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a random matrix in the GPU's memory."""
        return self._filled(torch.randn(rows, columns, device=self.torch_device).to(dtype))

    def transfer(self, target: Tensor, source: Tensor) -> None:
        """Start an asynchronous copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def seconds(self, work: Work) -> float:
        """Return how long ``work`` took on its stream, by two events."""
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self._measured):
            begin.record()
            work()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def keep_busy(self, work: Work, started: Event, stop: Event) -> None:
        """Run ``work`` on the background stream until ``stop`` is set."""
        # Two are in flight at all times, so that the lane never waits for this thread.
        previous: torch.cuda.Event | None = None
        with torch.cuda.stream(self._background):
            while not stop.is_set():
                work()
                event = torch.cuda.Event(blocking=True)
                event.record()
                if previous is not None:
                    previous.synchronize()
                    started.set()
                previous = event
        self._background.synchronize()

    def _filled(self, tensor: Tensor) -> Tensor:
        # It was filled on the default stream; the probes read it on others.
        torch.cuda.synchronize(self.torch_device)
        return tensor


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigurationError: ``device`` is none of these, or there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ConfigurationError(f"device is {device!r}; allowed are auto, cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device is cuda, but torch {torch.__version__} finds no CUDA device here; "
            "use device cpu, or install a torch built for this machine's GPU"
        )
    return device


def open_device(device: str) -> ProbeDevice:
    """Return the device to be measured.

    Raises:
        ConfigurationError: as ``resolve_device``.
    """
    return CudaProbeDevice() if resolve_device(device) == "cuda" else CpuProbeDevice()


@contextmanager
def busy(device: ProbeDevice, work: Work) -> Iterator[None]:
    """Keep a lane of ``device`` busy with ``work`` inside the ``with`` block."""
    started, stop = Event(), Event()
    with ThreadPoolExecutor(1, "headrace-probe") as pool:
        lane = pool.submit(device.keep_busy, work, started, stop)
        lane.add_done_callback(lambda _: started.set())
        started.wait()
        try:
            yield
        finally:
            stop.set()
        lane.result()


def _random_bytes(buffer: Tensor) -> Tensor:
    buffer.view(torch.int64).random_()
    return buffer
