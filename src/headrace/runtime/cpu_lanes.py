"""A CPU as the device: a thread for each direction of the link, which may emulate a slower one."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.runtime.lanes import Attended, Backend, Copy, Event, Flag, Mailbox
from headrace.runtime.pacing import Pacer
from headrace.timeline import H2D_LANES, Lane, Origin

_PIECE_BYTES = 1 << 20


class CpuEvent(Event):
    """An event that another thread sets."""

    def __init__(self) -> None:
        self._happened = threading.Event()
        self._error: BaseException | None = None
        self.start_s = 0.0
        self.finish_s = 0.0

    def happen(self, start_s: float, finish_s: float, error: BaseException | None = None) -> None:
        """Set the event."""
        self.start_s, self.finish_s, self._error = start_s, finish_s, error
        self._happened.set()

    @property
    def happened(self) -> bool:
        """Whether the event has happened."""
        return self._happened.is_set()

    def wait(self) -> None:
        """Block until the event has happened, whatever came of it."""
        self._happened.wait()

    def wait_on_host(self) -> None:
        """Block until the event has happened; raise what the transfer raised."""
        self.wait()
        if self._error is not None:
            raise HeadraceError(f"a transfer failed: {self._error}") from self._error

    def times_s(self) -> tuple[float, float]:
        """Return start and finish, seconds since the backend's epoch."""
        self.wait_on_host()
        return self.start_s, self.finish_s


@dataclass(frozen=True)
class _Job:
    copies: Sequence[Copy]
    after: Sequence[Event]
    event: CpuEvent
    submitted_s: float


