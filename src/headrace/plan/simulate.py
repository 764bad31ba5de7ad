"""A program's predicted timeline: each operation's duration from the profile, each wait kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from headrace.hardware.profile import HardwareProfile
from headrace.plan.launching import Launching
from headrace.plan.operations import Kind, Operation, Program
from headrace.plan.resources import Resource
from headrace.plan.work import (
    OF_LANE,
    bound_s,
    operation_s,
    operation_work_s,
    shared_speeds,
    work_s,
)
from headrace.timeline import H2D_LANES, Lane, Origin, Span, Timeline

__all__ = [
    "bound_s",
    "operation_work_s",
    "predicted_step_s",
    "simulate",
    "steady_step_s",
    "step_durations_s",
    "work_s",
]

_RESOURCES = (Resource.LINK, Resource.STORE, Resource.GPU, Resource.HOST)
_LAUNCHED = (Lane.COMPUTE, Lane.HOST_ATTEND)

T = TypeVar("T")


def simulate(
    program: Program | Sequence[Program],
    profile: HardwareProfile,
    dtype: str,
    steps: int = 1,
    step_gap_s: float = 0.0,
    *,
    label: str = "",
) -> Timeline:
    """Return the predicted timeline of some steps.

    The link to the device, the link to the host, the device and the host's cores each take their
    operations in program order, one at a time. An operation starts when its resource is free and
    what it waits for has finished. A load also waits for the last reader of the load that was in
    its slot, over step boundaries; where the program has no look-ahead it waits for the end of the
    step before. Compute, and the host's attention, also wait until they are launched, which begins
    when the step before has ended (``Launching``). While the link and the cores are both busy they
    share host memory (``Sharing``): each goes on at the rate that is then left to it.

    Args:
        program: the program of every step, or one for each step in turn.
        profile: the machine.
        dtype: element type of the model's matrices.
        steps: how often to run ``program`` (each of them, if there are several).
        step_gap_s: time between a step's head and the next step's first compute (sampling).
        label: what ran, for the timeline.

    Raises:
        ValueError: the programs' rings differ, or they wait for each other in a circle.
    """
    programs = [program] if isinstance(program, Program) else list(program)
    run = _Run(programs * steps, profile, dtype, step_gap_s)
    run.go()
    return Timeline(Origin.PREDICTED, label, run.spans())


def predicted_step_s(
    program: Program, profile: HardwareProfile, dtype: str, steps: int = 4
) -> float:
    """Return how long a step of a program takes in steady state: see ``steady_step_s``."""
    run = _Run([program] * steps, profile, dtype, 0.0)
    run.go()
    ends = [0.0, *run.step_ends_s()]
    durations = [finish - start for start, finish in pairwise(ends)]
    return statistics.median(durations[1:-1] or durations[-1:])


def step_durations_s(timeline: Timeline) -> list[float]:
    """Return each step's duration: from the end of the compute of the step before to its own."""
    ends: dict[int, float] = {}
    for span in timeline.spans:
        if span.lane is Lane.COMPUTE:
            ends[span.step] = max(ends.get(span.step, span.finish_s), span.finish_s)
    finishes = [timeline.start_s, *(ends[step] for step in sorted(ends))]
    return [finish - start for start, finish in pairwise(finishes)]


def steady_step_s(timeline: Timeline) -> float:
    """Return the median duration of the steps but the first and the last (0 without steps).

    Of two steps the second counts, and of one that one.
    """
    durations = step_durations_s(timeline)
    return statistics.median(durations[1:-1] or durations[-1:] or [0.0])


