"""Collects what ran when, as events that have not happened yet, and turns them into a timeline."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.plan.operations import Operation, Program
from headrace.runtime.lanes import Event
from headrace.timeline import Lane, Origin, Span, Timeline


@dataclass(frozen=True, slots=True)
class _Record:
    lane: Lane
    kind: str
    step: int
    layer: int
    granule: int
    size_bytes: int
    flops: int
    event: Event


class Recorder:
    """A list of operations with the events of their ends.

    Recording costs nothing while ``enabled`` is false.

    Attributes:
        enabled: whether operations and programs are noted.
        keeps_programs: whether at least programs are: then each is made with its own costs.
    """

    def __init__(self) -> None:
        self.enabled = False
        self.keeps_programs = False
        self._records: list[_Record] = []
        self._programs: list[Program] = []

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs of the steps since they have been noted."""
        return tuple(self._programs)

    def clear(self) -> None:
        """Forget everything."""
        self._records = []
        self._programs = []

    @property
    def notes_programs(self) -> bool:
        """Whether programs are noted."""
        return self.enabled or self.keeps_programs

    def note_program(self, program: Program) -> None:
        """Note that a step runs this program."""
        if self.notes_programs:
            self._programs.append(program)

    def note(self, step: int, operation: Operation, event: Event) -> None:
        """Note that an operation ends with an event."""
        if self.enabled:
            self.note_work(
                step,
                operation.lane,
                operation.kind.value,
                operation.layer,
                event,
                granule=operation.granule,
                size_bytes=operation.memory_bytes
                if operation.lane is Lane.HOST_ATTEND
                else operation.link_bytes or operation.memory_bytes,
                flops=operation.flops,
            )

    def note_work(
        self,
        step: int,
        lane: Lane,
        kind: str,
        layer: int,
        event: Event,
        *,
        granule: int = -1,
        size_bytes: int = 0,
        flops: int = 0,
    ) -> None:
        """Note work that is not an operation of the program."""
        if self.enabled:
            self._records.append(
                _Record(lane, kind, step, layer, granule, size_bytes, flops, event)
            )

    def timeline(self, origin: Origin, label: str) -> Timeline:
        """Return everything that was noted; waits until it has happened."""
        spans = []
        for record in self._records:
            start_s, finish_s = record.event.times_s()
            spans.append(
                Span(
                    record.lane,
                    record.kind,
                    record.step,
                    record.layer,
                    record.granule,
                    start_s,
                    finish_s,
                    record.size_bytes,
                    record.flops,
                )
            )
        return Timeline(origin, label, tuple(spans))
