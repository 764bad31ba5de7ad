"""A program's predicted timeline: each operation's duration from the profile, each wait kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from headrace.hardware.profile import HardwareProfile
from headrace.plan.operations import Kind, Operation, Program
from headrace.timeline import D2H_LANES, H2D_LANES, Lane, Origin, Span, Timeline

_LOADS = (Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV)
_STORES = (Kind.STORE_KV, Kind.STORE_ACTIVATIONS)

LINK, STORE, GPU = "link", "store", "gpu"
"""The resources that a step needs: the link to the device, the link to the host, the device."""


def operation_work_s(op: Operation, profile: HardwareProfile, dtype: str) -> float:
    """Return the seconds that an operation keeps its resource busy, latency left out.

    Transfers take bytes / rate. Compute takes max(FLOPs / GEMM rate, bytes / memory rate), where
    the memory rate is that of attention, of dense decode work, or of the device's memory. The GEMM
    rate of a rebuild is the measured one of rebuilding, where there is one.
    """
    if op.kind in _LOADS:
        return op.link_bytes / profile.h2d_bytes_per_s
    if op.kind in _STORES:
        return op.link_bytes / profile.d2h_bytes_per_s
    memory_bytes_per_s = profile.device_bytes_per_s
    if op.kind in (Kind.ATTEND, Kind.ATTEND_NEW):
        memory_bytes_per_s = profile.attend_rate
    elif op.kind is Kind.DENSE:
        memory_bytes_per_s = profile.dense_rate
    is_rebuild = op.kind is Kind.REBUILD
    flops_per_s = profile.rebuild_rate(dtype) if is_rebuild else profile.gemm_rate(dtype)
    return max(op.flops / flops_per_s, op.memory_bytes / memory_bytes_per_s)


def work_s(program: Program, profile: HardwareProfile, dtype: str) -> dict[str, float]:
    """Return the seconds for which one step needs each resource (``link``, ``store``, ``gpu``)."""
    totals = {LINK: 0.0, STORE: 0.0, GPU: 0.0}
    for op in program.operations:
        totals[_resource(op)] += operation_work_s(op, profile, dtype)
    return totals


def bound_s(program: Program, profile: HardwareProfile, dtype: str) -> float:
    """Return the least time of a step in steady state: that of the resource with most work.

    Latencies are left out, and everything is taken to overlap.
    """
    return max(work_s(program, profile, dtype).values())


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

    The link to the device, the link to the host and the device each take their operations in
    program order, one at a time. An operation starts when its resource is free and what it waits
    for has finished. A load also waits for the last reader of the load that was in its slot, over
    step boundaries; where the program has no look-ahead it waits for the end of the step before.

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
    return _Run(programs * steps, profile, dtype, step_gap_s).timeline(label)


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
    """The state of one simulation: when each operation finishes, and each resource's queue."""

    def __init__(
        self,
        programs: Sequence[Program],
        profile: HardwareProfile,
        dtype: str,
        step_gap_s: float,
    ) -> None:
        if len({program.ring_slots for program in programs}) > 1:
            raise ValueError("all programs of one run share one ring")
        self._programs = programs
        self._step_gap_s = step_gap_s
        self._finish = [[-1.0] * len(program.operations) for program in programs]
        self._durations = _durations(programs, profile, dtype)
        self._queues: dict[str, list[tuple[int, Operation]]] = {LINK: [], STORE: [], GPU: []}
        self._first_load: list[int] = []
        self._readers: list[tuple[int, int]] = []
        for step, program in enumerate(programs):
            self._enqueue(step, program)
        self._last_compute = [_last_compute(program) for program in programs]
        self._spans: list[Span] = []

    def timeline(self, label: str) -> Timeline:
        """Run everything and return what ran when."""
        resources = [_Resource(self, queue) for queue in self._queues.values()]
        while any(resource.advance() for resource in resources):
            pass
        if len(self._spans) < sum(len(queue) for queue in self._queues.values()):
            raise ValueError("the program cannot run: its operations wait in a circle")
        return Timeline(Origin.PREDICTED, label, tuple(self._spans))

    def ready_s(self, step: int, op: Operation) -> float:
        """Return when everything that an operation waits for has finished, or -1 if unknown."""
        finish = self._finish[step]
        ready = 0.0
        for index in op.waits_for:
            if finish[index] < 0:
                return -1.0
            ready = max(ready, finish[index])
        for other_step, index, gap_s in self._waits_across(step, op):
            other = self._finish[other_step][index]
            if other < 0:
                return -1.0
            ready = max(ready, other + gap_s)
        return ready

    def record(self, step: int, op: Operation, start_s: float) -> float:
        """Note that an operation starts, and return when it finishes."""
        finish_s = start_s + self._durations[step][op.index]
        self._finish[step][op.index] = finish_s
        self._spans.append(
            Span(
                op.lane,
                op.kind.value,
                step,
                op.layer,
                op.granule,
                start_s,
                finish_s,
                op.link_bytes or op.memory_bytes,
                op.flops,
            )
        )
        return finish_s

    def _enqueue(self, step: int, program: Program) -> None:
        """Append a step's operations to the queues, and note the last reader of each load."""
        base = len(self._readers)
        self._first_load.append(base)
        self._readers += [(step, op.index) for op in program.loads]
        for op in program.operations:
            self._queues[_resource(op)].append((step, op))
            if op.lane is Lane.COMPUTE and op.load_number >= 0:
                self._readers[base + op.load_number] = (step, op.index)

    def _waits_across(self, step: int, op: Operation) -> list[tuple[int, int, float]]:
        """Return step, index and gap of what an operation waits for besides ``waits_for``."""
        waits = []
        if op.lane in H2D_LANES:
            refilled = self._first_load[step] + op.load_number - self._programs[step].ring_slots
            if refilled >= 0:
                waits.append((*self._readers[refilled], 0.0))
            if step and not self._programs[step].lookahead:
                waits.append((step - 1, self._last_compute[step - 1], 0.0))
        elif step and op.kind is Kind.DENSE and op.layer == 0:
            waits.append((step - 1, self._last_compute[step - 1], self._step_gap_s))
        return waits


class _Resource:
    """One resource: takes its queue's operations in order, one at a time."""

    def __init__(self, run: _Run, queue: Sequence[tuple[int, Operation]]) -> None:
        self._run = run
        self._queue = queue
        self._next = 0
        self._free_s = 0.0

    def advance(self) -> bool:
        """Run operations until one must wait for another resource; return whether any ran."""
        before = self._next
        while self._next < len(self._queue):
            step, op = self._queue[self._next]
            ready_s = self._run.ready_s(step, op)
            if ready_s < 0:
                break
            self._free_s = self._run.record(step, op, max(ready_s, self._free_s))
            self._next += 1
        return self._next > before


def _resource(op: Operation) -> str:
    if op.lane in H2D_LANES:
        return LINK
    return STORE if op.lane in D2H_LANES else GPU


def _last_compute(program: Program) -> int:
    return max(op.index for op in program.operations if op.lane is Lane.COMPUTE)


def _durations(
    programs: Sequence[Program], profile: HardwareProfile, dtype: str
) -> list[list[float]]:
    """Return for each step the durations of its operations, latency included."""
    latency_s = {
        LINK: profile.copy_latency_s,
        STORE: profile.copy_latency_s,
        GPU: profile.launch_latency_s,
    }
    of_program = {
        id(program): [
            latency_s[_resource(op)] + operation_work_s(op, profile, dtype)
            for op in program.operations
        ]
        for program in {id(program): program for program in programs}.values()
    }
    return [of_program[id(program)] for program in programs]
