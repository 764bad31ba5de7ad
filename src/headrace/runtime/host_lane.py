"""The lane on which the host's cores attend to keys and values where they lie.

A layer's queries go down as soon as they exist; the cores work while the device rebuilds and
attends its own share and while the link goes on loading; the partial result comes up before the
layer is merged. The caller's thread never waits for the cores on a GPU: the device itself does.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, D head width.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.runtime.attention import Partial, Scoring
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.lanes import Attended, Backend, Busy, Event, Mailbox
from headrace.runtime.native.library import STATUS, Done
from headrace.runtime.native_lane import NativeLane, PreparedCall

_GLANCE_S = 1e-4

_LAYERS_NOTED = 1024
"""Of so many layers, the newest ones, it is kept how long they took until somebody asks."""


class HostKernel(Protocol):
    """What attends."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        entries: RowEntries,
        scoring: Scoring,
        result: Partial,
    ) -> None:
        """Attend a layer's queries ``[B, H, G, D]`` to their entries; write into ``result``."""

    def lane(self) -> NativeLane | None:
        """Return a native lane, or None where there is none."""

    def prepare(
        self,
        layer: int,
        query: Tensor,
        entries: RowEntries,
        scoring: Scoring,
        result: Partial,
    ) -> PreparedCall:
        """Return a call of ``attend`` for a native lane."""


@dataclass(frozen=True)
class _Job:
    number: int
    layer: int
    entries: RowEntries
    scoring: Scoring
    query: Tensor
    result: Partial
    after: Sequence[Event]
    event: HostEvent


@dataclass(frozen=True)
class _Begun:
    """A layer that the cores attend to, or have attended to.

    Attributes:
        event: its end.
        read_bytes: of its keys and values.
        mail_s: for how long queries and results are on their way.
    """

    event: HostEvent | NativeHostEvent
    read_bytes: int
    mail_s: float


@dataclass(frozen=True)
class _Mail:
    """What goes to and fro for queries of a shape ``[B, H, G, D]``.

    Attributes:
        sent: where the device writes the queries, flat.
        query: the same memory, as the host finds it.
        result: where the host writes.
        brought: the same memory, as the device finds it.
    """

    sent: Tensor
    query: Tensor
    result: Partial
    brought: Partial


class HostEvent(Event):
    """The end of the cores' work for a layer."""

    def __init__(self) -> None:
        self._happened = threading.Event()
        self._times_s = (0.0, 0.0)

    def happen(self, start_s: float, finish_s: float) -> None:
        """Set the event."""
        self._times_s = start_s, finish_s
        self._happened.set()

    @property
    def happened(self) -> bool:
        """Whether it has happened."""
        return self._happened.is_set()

    def wait_on_host(self) -> None:
        """Block until it has happened."""
        self._happened.wait()

    def times_s(self) -> tuple[float, float]:
        """Return start and finish, seconds since the backend's epoch."""
        self.wait_on_host()
        return self._times_s

    @property
    def ahead_s(self) -> float:
        """No time: the interpreter's thread reads nothing before the start."""
        return 0.0


class NativeHostEvent(Event):
    """The end of the cores' work for a layer, done by a native lane.

    Args:
        done: what the lane writes.
        epoch_s: the backend's epoch, by ``time.perf_counter``.
    """

    def __init__(self, done: Done, epoch_s: float) -> None:
        self._done = done
        self._epoch_s = epoch_s

    @property
    def status(self) -> int:
        """Negative until it has happened; 0 if all went well."""
        return int(self._done.status)

    @property
    def happened(self) -> bool:
        """Whether it has happened."""
        return self.status >= 0

    def wait_on_host(self) -> None:
        """Look until it has happened."""
        while not self.happened:
            time.sleep(_GLANCE_S)

    def times_s(self) -> tuple[float, float]:
        """Return start and finish, seconds since the backend's epoch."""
        self.wait_on_host()
        return self._done.start_s - self._epoch_s, self._done.finish_s - self._epoch_s

    @property
    def ahead_s(self) -> float:
        """For how long the cores read keys and values before the start, once it has happened."""
        return float(self._done.ahead_s)


