"""A backend that delays transfers as much as, and only as much as, their order allows.

Which transfers have happened at any moment is left to chance, within what was promised: transfers
of one direction end in order, and each after what it was told to wait for. A missing promise then
shows as a wrong result. What chance cannot show, because compute here is done when its call
returns, is checked from the calls themselves: a slot is refilled only after its last reader.
"""

import random
from dataclasses import dataclass, field

import torch

from headrace.plan.operations import Kind
from headrace.runtime.conveyor import Conveyor
from headrace.runtime.cpu_lanes import CpuFlag
from headrace.runtime.lanes import Backend, Event, Mailbox
from headrace.timeline import D2H_LANES, H2D_LANES, Origin


@dataclass(eq=False)
class FakeEvent(Event):
    backend: "CheckedBackend"
    made_at: int
    job: "Job | None" = None

    @property
    def happened(self):
        return self.job is None or self.job.done

    def wait_on_host(self):
        if self.job is not None:
            self.backend.finish(self.job)

    def times_s(self):
        self.wait_on_host()
        return 0.0, 0.0


@dataclass(eq=False)
class Job:
    lane: object
    copies: list
    after: list
    event: FakeEvent
    done: bool = False


@dataclass
class Log:
    """What happened, in the order of the calls.

    Attributes:
        loads: for each load: when, first byte of the slot's part it fills, and its event.
        reads: for each read of a staged granule: when it ended, its step and layer.
        waited_until: the newest load that was waited for; loads end in order.
        buffers: how many were asked for.
    """

    loads: list = field(default_factory=list)
    reads: list = field(default_factory=list)
    waited_until: int = 0
    buffers: int = 0


class CheckedBackend(Backend):
    device = torch.device("cpu")
    origin = Origin.EMULATED

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0
        self.log = Log()
        self.queues = {"h2d": [], "d2h": []}
        self.last_read = {}

    def tick(self):
        """Let time pass: some transfers at the head of their queues may happen."""
        self.now += 1
        for queue in self.queues.values():
            while queue and self.random.random() < 0.4 and self.ready(queue[0]):
                self.copy(queue.pop(0))
        return self.now

    @staticmethod
    def ready(job):
        return all(event.job is None or event.job.done for event in job.after)

    def copy(self, job):
        for copy in job.copies:
            assert copy.source.is_contiguous()
            assert copy.destination.is_contiguous()
            copy.destination.copy_(copy.source)
        job.done = True

    def finish(self, job):
        """Let a transfer happen, after what it waits for and what comes before it."""
        queue = self.queues["h2d" if job.lane in H2D_LANES else "d2h"]
        while not job.done:
            head = queue[0]
            for event in head.after:
                event.wait_on_host()
            if not head.done:
                assert queue.pop(0) is head
                self.copy(head)

    def transfer(self, lane, copies, after, timed=False):
        self.tick()
        event = FakeEvent(self, self.now)
        event.job = Job(lane, list(copies), list(after), event)
        assert lane in (*H2D_LANES, *D2H_LANES)
        self.queues["h2d" if lane in H2D_LANES else "d2h"].append(event.job)
        if lane in H2D_LANES:
            slot = copies[0].destination.data_ptr()
            read_at = self.last_read.get(slot)
            if read_at is not None:
                assert any(e.job is None and e.made_at >= read_at for e in after), (
                    "a slot is refilled without waiting for its last reader"
                )
            self.log.loads.append((self.now, slot, event))
        return event

    def mark(self):
        return FakeEvent(self, self.tick())

    def begin_compute(self):
        return self.tick()

    def end_compute(self, start):
        return FakeEvent(self, self.tick())

    def wait(self, event):
        self.tick()
        event.wait_on_host()
        if event.job is not None and event.job.lane in H2D_LANES:
            self.log.waited_until = max(self.log.waited_until, event.made_at)

    def host_buffer(self, shape, dtype):
        self.log.buffers += 1
        return torch.full(tuple(shape), float("nan")).to(dtype)

    def device_buffer(self, shape, dtype):
        self.log.buffers += 1
        return super().device_buffer(shape, dtype)

    def mailbox(self, shape, dtype):
        buffer = self.host_buffer(shape, dtype)
        return Mailbox(buffer, buffer)

    def flag(self):
        return CpuFlag()

    def now_s(self):
        return float(self.now)

    def synchronize(self):
        for queue in self.queues.values():
            while queue:
                self.finish(queue[0])

    def close(self):
        self.synchronize()


def watch_reads(monkeypatch):
    """Note every operation that reads a staging slot, and check that its load was waited for."""
    run = Conveyor._run

    def watched(self, operation, work, attention):
        backend = self._backend
        read = operation.load_number >= 0 and operation.kind in (Kind.REBUILD, Kind.ATTEND)
        if read:
            event = self._load_events[operation.load_number]
            waited = backend.log.waited_until
            assert event.made_at <= waited, "a slot is read before its load was waited for"
            assert event.job.done
        run(self, operation, work, attention)
        if read:
            slot = event.job.copies[0].destination.data_ptr()
            # The reader's own event is made by the call that gives the slot back.
            backend.last_read[slot] = max(backend.last_read.get(slot, 0), backend.now - 1)
            backend.log.reads.append((backend.now, self.step, operation.layer))

    monkeypatch.setattr(Conveyor, "_run", watched)
