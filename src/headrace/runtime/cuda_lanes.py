"""A CUDA device: a stream per lane, ordered by events, and host memory that is registered."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.runtime.lanes import Backend, Copy, Event, Flag, Mailbox
from headrace.runtime.large_pages import prefer_large_pages
from headrace.runtime.registered import RegisteredMemory
from headrace.timeline import D2H_LANES, H2D_LANES, Lane, Origin

_WAIT_UNTIL_REACHED = 0
"""CU_STREAM_WAIT_VALUE_GEQ"""

_GLANCE_S = 1e-5
_PATIENCE_S = 120.0


def _compute_stream(index: int) -> int:
    """Return the current stream of a device: its number, for an object of it takes long to make."""
    raw: int = torch._C._cuda_getCurrentRawStream(index)
    return raw


class CudaEvent(Event):
    """A CUDA event, with the one that marked its start when a timeline is wanted."""

    def __init__(
        self, done: torch.cuda.Event, started: torch.cuda.Event | None, epoch: torch.cuda.Event
    ) -> None:
        self.done = done
        self._started = started
        self._epoch = epoch

    @property
    def happened(self) -> bool:
        """Whether the event has happened."""
        return bool(self.done.query())

    def wait_on_host(self) -> None:
        """Block until the event has happened (this one, not the device)."""
        self.done.synchronize()

    def times_s(self) -> tuple[float, float]:
        """Return start and finish, seconds since the backend's epoch."""
        self.done.synchronize()
        finish_s = self._epoch.elapsed_time(self.done) / 1e3
        if self._started is None:
            return finish_s, finish_s
        return self._epoch.elapsed_time(self._started) / 1e3, finish_s

    def took_s(self) -> float:
        """Return the seconds from start to finish: exact however long ago the epoch was."""
        if self._started is None:
            return 0.0
        self.done.synchronize()
        return self._started.elapsed_time(self.done) / 1e3


class CudaFlag(Flag):
    """A number in registered host memory, which a stream waits for by itself.

    The launching thread goes on: it may be layers ahead of the device while the host attends.

    Args:
        number: int32, one element, in registered host memory.
        device: whose current stream waits.
    """

    def __init__(self, number: Tensor, device: torch.device) -> None:
        self._number = number
        self._value = number.numpy()
        self.address = number.data_ptr()
        self._index = torch.empty(0, device=device).get_device()
        self._wait = ctypes.CDLL("libcuda.so.1").cuStreamWaitValue32_v2
        self._wait.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
        self._value[0] = 0

    def reach(self, number: int) -> None:
        """Write the number."""
        self._value[0] = number

    def wait(self, number: int) -> None:
        """Let the current stream wait until the number is reached."""
        status = self._wait(_compute_stream(self._index), self.address, number, _WAIT_UNTIL_REACHED)
        if status != 0:
            raise HeadraceError(
                f"the device cannot wait for the host (cuStreamWaitValue32: error {status}); "
                "use a policy other than 'host', or host_fraction=0"
            )


class CudaSignal(Event):
    """A moment of a stream, which a thread sees by looking at memory, without calling the driver.

    The driver may be busy just then: a kernel that is used for the first time is loaded, which can
    wait for all that is under way, and that may wait for the very thread.

    Args:
        value: int32, one element, in registered host memory; the stream writes it.
        number: what it is then.
        now_s: tells the time.
    """

    def __init__(self, value: Tensor, number: int, now_s: Callable[[], float]) -> None:
        self._value: NDArray[np.int32] = value.numpy()
        self.word = value.data_ptr(), number
        self._number = number
        self._now_s = now_s
        self._seen_s = 0.0

    @property
    def happened(self) -> bool:
        """Whether the number is there."""
        return bool(self._value[0] >= self._number)

    def wait_on_host(self) -> None:
        """Look until the number is there."""
        start_s = self._now_s()
        while not self.happened:
            if self._now_s() - start_s > _PATIENCE_S:
                raise HeadraceError(f"the device made no queries within {_PATIENCE_S} s")
            time.sleep(_GLANCE_S)
        self._seen_s = self._now_s()

    def times_s(self) -> tuple[float, float]:
        """Return when the number was seen."""
        self.wait_on_host()
        return self._seen_s, self._seen_s


class _MappedMemory:
    """Registered host memory, as something that torch takes for memory of the device.

    With unified addressing, the address is the same on both sides.
    """

    def __init__(self, buffer: Tensor, typestr: str) -> None:
        self.buffer = buffer
        self.__cuda_array_interface__ = {
            "shape": tuple(buffer.shape),
            "typestr": typestr,
            "data": (buffer.data_ptr(), False),
            "version": 3,
        }


