"""What is measured of a policy or of a rival, and of what could not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.timeline import H2D_LANES, Lane, Origin, Span, Timeline


@dataclass(frozen=True)
class LaneFigures:
    """What the lanes did in some steps.

    Attributes:
        busy: of each lane that had work, the share of the time in which it was busy, 0 to 1.
        link_busy: share of the time in which the link to the device was busy.
        device_busy: share of the time in which the device computed.
        link_bytes_per_s: what came through the link, while it was busy; 0 where nothing came.
        host_attend_bytes_per_s: keys and values that the host's cores read, while they attended.
        dram_bytes_per_s: what link and cores read of host memory, over all of the time.
        rebuild_flops_per_s: of rebuilding keys and values, while it was under way.
    """

    busy: Mapping[Lane, float]
    link_busy: float
    device_busy: float
    link_bytes_per_s: float
    host_attend_bytes_per_s: float
    dram_bytes_per_s: float
    rebuild_flops_per_s: float

    @classmethod
    def of(cls, timeline: Timeline, start_s: float, finish_s: float) -> LaneFigures:
        """Return the figures of a part of a timeline.

        Rates while something is busy are of the whole timeline, shares of the time of the part.
        """
        loads = timeline.select(H2D_LANES)
        host = timeline.select([Lane.HOST_ATTEND])
        rebuilt = [span for span in timeline.spans if span.kind == "rebuild"]
        read = sum(_bytes_within(span, start_s, finish_s) for span in (*loads, *host))
        lanes = [lane for lane in Lane if timeline.select([lane])]
        return cls(
            busy={lane: timeline.busy_share([lane], start_s, finish_s) for lane in lanes},
            link_busy=timeline.busy_share(H2D_LANES, start_s, finish_s),
            device_busy=timeline.busy_share([Lane.COMPUTE], start_s, finish_s),
            link_bytes_per_s=_rate(loads, timeline.busy_s(H2D_LANES)),
            host_attend_bytes_per_s=_rate(host, timeline.busy_s([Lane.HOST_ATTEND])),
            dram_bytes_per_s=read / (finish_s - start_s),
            rebuild_flops_per_s=_ratio(
                sum(span.flops for span in rebuilt), sum(span.duration_s for span in rebuilt)
            ),
        )


def _bytes_within(span: Span, start_s: float, finish_s: float) -> float:
    inside_s = min(span.finish_s, finish_s) - max(span.start_s, start_s)
    return span.size_bytes * max(0.0, inside_s) / span.duration_s if span.duration_s > 0 else 0.0


def _rate(spans: tuple[Span, ...], busy_s: float) -> float:
    return _ratio(sum(span.size_bytes for span in spans), busy_s)


def _ratio(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s > 0 else 0.0


@dataclass(frozen=True)
class Agreement:
    """How the logits of a run compare with those of the run that it is compared with.

    Both were fed the same tokens.

    Attributes:
        compared_with: name of the other run.
        steps: tokens of each row that were compared.
        tokens_identical: whether both would have chosen the same token everywhere.
        max_logit_error: largest difference of logits, as a share of their range.
        tolerance: what is allowed.
        passed: whether logits agree, and tokens (in half precision: but for near ties).
    """

    compared_with: str
    steps: int
    tokens_identical: bool
    max_logit_error: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Steps:
    """The steps of a run, as a clock saw them.

    Attributes:
        prefill_s: seconds to the first token.
        step_s: median seconds of a decode step.
        step_s_range: least and largest.
        tokens_per_s: tokens a second of all rows while decoding.
        peak_gpu_bytes: peak device memory.
        energy_j: joules that the GPU took for a step, on average; None where it does not tell.
    """

    prefill_s: float
    step_s: float
    step_s_range: tuple[float, float]
    tokens_per_s: float
    peak_gpu_bytes: int
    energy_j: float | None


@dataclass(frozen=True)
class RivalMeasurement:
    """A rival's decode steps.

    Attributes:
        rival: its name.
        origin: measured: a rival's cache never goes over an emulated link.
        steps: what the clock saw.
    """

    rival: str
    origin: Origin
    steps: Steps


@dataclass(frozen=True)
class Unable:
    """A policy or a rival that could not run, and why."""

    name: str
    reason: str
