"""What ran when on which lane, whoever says so: the simulator, a real link, or an emulated one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any


class Lane(StrEnum):
    """One thing that proceeds concurrently with the others (DESIGN: the paper's six, and ours)."""

    LOAD_WEIGHTS = "load_weights"
    LOAD_ACTIVATIONS = "load_activations"
    LOAD_KV = "load_kv"
    COMPUTE = "compute"
    STORE_KV = "store_kv"
    STORE_ACTIVATIONS = "store_activations"
    HOST_ATTEND = "host_attend"


H2D_LANES = (Lane.LOAD_WEIGHTS, Lane.LOAD_ACTIVATIONS, Lane.LOAD_KV)
"""The lanes that share the host-to-device direction of the link."""

D2H_LANES = (Lane.STORE_KV, Lane.STORE_ACTIVATIONS)
"""The lanes that share the device-to-host direction of the link."""


class Origin(StrEnum):
    """Where a figure comes from. Figures of different origin are never mixed unlabelled."""

    PREDICTED = "predicted"
    MEASURED = "measured"
    EMULATED = "emulated"
    """Measured on a link that was slowed down on purpose."""


@dataclass(frozen=True, slots=True)
class Span:
    """One operation's time on its lane.

    Attributes:
        lane: the lane that was busy.
        kind: the operation's name, such as ``load_kv`` or ``rebuild``.
        step: the decode step it belongs to (0 is the first step of the timeline).
        layer: the decoder layer, or -1 for work that belongs to no layer (embedding, head).
        granule: the granule's number within its layer, or -1.
        start_s: start, in seconds since the timeline's origin.
        finish_s: finish, in seconds since the timeline's origin.
        size_bytes: bytes moved or read.
        flops: floating-point operations.
    """

    lane: Lane
    kind: str
    step: int
    layer: int
    granule: int
    start_s: float
    finish_s: float
    size_bytes: int = 0
    flops: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds from start to finish."""
        return self.finish_s - self.start_s


@dataclass(frozen=True)
class Timeline:
    """Spans of one run, with where they come from.

    Attributes:
        origin: predicted, measured or emulated.
        label: what ran, in a few words (policy, model, hardware).
        spans: all spans, in any order.
    """

    origin: Origin
    label: str
    spans: tuple[Span, ...]

    @property
    def start_s(self) -> float:
        """Start of the first span (0 if there is none)."""
        return min((span.start_s for span in self.spans), default=0.0)

    @property
    def finish_s(self) -> float:
        """Finish of the last span (0 if there is none)."""
        return max((span.finish_s for span in self.spans), default=0.0)

    @property
    def duration_s(self) -> float:
        """Seconds from the first start to the last finish."""
        return self.finish_s - self.start_s

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have spans, ascending."""
        return tuple(sorted({span.step for span in self.spans}))

    def select(self, lanes: Iterable[Lane]) -> tuple[Span, ...]:
        """Return the spans of the given lanes."""
        wanted = frozenset(lanes)
        return tuple(span for span in self.spans if span.lane in wanted)

    def busy_s(
        self, lanes: Iterable[Lane], start_s: float | None = None, finish_s: float | None = None
    ) -> float:
        """Return the seconds in which at least one of ``lanes`` was busy.

        Args:
            lanes: lanes that count as one resource, such as ``H2D_LANES``.
            start_s: only count from here on (default: the timeline's start).
            finish_s: only count up to here (default: the timeline's finish).
        """
        low = self.start_s if start_s is None else start_s
        high = self.finish_s if finish_s is None else finish_s
        clipped = (
            (max(span.start_s, low), min(span.finish_s, high)) for span in self.select(lanes)
        )
        return _union_length(sorted(interval for interval in clipped if interval[0] < interval[1]))

    def busy_share(
        self, lanes: Iterable[Lane], start_s: float | None = None, finish_s: float | None = None
    ) -> float:
        """Return the share of a window, 0 to 1, in which at least one of ``lanes`` was busy."""
        low = self.start_s if start_s is None else start_s
        high = self.finish_s if finish_s is None else finish_s
        return self.busy_s(lanes, low, high) / (high - low) if high > low else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary that ``from_json`` reads back."""
        return {
            "origin": self.origin.value,
            "label": self.label,
            "spans": [asdict(span) for span in self.spans],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Timeline:
        """Return the timeline that ``to_json`` wrote."""
        spans = tuple(Span(**{**span, "lane": Lane(span["lane"])}) for span in data["spans"])
        return cls(Origin(data["origin"]), data["label"], spans)


def without_first(timeline: Timeline, steps: int) -> Timeline:
    """Return a timeline without its first steps and without loads for steps that never ran.

    The steps that are left are numbered from 0.
    """
    computed = sorted({span.step for span in timeline.select([Lane.COMPUTE])})
    number = {step: place for place, step in enumerate(computed[steps:])}
    kept = tuple(
        replace(span, step=number[span.step]) for span in timeline.spans if span.step in number
    )
    return Timeline(timeline.origin, timeline.label, kept)


def chrome_trace(timelines: Sequence[Timeline]) -> str:
    """Return timelines as a Chrome trace (opens in Perfetto): a process each, a thread per lane."""
    events: list[dict[str, Any]] = []
    for process, timeline in enumerate(timelines):
        name = f"{timeline.origin.value}: {timeline.label}"
        events.append(_metadata("process_name", process, 0, name))
        for thread, lane in enumerate(Lane):
            events.append(_metadata("thread_name", process, thread, lane.value))
        threads = {lane: thread for thread, lane in enumerate(Lane)}
        for span in timeline.spans:
            events.append(
                {
                    "ph": "X",
                    "pid": process,
                    "tid": threads[span.lane],
                    "name": span.kind if span.layer < 0 else f"{span.kind} {span.layer}",
                    "ts": span.start_s * 1e6,
                    "dur": span.duration_s * 1e6,
                    "args": {
                        "step": span.step,
                        "layer": span.layer,
                        "granule": span.granule,
                        "bytes": span.size_bytes,
                        "flops": span.flops,
                    },
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _metadata(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}


def _union_length(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the length covered by intervals that are sorted by their start."""
    covered = 0.0
    reached = float("-inf")
    for start, finish in intervals:
        covered += max(0.0, finish - max(start, reached))
        reached = max(reached, finish)
    return covered
