"""The lanes of a device: asynchronous transfers and the events that order them.

A backend is a device with its link. Compute happens on the caller's thread, in the order of the
calls; transfers are handed to lanes and run beside it. Everything is ordered by events, never by
waiting for the whole device. Above this interface the code is the same for CUDA and for a CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.timeline import Lane, Origin


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a transfer: two contiguous tensors of the same size and dtype."""

    destination: Tensor
    source: Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes that the copy moves."""
        return self.source.numel() * self.source.element_size()


class Event(ABC):
    """Something that will have happened: the end of a transfer, or of compute so far."""

    word: tuple[int, int] | None = None
    """Address of an int32 in host memory and the number that the device writes there when it has
    happened, if it does; then a thread needs nothing else to see it."""

    @property
    @abstractmethod
    def happened(self) -> bool:
        """Whether it has happened."""

    @abstractmethod
    def wait_on_host(self) -> None:
        """Block the calling thread until it has happened; raise what the transfer raised."""

    @abstractmethod
    def times_s(self) -> tuple[float, float]:
        """Return start and finish in seconds since the backend's epoch, once it has happened."""

    def took_s(self) -> float:
        """Return the seconds from start to finish, once it has happened."""
        start_s, finish_s = self.times_s()
        return finish_s - start_s


@dataclass(frozen=True)
class Mailbox:
    """A buffer that device and host both reach without a transfer, at the same address.

    Attributes:
        device: as compute sees it.
        host: as the host's threads see it; the same memory.
    """

    device: Tensor
    host: Tensor


@dataclass(frozen=True)
class Attended:
    """What the host's cores have done for a layer.

    Attributes:
        after: what had to happen before, at least one event.
        start_s: when it began, seconds since the backend's epoch.
        read_bytes: of the keys and values that were attended to.
        query_bytes: of the queries, which came down.
        result_bytes: of the partial results, which go up.
    """

    after: Sequence[Event]
    start_s: float
    read_bytes: int
    query_bytes: int
    result_bytes: int


@dataclass(frozen=True)
class Busy:
    """For how long a lane was at work, over some operations, and how much it read meanwhile.

    Attributes:
        seconds: of the host's cores, with those in which they read ahead, without those in which
            queries came down and results went up.
        read_bytes: of what is cached.
    """

    seconds: float = 0.0
    read_bytes: int = 0

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None where there was nothing to do."""
        return self.read_bytes / self.seconds if self.read_bytes > 0 and self.seconds > 0 else None


class Flag(ABC):
    """A number that the host raises and that compute waits for."""

    address: int | None = None
    """Of an int32 in host memory, if raising that is all that there is to it."""

    @abstractmethod
    def reach(self, number: int) -> None:
        """Say that the host has come to ``number``, which never falls."""

    @abstractmethod
    def wait(self, number: int) -> None:
        """Let compute that is called from now on begin only once the host has come to ``number``.

        On a CPU, whose compute is the caller's thread, this blocks.
        """


class Backend(ABC):
    """A device, its memory, and its link to the host."""

    device: torch.device
    origin: Origin
    """Measured, or emulated when link and cores are slowed down on purpose."""
    timed = False
    """Whether events tell their times (a timeline is recorded)."""

    @abstractmethod
    def transfer(
        self, lane: Lane, copies: Sequence[Copy], after: Sequence[Event], timed: bool = False
    ) -> Event:
        """Start copies on a lane and return the event of their end.

        The copies begin when everything in ``after`` has happened and when the transfers that were
        started before in the same direction, on whichever lane, have ended. Source and destination
        belong to the transfer until its event has happened.

        Args:
            lane: which.
            copies: from one side to the other.
            after: what must have happened.
            timed: whether the event is to tell how long they took, though no timeline is recorded.
        """

    @abstractmethod
    def mark(self) -> Event:
        """Return the event of the end of all compute that was called so far."""

    @abstractmethod
    def begin_compute(self) -> object:
        """Return the start of a piece of compute, for ``end_compute`` (only for timelines)."""

    @abstractmethod
    def end_compute(self, start: object) -> Event:
        """Return the event of the end of compute so far, whose times begin at ``start``."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Let compute that is called from now on begin only when ``event`` has happened."""

    @abstractmethod
    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised host memory that the link reaches at its full rate."""

    def free_host(self, buffer: Tensor) -> None:  # noqa: B027 (plain memory is freed by itself)
        """Take back a host buffer that nothing uses any more; others are, when the backend ends."""

    def device_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return zeroed device memory."""
        return torch.zeros(tuple(shape), dtype=dtype, device=self.device)

    @abstractmethod
    def mailbox(self, shape: Sequence[int], dtype: torch.dtype) -> Mailbox:
        """Return memory for a few numbers that go back and forth within a layer.

        What a lane has under way does not delay them: compute itself reads and writes them.
        """

    @abstractmethod
    def flag(self) -> Flag:
        """Return a flag at 0."""

    def host_marks(self, stored: Event | None) -> list[Event]:
        """Return events, of all compute called so far, that a thread of the host may wait for.

        Args:
            stored: the end of a store that must have happened too, or None.
        """
        return [self.mark()] if stored is None else [self.mark(), stored]

    @abstractmethod
    def now_s(self) -> float:
        """Return the time on the host, in seconds since the backend's epoch."""

    def end_attended(self, attended: Attended) -> tuple[float, float]:
        """Return start and finish of what the cores have just done, since the backend's epoch.

        Called by the thread that attended, before anybody learns of the result. An emulation lets
        it sleep here until slower cores would have been done.
        """
        return attended.start_s, self.now_s()

    def mail_s(self, query_bytes: int, result_bytes: int) -> float:
        """Return for how long, between those two times, queries came down and results went up.

        Not at all where the cores reach them as they lie.
        """
        return 0.0

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all transfers and all compute. Never used inside a step."""

    @abstractmethod
    def close(self) -> None:
        """End the lanes; release host memory."""