class Direction:
    """One direction of the link: a thread that does transfers in the order in which they came.

    Args:
        name: of the thread.
        bytes_per_s: the rate that is emulated, or None for as fast as memory allows.
        epoch_s: from when times are counted (``perf_counter``).
    """

    def __init__(self, name: str, bytes_per_s: float | None, epoch_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._epoch_s = epoch_s
        self._pacer = Pacer()
        # Whoever is interrupted while handing over a job has either done so or not.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"headrace-{name}", daemon=True)
        self._thread.start()

    def submit(self, job: _Job) -> None:
        """Do a transfer after those that came before."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread, once it has done what it was given."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._transfer(job)
            # While the thread waits for the next one, this one's memory is not held.
            del job

    def _transfer(self, job: _Job) -> None:
        error: BaseException | None = None
        ready_s = start_s = finish_s = job.submitted_s
        try:
            for event in job.after:
                ready_s = max(ready_s, event.times_s()[1] + self._epoch_s)
            start_s, finish_s = self._copy(job.copies, ready_s)
        except BaseException as caught:  # handed to whoever waits for the transfer
            error = caught
        job.event.happen(start_s - self._epoch_s, finish_s - self._epoch_s, error)

    def _copy(self, copies: Sequence[Copy], ready_s: float) -> tuple[float, float]:
        """Copy; return start and finish (``perf_counter``).

        Args:
            copies: what to copy.
            ready_s: when the transfer could have begun, had the link been free (see ``Pacer``).
        """
        start_s = time.perf_counter()
        for copy in copies:
            _memmove(copy)
        if self._bytes_per_s is None:
            return start_s, time.perf_counter()
        size_bytes = sum(copy.size_bytes for copy in copies)
        return self._pacer.hold(ready_s, size_bytes / self._bytes_per_s)


def _memmove(copy: Copy) -> None:
    """Copy without torch: no second team of threads, and the interpreter's lock is free."""
    size = copy.size_bytes
    destination, source = copy.destination.data_ptr(), copy.source.data_ptr()
    for offset in range(0, size, _PIECE_BYTES):
        ctypes.memmove(destination + offset, source + offset, min(_PIECE_BYTES, size - offset))


class CpuFlag(Flag):
    """A number under a lock."""

    def __init__(self) -> None:
        self._reached = 0
        self._changed = threading.Condition()

    def reach(self, number: int) -> None:
        """Raise the number and wake who waits."""
        with self._changed:
            self._reached = number
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Block until it is reached."""
        with self._changed:
            self._changed.wait_for(lambda: self._reached >= number)


class CpuBackend(Backend):
    """The CPU as the device.

    Args:
        h2d_bytes_per_s: host-to-device rate to emulate, or None for plain memory copies.
        d2h_bytes_per_s: device-to-host rate to emulate, or None.
        host_attend_bytes_per_s: rate at which the host's cores shall attend, or None for as fast as
            they do.
    """

    def __init__(
        self,
        h2d_bytes_per_s: float | None = None,
        d2h_bytes_per_s: float | None = None,
        host_attend_bytes_per_s: float | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self._link_bytes_per_s = h2d_bytes_per_s, d2h_bytes_per_s
        self.host_attend_bytes_per_s = host_attend_bytes_per_s
        """The rate at which the host's cores attend, which may change between steps."""
        self._host = Pacer()
        rates = (h2d_bytes_per_s, d2h_bytes_per_s, host_attend_bytes_per_s)
        self.origin = Origin.MEASURED if rates == (None,) * 3 else Origin.EMULATED
        self._epoch_s = time.perf_counter()
        self._directions: dict[str, Direction] = {}
        self._pending: list[CpuEvent] = []

    def transfer(
        self, lane: Lane, copies: Sequence[Copy], after: Sequence[Event], timed: bool = False
    ) -> Event:
        """Hand copies to the thread of the lane's direction, which always notes the times."""
        job = _Job(copies, after, CpuEvent(), time.perf_counter())
        self._direction(lane).submit(job)
        self._pending = [pending for pending in self._pending if not pending.happened]
        self._pending.append(job.event)
        return job.event

    def _direction(self, lane: Lane) -> Direction:
        """Return a lane's direction, whose thread is started when it is first needed."""
        name = "h2d" if lane in H2D_LANES else "d2h"
        if name not in self._directions:
            rate = self._link_bytes_per_s[0 if name == "h2d" else 1]
            self._directions[name] = Direction(name, rate, self._epoch_s)
        return self._directions[name]

    def mark(self) -> Event:
        """Return an event that has happened: compute on the CPU is done when its call returns."""
        return self.end_compute(None)

    def begin_compute(self) -> object:
        """Return the time."""
        return time.perf_counter()

    def end_compute(self, start: object) -> Event:
        """Return an event that has happened, from ``start`` to now."""
        now_s = time.perf_counter()
        event = CpuEvent()
        event.happen(
            (start if isinstance(start, float) else now_s) - self._epoch_s, now_s - self._epoch_s
        )
        return event

    def wait(self, event: Event) -> None:
        """Block: the caller's thread is the compute lane."""
        event.wait_on_host()

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return plain memory."""
        return torch.empty(tuple(shape), dtype=dtype)

    def mailbox(self, shape: Sequence[int], dtype: torch.dtype) -> Mailbox:
        """Return plain memory."""
        buffer = self.host_buffer(shape, dtype)
        return Mailbox(buffer, buffer)

    def flag(self) -> Flag:
        """Return a flag at 0."""
        return CpuFlag()

    def now_s(self) -> float:
        """Return the time since the epoch."""
        return time.perf_counter() - self._epoch_s

    def end_attended(self, attended: Attended) -> tuple[float, float]:
        """Sleep until the cores would have ended at the rate that is emulated.

        Queries and results take their time on the emulated link, too, but do not hold it up.
        """
        rate = self.host_attend_bytes_per_s
        if rate is None:
            return super().end_attended(attended)
        done_s = time.perf_counter()
        seconds = attended.read_bytes / rate
        seconds += self.mail_s(attended.query_bytes, attended.result_bytes)
        ready_s = max(event.times_s()[1] for event in attended.after) + self._epoch_s
        start_s, finish_s = self._host.hold(ready_s, seconds, done_s)
        return start_s - self._epoch_s, finish_s - self._epoch_s

    def mail_s(self, query_bytes: int, result_bytes: int) -> float:
        """Return the time of queries and results on the emulated link."""
        if self.host_attend_bytes_per_s is None:
            return 0.0
        h2d, d2h = self._link_bytes_per_s
        return (query_bytes / h2d if h2d else 0.0) + (result_bytes / d2h if d2h else 0.0)

    def synchronize(self) -> None:
        """Wait for all transfers; then raise what any of them raised."""
        pending, self._pending = self._pending, []
        for event in pending:
            event.wait()
        for event in pending:
            event.wait_on_host()

    def close(self) -> None:
        """End the threads."""
        directions, self._directions = self._directions, {}
        for direction in directions.values():
            direction.close()