class _Run:
    """One simulation: when each operation finishes, and what each resource does.

    Time goes from event to event. Each resource has at most one operation under way, with the
    seconds of work that it has left at full speed.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        profile: HardwareProfile,
        dtype: str,
        step_gap_s: float,
    ) -> None:
        if len({(program.ring_slots, program.weight_slots) for program in programs}) > 1:
            raise ValueError("all programs of one run share one ring")
        self._done: list[tuple[int, Operation, float, float]] = []
        self._programs = programs
        self._step_gap_s = step_gap_s
        self._finish = [[-1.0] * len(program.operations) for program in programs]
        self._work = _durations(programs, profile, dtype)
        launching = Launching(profile)
        self._launched = _of_each(programs, lambda one: launching.launched_s(one.operations))
        self._queues: dict[Resource, list[tuple[int, Operation]]] = {
            resource: [] for resource in _RESOURCES
        }
        self._staging = _Ring(programs[0].ring_slots if programs else 1)
        self._weights = _Ring(programs[0].weight_slots if programs else 1)
        for step, program in enumerate(programs):
            self._enqueue(step, program)
        self._last_compute = [_last_compute(program) for program in programs]
        self._shared_speeds = _of_each(programs, lambda one: shared_speeds(one, profile, dtype))

    def go(self) -> None:
        """Run everything."""
        lines = [_Line(resource, queue) for resource, queue in self._queues.items() if queue]
        by_resource = {line.resource: line for line in lines}
        link, host = by_resource.get(Resource.LINK), by_resource.get(Resource.HOST)
        now = 0.0
        while True:
            moment = math.inf
            for line in lines:
                if line.operation is None and line.next < line.count:
                    ready_s = self._ready_s(*line.queue[line.next])
                    if ready_s > now:
                        moment = min(moment, ready_s)
                        continue
                    line.begin(now, self._work)
            if link is not None and host is not None:
                self._share(link, host, now)
            for line in lines:
                if line.operation is not None and line.finish_s < moment:
                    moment = line.finish_s
            if moment == math.inf:
                break
            now = moment
            for line in lines:
                if line.operation is not None and line.finish_s <= now:
                    self._record(line)
        if any(line.next < line.count for line in lines):
            raise ValueError("the program cannot run: its operations wait in a circle")

    def _share(self, link: _Line, host: _Line, now: float) -> None:
        """Let link and cores go on at the speeds that host memory allows them now."""
        both = link.operation is not None and host.operation is not None
        for place, line in enumerate((link, host)):
            if line.operation is not None:
                speeds = self._shared_speeds[line.operation[0]]
                line.go_on(now, speeds[place] if both else 1.0)

    def _ready_s(self, step: int, op: Operation) -> float:
        """Return when all that an operation waits for has finished, or infinity if unknown."""
        finish = self._finish[step]
        ready = 0.0
        for index in op.waits_for:
            if finish[index] < 0:
                return math.inf
            if finish[index] > ready:
                ready = finish[index]
        lane = op.lane
        if lane in H2D_LANES:
            ring = self._weights if lane is Lane.LOAD_WEIGHTS else self._staging
            number = op.weights_number if lane is Lane.LOAD_WEIGHTS else op.load_number
            reader = ring.reader_before(step, number)
            ready = max(ready, self._finished_s(reader))
            if step and not self._programs[step].lookahead:
                ready = max(ready, self._finished_s((step - 1, self._last_compute[step - 1])))
        elif lane in _LAUNCHED:
            launched_s = self._launched[step][op.index]
            if launched_s or (op.kind is Kind.DENSE and op.layer == 0):
                ready = max(ready, self._begun_s(step) + launched_s)
        return ready

    def _begun_s(self, step: int) -> float:
        """Return when a step begins: its tokens are known, and launching it is begun."""
        if not step:
            return 0.0
        return self._finished_s((step - 1, self._last_compute[step - 1])) + self._step_gap_s

    def _finished_s(self, where: tuple[int, int] | None) -> float:
        if where is None:
            return 0.0
        finish = self._finish[where[0]][where[1]]
        return math.inf if finish < 0 else finish

    def _record(self, line: _Line) -> None:
        """Note that a resource's operation has finished."""
        assert line.operation is not None
        step, op = line.operation
        self._finish[step][op.index] = line.finish_s
        self._done.append((step, op, line.start_s, line.finish_s))
        line.operation = None

    def spans(self) -> tuple[Span, ...]:
        """Return what ran when."""
        return tuple(
            Span(
                op.lane,
                op.kind.value,
                step,
                op.layer,
                op.granule,
                start_s,
                finish_s,
                op.memory_bytes
                if op.lane is Lane.HOST_ATTEND
                else op.link_bytes or op.memory_bytes,
                op.flops,
            )
            for step, op, start_s, finish_s in self._done
        )

    def step_ends_s(self) -> list[float]:
        """Return when each step's compute has finished."""
        return [finish[last] for finish, last in zip(self._finish, self._last_compute, strict=True)]

    def _enqueue(self, step: int, program: Program) -> None:
        """Append a step's operations to the queues, and note the last reader of each slot."""
        self._staging.begin_step(step, program)
        self._weights.begin_step(step, program)
        for op in program.operations:
            self._queues[OF_LANE[op.lane]].append((step, op))
            if op.kind is Kind.LOAD_WEIGHTS:
                self._weights.note(step, op.weights_number, op.index)
            elif op.lane in H2D_LANES:
                self._staging.note(step, op.load_number, op.index)
            elif op.lane is Lane.COMPUTE:
                if op.load_number >= 0:
                    self._staging.note(step, op.load_number, op.index)
                if op.weights_number >= 0:
                    self._weights.note(step, op.weights_number, op.index)


