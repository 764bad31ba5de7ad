"""What the lanes did while a policy was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from headrace.timeline import H2D_LANES, Lane, Span, Timeline


@dataclass(frozen=True)
class LaneFigures:
    """What the lanes did in some steps.

    Attributes:
        busy: of each lane that had work, the share of the time in which it was busy, 0 to 1.
        link_busy: share of the time in which the link to the device was busy.
        device_busy: share of the time in which the device computed.
        link_bytes_per_s: what came through the link, while it was busy; 0 where nothing came.
        host_attend_bytes_per_s: keys and values that the host's cores attended to, while they did;
            of these, some may have been read ahead.
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


def medians(of_rounds: Sequence[LaneFigures]) -> LaneFigures:
    """Return the median of each figure over the rounds."""
    names = [one.name for one in fields(LaneFigures) if one.name != "busy"]
    lanes = {lane: None for figures in of_rounds for lane in figures.busy}
    return LaneFigures(
        busy={
            lane: statistics.median(figures.busy.get(lane, 0.0) for figures in of_rounds)
            for lane in lanes
        },
        **{
            name: statistics.median(getattr(figures, name) for figures in of_rounds)
            for name in names
        },
    )
