"""The lane on which the host's cores attend to keys and values where they lie.

A layer's queries go down as soon as they exist; the cores work while the device rebuilds and
attends its own share and while the link goes on loading; the partial result comes up before the
layer is merged. The caller's thread never waits for the cores on a GPU: the device itself does.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, D head width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.runtime.attention import Partial, Scoring
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.lanes import Attended, Backend, Event, Mailbox


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


class HostEvent(Event):
    """The end of the cores' work for a layer."""

    def __init__(self) -> None:
        self._happened = threading.Event()
        self._times_s = (0.0, 0.0)

    def happen(self, start_s: float, finish_s: float) -> None:
        """Set the event."""
        self._times_s = start_s, finish_s
        self._happened.set()

    def wait_on_host(self) -> None:
        """Block until it has happened."""
        self._happened.wait()

    def times_s(self) -> tuple[float, float]:
        """Return start and finish, seconds since the backend's epoch."""
        self.wait_on_host()
        return self._times_s


class HostLane:
    """Lets the cores attend, a layer at a time.

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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-host-attend", daemon=True)
        self._thread.start()

    def begin(
        self,
        layer: int,
        query: Tensor,
        entries: RowEntries,
        scoring: Scoring,
        stored: Event | None,
    ) -> HostEvent:
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
        self._raise_error()
        self._fit(query)
        assert self._query is not None
        assert self._result is not None
        down, up = self._query, self._result
        size = query.numel()
        flat = down.device[:size]
        # An element-wise kernel, not a copy: copies would queue behind the lanes' transfers.
        torch.mul(query.reshape(-1), 1, out=flat)
        self._number += 1
        after = self._backend.host_marks(stored)
        event = HostEvent()
        self._jobs.put(
            _Job(
                self._number,
                layer,
                entries,
                scoring,
                down.host[:size].view(query.shape),
                _partial([box.host for box in up], query.shape),
                after,
                event,
            )
        )
        return event

    def result(self, shape: torch.Size) -> Partial:
        """Return the result of the layer that was begun last; compute waits for it.

        Args:
            shape: of its queries ``[B, H, G, D]``.

        Returns:
            A partial result that holds until the next layer is begun.
        """
        assert self._result is not None
        self._flag.wait(self._number)
        return _partial([box.device for box in self._result], shape)

    def close(self) -> None:
        """End the thread, once it has done what was begun."""
        self._jobs.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise HeadraceError(f"the host's attention failed: {self._error}") from self._error

    def check(self) -> None:
        """Raise what the cores' work raised, if it did.

        Raises:
            HeadraceError: it failed; what came up since then is worthless.
        """
        self._raise_error()

    def _fit(self, query: Tensor) -> None:
        """Make the mailboxes large enough (in the first step only)."""
        if self._query is not None and self._query.host.numel() >= query.numel():
            return
        heads = query[..., 0].numel()
        self._query = self._backend.mailbox((query.numel(),), query.dtype)
        self._result = (
            self._backend.mailbox((query.numel(),), torch.float32),
            self._backend.mailbox((heads,), torch.float32),
            self._backend.mailbox((heads,), torch.float32),
        )

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
    _, heads, _, width = job.query.shape
    token_bytes = 2 * heads * width * job.query.element_size()
    parts = (job.result.output, job.result.maximum, job.result.total)
    return Attended(
        after=job.after,
        start_s=start_s,
        read_bytes=job.entries.tokens * token_bytes,
        query_bytes=job.query.nbytes,
        result_bytes=sum(part.nbytes for part in parts),
    )


def _partial(flat: Sequence[Tensor], shape: torch.Size) -> Partial:
    """Return output, maximum and total as views of flat buffers."""
    output, maximum, total = flat
    heads = shape[:-1]
    count = heads.numel()
    return Partial(
        output[: shape.numel()].view(shape), maximum[:count].view(heads), total[:count].view(heads)
    )