class HostLane:
    """Lets the cores attend, a layer at a time.

    Where the device's signals are plain memory, a native thread waits for them and attends. Else,
    and where torch attends, a thread of the interpreter does.

    At most one layer is under way, so that one mailbox serves them all: a layer's queries are
    written after the merge of the layer above, which has read that one's result.

    Args:
        backend: the device.
        kernel: what attends.
    """

    def __init__(self, backend: Backend, kernel: HostKernel) -> None:
        self._backend = backend
        self._kernel = kernel
        self._flag = backend.flag()
        self._number = 0
        self._query: Mailbox | None = None
        self._result: tuple[Mailbox, Mailbox, Mailbox] | None = None
        self._boxes: list[Mailbox] = []
        self._views: dict[torch.Size, _Mail] = {}
        self._error: BaseException | None = None
        self._last: NativeHostEvent | None = None
        self._begun: deque[_Begun] = deque(maxlen=_LAYERS_NOTED)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._epoch_s = time.perf_counter() - backend.now_s()
        self._native = None if self._flag.address is None else kernel.lane()
        self._thread: threading.Thread | None = None
        if self._native is None:
            name = "headrace-host-attend"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def begin(
        self,
        layer: int,
        query: Tensor,
        entries: RowEntries,
        scoring: Scoring,
        stored: Event | None,
    ) -> Event:
        """Start a layer.

        Args:
            layer: index of the layer.
            query: grouped queries ``[B, H, G, D]``, on the device.
            entries: what they attend to.
            scoring: scale and soft cap.
            stored: event of the layer's newest store, which the cores must see, or None.

        Returns:
            The event of the end of the cores' work.
        """
        self.check()
        mail = self._mail(query)
        # An element-wise kernel, not a copy: copies would queue behind the lanes' transfers.
        torch.mul(query.reshape(-1), 1, out=mail.sent)
        self._number += 1
        after = self._backend.host_marks(stored)
        event: HostEvent | NativeHostEvent
        if self._native is not None:
            event = self._push(layer, mail.query, entries, scoring, mail.result, after)
        else:
            event = HostEvent()
            self._jobs.put(
                _Job(self._number, layer, entries, scoring, mail.query, mail.result, after, event)
            )
        mail_s = self._backend.mail_s(query.nbytes, _result_bytes(mail.result))
        self._begun.append(_Begun(event, _read_bytes(query, entries), mail_s))
        return event

    def _push(
        self,
        layer: int,
        query: Tensor,
        entries: RowEntries,
        scoring: Scoring,
        result: Partial,
        after: Sequence[Event],
    ) -> NativeHostEvent:
        """Hand a layer to the native lane."""
        assert self._native is not None
        assert self._flag.address is not None
        (signal,) = after
        assert signal.word is not None
        prepared = self._kernel.prepare(layer, query, entries, scoring, result)
        done = self._native.push(prepared, signal.word, (self._flag.address, self._number))
        self._last = NativeHostEvent(done, self._epoch_s)
        return self._last

    def result(self, shape: torch.Size) -> Partial:
        """Return the result of the layer that was begun last; compute waits for it.

        Args:
            shape: of its queries ``[B, H, G, D]``.

        Returns:
            A partial result that holds until the next layer is begun.
        """
        self._flag.wait(self._number)
        return self._views[shape].brought

    def busy(self) -> Busy:
        """Return for how long the cores attended to the layers that ended since the last call.

        Nobody waits: layers that are under way are part of a later answer.
        """
        seconds, read_bytes = 0.0, 0
        while self._begun and self._begun[0].event.happened:
            begun = self._begun.popleft()
            start_s, finish_s = begun.event.times_s()
            seconds += max(0.0, finish_s - start_s - begun.mail_s) + begun.event.ahead_s
            read_bytes += begun.read_bytes
        return Busy(seconds, read_bytes)

    def close(self) -> None:
        """End the thread, once it has done what was begun, and give back the mailboxes.

        Compute must have ended, too.
        """
        if self._native is not None:
            self._native.close()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        for box in self._boxes:
            self._backend.free_host(box.host)

    def check(self) -> None:
        """Raise what the cores' work raised, if it did.

        Raises:
            HeadraceError: it failed; what came up since then is worthless.
        """
        if self._error is not None:
            raise HeadraceError(f"the host's attention failed: {self._error}") from self._error
        if self._last is not None and self._last.status > 0:
            reason = STATUS.get(self._last.status, str(self._last.status))
            raise HeadraceError(f"the host's attention failed: {reason}")

    def _mail(self, query: Tensor) -> _Mail:
        """Return where queries of a shape, and their result, are for both sides.

        Mailboxes are made in the first step, and made anew only for more queries.
        """
        if self._query is None or self._query.host.numel() < query.numel():
            heads = query[..., 0].numel()
            self._query = self._mailbox(query.numel(), query.dtype)
            self._result = (
                self._mailbox(query.numel(), torch.float32),
                self._mailbox(heads, torch.float32),
                self._mailbox(heads, torch.float32),
            )
            self._views = {}
        assert self._result is not None
        views = self._views.get(query.shape)
        if views is None:
            size = query.numel()
            views = self._views[query.shape] = _Mail(
                self._query.device[:size],
                self._query.host[:size].view(query.shape),
                _partial([box.host for box in self._result], query.shape),
                _partial([box.device for box in self._result], query.shape),
            )
        return views

    def _mailbox(self, elements: int, dtype: torch.dtype) -> Mailbox:
        box = self._backend.mailbox((elements,), dtype)
        self._boxes.append(box)
        return box

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            start_s = finish_s = self._backend.now_s()
            try:
                start_s, finish_s = self._attend(job)
            except BaseException as error:  # whoever waits must not wait for ever
                self._error = error
            self._flag.reach(job.number)
            job.event.happen(start_s, finish_s)

    def _attend(self, job: _Job) -> tuple[float, float]:
        """Attend, unless an earlier layer failed; return start and finish."""
        for event in job.after:
            event.wait_on_host()
        start_s = self._backend.now_s()
        if self._error is not None:
            return start_s, start_s
        self._kernel.attend(job.layer, job.query, job.entries, job.scoring, job.result)
        return self._backend.end_attended(_attended(job, start_s))


def _attended(job: _Job, start_s: float) -> Attended:
    """Return what a layer's attention read, and what came down and goes up for it."""
    return Attended(
        after=job.after,
        start_s=start_s,
        read_bytes=_read_bytes(job.query, job.entries),
        query_bytes=job.query.nbytes,
        result_bytes=_result_bytes(job.result),
    )


def _read_bytes(query: Tensor, entries: RowEntries) -> int:
    """Return the bytes of keys and values that queries ``[B, H, G, D]`` attend to."""
    _, heads, _, width = query.shape
    return entries.tokens * 2 * heads * width * query.element_size()


def _result_bytes(result: Partial) -> int:
    return result.output.nbytes + result.maximum.nbytes + result.total.nbytes


def _partial(flat: Sequence[Tensor], shape: torch.Size) -> Partial:
    """Return output, maximum and total as views of flat buffers."""
    output, maximum, total = flat
    heads = shape[:-1]
    count = heads.numel()
    return Partial(
        output[: shape.numel()].view(shape), maximum[:count].view(heads), total[:count].view(heads)
    )