class CudaBackend(Backend):
    """A CUDA device with its real link.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.origin = Origin.MEASURED
        self._index = torch.empty(0, device=device).get_device()
        self._streams: dict[Lane, torch.cuda.Stream] = {}
        self._last: dict[tuple[Lane, ...], tuple[Lane, torch.cuda.Event]] = {}
        self._registered = RegisteredMemory(torch.cuda.cudart())
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._start_load = self._driver.cuMemcpyHtoDAsync_v2
        self._start_store = self._driver.cuMemcpyDtoHAsync_v2
        for start in (self._start_load, self._start_store):
            start.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
        self._write = self._driver.cuStreamWriteValue32_v2
        self._write.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
        self._signal: Tensor | None = None
        self._signals = 0
        self._current: tuple[int, torch.cuda.Stream] | None = None
        self._epoch = torch.cuda.Event(enable_timing=True)
        self._epoch.record(torch.cuda.current_stream(device))
        self._epoch.synchronize()
        self._epoch_s = time.perf_counter()

    def transfer(
        self, lane: Lane, copies: Sequence[Copy], after: Sequence[Event], timed: bool = False
    ) -> Event:
        """Enqueue copies on the lane's stream."""
        stream = self._streams.get(lane)
        if stream is None:
            stream = self._streams[lane] = torch.cuda.Stream(self.device)
        direction = H2D_LANES if lane in H2D_LANES else D2H_LANES
        for event in after:
            assert isinstance(event, CudaEvent)
            stream.wait_event(event.done)
        last = self._last.get(direction)
        if last is not None and last[0] is not lane:
            stream.wait_event(last[1])
        timed = timed or self.timed
        started = self._record(stream, timed) if timed else None
        for copy in copies:
            self._copy(copy, stream.cuda_stream, direction is H2D_LANES)
        done = self._record(stream, timed)
        self._last[direction] = (lane, done)
        return CudaEvent(done, started, self._epoch)

    def _copy(self, copy: Copy, stream: int, to_device: bool) -> None:
        """Enqueue a copy by the driver itself: torch's takes several times as long to launch."""
        start = self._start_load if to_device else self._start_store
        destination, source = copy.destination.data_ptr(), copy.source.data_ptr()
        status = start(destination, source, copy.size_bytes, stream)
        if status != 0:
            raise HeadraceError(f"a copy could not be started (CUDA error {status})")

    def mark(self) -> Event:
        """Record an event on the current stream."""
        return CudaEvent(self._record(self._compute, self.timed), None, self._epoch)

    def begin_compute(self) -> object:
        """Record the start, if times are wanted."""
        return self._record(self._compute, self.timed) if self.timed else None

    def end_compute(self, start: object) -> Event:
        """Record the end of compute so far."""
        assert start is None or isinstance(start, torch.cuda.Event)
        return CudaEvent(self._record(self._compute, self.timed), start, self._epoch)

    def wait(self, event: Event) -> None:
        """Let the current stream wait for the event."""
        assert isinstance(event, CudaEvent)
        self._compute.wait_event(event.done)

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return registered host memory.

        torch's own pinned allocations are rounded up to a power of two; registering plain memory
        is not. The memory is touched first, by all threads, which registering would do by one, and
        in large pages, which link and cores read faster while both are at work.
        """
        buffer = torch.empty(math.prod(shape), dtype=dtype)
        if buffer.numel() == 0:
            return buffer.view(tuple(shape))
        prefer_large_pages(buffer)
        buffer.view(torch.uint8).zero_()
        self._registered.register(buffer)
        return buffer.view(tuple(shape))

    def free_host(self, buffer: Tensor) -> None:
        """Take the registration back; the memory goes with its last tensor."""
        self._registered.free(buffer)

    def mailbox(self, shape: Sequence[int], dtype: torch.dtype) -> Mailbox:
        """Return registered host memory, and the same memory as a tensor of the device."""
        host = self.host_buffer(shape, dtype)
        flat = host.view(torch.uint8)
        with torch.cuda.device(self.device):
            mapped: Tensor = torch.as_tensor(_MappedMemory(flat, "|u1"), device=self.device)
        return Mailbox(mapped.view(dtype), host)

    def flag(self) -> Flag:
        """Return a flag at 0."""
        return CudaFlag(self.host_buffer((1,), torch.int32), self.device)

    def now_s(self) -> float:
        """Return the time since the epoch."""
        return time.perf_counter() - self._epoch_s

    def synchronize(self) -> None:
        """Wait for every lane and for compute."""
        for stream in self._streams.values():
            stream.synchronize()
        self._compute.synchronize()

    def close(self) -> None:
        """Wait for the lanes and release the host memory."""
        self.synchronize()
        self._registered.free_all()

    def host_marks(self, stored: Event | None) -> list[Event]:
        """Let the current stream, after the store, write a number that a thread can see."""
        if stored is not None:
            self.wait(stored)
        if self._signal is None:
            self._signal = self.host_buffer((1,), torch.int32)
        self._signals += 1
        stream = _compute_stream(self._index)
        status = self._write(stream, self._signal.data_ptr(), self._signals, 0)
        if status != 0:
            raise HeadraceError(
                f"the device cannot tell the host (cuStreamWriteValue32: error {status}); use a "
                "policy other than 'host', or host_fraction=0"
            )
        return [CudaSignal(self._signal, self._signals, self.now_s)]

    @property
    def _compute(self) -> torch.cuda.Stream:
        raw = _compute_stream(self._index)
        if self._current is None or self._current[0] != raw:
            self._current = raw, torch.cuda.current_stream(self.device)
        return self._current[1]

    @staticmethod
    def _record(stream: torch.cuda.Stream, timed: bool) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=timed)
        event.record(stream)
        return event
