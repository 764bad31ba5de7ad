"""What a picture of timelines shows: which belong together, their rows, steps and busy shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from headrace.timeline import D2H_LANES, H2D_LANES, Lane, Origin, Timeline

ORIGIN_WORDS = {
    Origin.PREDICTED: "predicted",
    Origin.MEASURED: "measured",
    Origin.EMULATED: "measured on an emulated link",
}
"""Where a timeline comes from, as a reader is told."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a picture: lanes that take turns on one piece of the machine, or a single lane."""

    name: str
    lanes: tuple[Lane, ...]


MACHINE_ROWS = (
    Row("Link to GPU", H2D_LANES),
    Row("GPU", (Lane.COMPUTE,)),
    Row("Host CPU", (Lane.HOST_ATTEND,)),
    Row("Link to host", D2H_LANES),
)
"""A row for each part of the machine: the link on top, what it feeds under it."""

LANE_ROWS = (
    Row("Weights to GPU", (Lane.LOAD_WEIGHTS,)),
    Row("X to GPU", (Lane.LOAD_ACTIVATIONS,)),
    Row("K/V to GPU", (Lane.LOAD_KV,)),
    Row("GPU", (Lane.COMPUTE,)),
    Row("Host CPU", (Lane.HOST_ATTEND,)),
    Row("K/V to host", (Lane.STORE_KV,)),
    Row("X to host", (Lane.STORE_ACTIVATIONS,)),
)
"""A row for each lane."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Timelines of the same work, drawn over each other: the predicted one on top."""

    label: str
    timelines: tuple[Timeline, ...]

    def rows(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return the rows in which any of the panel's timelines has a span."""
        used = {span.lane for timeline in self.timelines for span in timeline.spans}
        return tuple(row for row in rows if used.intersection(row.lanes))


@dataclass(frozen=True, slots=True)
class Step:
    """One step's time: from the end of the step before it to the end of its own computing."""

    number: int
    start_s: float
    finish_s: float


def panels_of(timelines: Sequence[Timeline]) -> tuple[Panel, ...]:
    """Group timelines into panels: those of one label, unless two are of the same origin."""
    groups: list[list[Timeline]] = []
    for timeline in timelines:
        for group in groups:
            origins = {other.origin for other in group}
            if group[0].label == timeline.label and timeline.origin not in origins:
                group.append(timeline)
                break
        else:
            groups.append([timeline])
    order = list(Origin)
    return tuple(
        Panel(group[0].label, tuple(sorted(group, key=lambda each: order.index(each.origin))))
        for group in groups
    )


def steps_of(timeline: Timeline) -> tuple[Step, ...]:
    """Return the steps, one after the other without gaps.

    Loads may run ahead of their step, so a step begins when the computing of the one before it has
    ended; the first begins with its first span.
    """
    finish_of: dict[int, float] = {}
    computed = {span.step for span in timeline.spans if span.lane is Lane.COMPUTE}
    for span in timeline.spans:
        if span.lane is Lane.COMPUTE or span.step not in computed:
            finish_of[span.step] = max(finish_of.get(span.step, span.finish_s), span.finish_s)
    steps: list[Step] = []
    start = timeline.start_s
    for number in sorted(finish_of):
        finish = max(start, finish_of[number])
        steps.append(Step(number, start, finish))
        start = finish
    return tuple(steps)


def step_s(timeline: Timeline) -> float | None:
    """Return the time of a step in steady state, or None if there is no step.

    It is the median of the steps but the first, which has to fill the lanes, and the last, as
    ``plan.simulate.steady_step_s`` has it; of two steps the second counts.
    """
    durations = [step.finish_s - step.start_s for step in steps_of(timeline)]
    return median(durations[1:-1] or durations[-1:]) if durations else None