class _Ring:
    """Slots that are filled round and round, over all steps: who reads each filling last."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._first: list[int] = []
        self._readers: list[tuple[int, int] | None] = []

    def begin_step(self, step: int, program: Program) -> None:
        """Number the step's loads after those of the steps before."""
        assert len(self._first) == step
        self._first.append(len(self._readers))

    def note(self, step: int, number: int, index: int) -> None:
        """Note an operation that fills or reads a load's slot; the last one noted counts."""
        place = self._first[step] + number
        # Of a layer without streamed weights nothing is noted before its turn has ended.
        self._readers += [None] * (place + 1 - len(self._readers))
        self._readers[place] = (step, index)

    def reader_before(self, step: int, number: int) -> tuple[int, int] | None:
        """Return the step and index of the last reader of what was in a load's slot."""
        refilled = self._first[step] + number - self._slots
        return self._readers[refilled] if refilled >= 0 else None


class _Line:
    """What a resource has to do, in order, and the operation that is under way."""

    __slots__ = (
        "_speed",
        "count",
        "finish_s",
        "next",
        "operation",
        "queue",
        "resource",
        "start_s",
    )

    def __init__(self, resource: Resource, queue: Sequence[tuple[int, Operation]]) -> None:
        self.resource = resource
        self.queue = queue
        self.count = len(queue)
        self.next = 0
        self.operation: tuple[int, Operation] | None = None
        self.start_s = self.finish_s = 0.0
        self._speed = 1.0

    def begin(self, now: float, work: Sequence[Sequence[float]]) -> None:
        """Begin the next operation, at full speed."""
        step, op = self.operation = self.queue[self.next]
        self.start_s = now
        self.finish_s = now + work[step][op.index]
        self._speed = 1.0
        self.next += 1

    def go_on(self, now: float, speed: float) -> None:
        """Go on at another speed."""
        if speed != self._speed:
            left_s = (self.finish_s - now) * self._speed
            self.finish_s = now + left_s / speed
            self._speed = speed


def _last_compute(program: Program) -> int:
    return max(op.index for op in program.operations if op.lane is Lane.COMPUTE)


def _durations(
    programs: Sequence[Program], profile: HardwareProfile, dtype: str
) -> list[list[float]]:
    """Return for each step the durations of its operations at full speed, latency included."""
    return _of_each(
        programs, lambda one: [operation_s(op, profile, dtype) for op in one.operations]
    )


def _of_each(programs: Sequence[Program], found: Callable[[Program], T]) -> list[T]:
    """Return what is found for each program, once for those that are the same."""
    known = {id(program): program for program in programs}
    of_program = {key: found(program) for key, program in known.items()}
    return [of_program[id(program)] for program in programs]
