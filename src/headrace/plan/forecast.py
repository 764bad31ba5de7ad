"""A whole generation, simulated: prompts, and decode steps while the context grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.outcome import Plan
from headrace.plan.plan import plan_program
from headrace.plan.prefill import prefill_program
from headrace.plan.simulate import predicted_step_s, simulate, step_durations_s
from headrace.timeline import Lane, Timeline

_POINTS = 5
_MANY_OPERATIONS = 5_000
_FEWER_POINTS = 3


@dataclass(frozen=True)
class Forecast:
    """What a generation is predicted to take.

    Attributes:
        ttft_s: seconds to the first token of all rows: the prefill.
        contexts: contexts of a row at which a decode step was simulated, ascending.
        step_s: the step's seconds at each.
        decode_s: seconds of all decode steps: the steps between are interpolated.
        tokens_per_s: generated tokens a second, over all rows, prefill included.
        busy: share of a decode step at mean context in which each lane is busy, 0 to 1.
        peak_gpu_bytes: device memory at the peak, by item.
        peak_host_bytes: host memory at the peak, by item.
    """

    ttft_s: float
    contexts: tuple[int, ...]
    step_s: tuple[float, ...]
    decode_s: float
    tokens_per_s: float
    busy: Mapping[str, float]
    peak_gpu_bytes: Mapping[str, int]
    peak_host_bytes: Mapping[str, int]

    @property
    def total_s(self) -> float:
        """Seconds from the prompts to the last token."""
        return self.ttft_s + self.decode_s

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary."""
        return {
            "ttft_s": self.ttft_s,
            "decode_s": self.decode_s,
            "total_s": self.total_s,
            "tokens_per_s": self.tokens_per_s,
            "steps": [
                {"context": context, "step_s": step_s}
                for context, step_s in zip(self.contexts, self.step_s, strict=True)
            ],
            "busy": dict(self.busy),
            "peak_gpu_bytes": sum(self.peak_gpu_bytes.values()),
            "peak_host_bytes": sum(self.peak_host_bytes.values()),
        }


def forecast(plan: Plan, shape: ModelShape, profile: HardwareProfile) -> Forecast:
    """Simulate a plan's generation.

    Args:
        plan: the plan.
        shape: the model that it was made for.
        profile: the machine that it was made for.
    """
    workload = plan.workload
    prefill = simulate(prefill_program(plan, shape), profile, shape.dtype)
    ttft_s = max(span.finish_s for span in prefill.select([Lane.COMPUTE]))
    mean = plan_program(plan, shape)
    points = _POINTS if len(mean.operations) < _MANY_OPERATIONS else _FEWER_POINTS
    contexts = _contexts(workload.prompt_len, workload.decode_steps, points)
    simulated = 3 if points == _POINTS else 2
    steps_s = tuple(
        predicted_step_s(plan_program(plan, shape, context), profile, shape.dtype, simulated)
        for context in contexts
    )
    decode_s = _integral(contexts, steps_s) + (steps_s[-1] if steps_s else 0.0)
    total_s = ttft_s + decode_s
    timeline = simulate(mean, profile, shape.dtype, simulated)
    return Forecast(
        ttft_s=ttft_s,
        contexts=contexts,
        step_s=steps_s,
        decode_s=decode_s,
        tokens_per_s=workload.rows * workload.generate_len / total_s,
        busy=lane_shares(timeline),
        peak_gpu_bytes=plan.gpu_items,
        peak_host_bytes=plan.host_items,
    )


def lane_shares(timeline: Timeline) -> dict[str, float]:
    """Return the share of the middle steps in which each lane is busy, 0 to 1."""
    durations = step_durations_s(timeline)
    start_s = timeline.start_s + durations[0]
    finish_s = start_s + sum(durations[1:-1] or durations[1:])
    if len(durations) == 1:
        start_s, finish_s = timeline.start_s, timeline.start_s + durations[0]
    return {lane.value: timeline.busy_share([lane], start_s, finish_s) for lane in Lane}


def _contexts(prompt_len: int, steps: int, points: int) -> tuple[int, ...]:
    """Return contexts from the first decode step's to the last one's, spread evenly."""
    if steps < 1:
        return ()
    count = min(points, steps)
    places = {(steps - 1) * point // max(1, count - 1) for point in range(count)}
    return tuple(prompt_len + place for place in sorted(places))


def _integral(contexts: tuple[int, ...], steps_s: tuple[float, ...]) -> float:
    """Return the seconds of the steps from the first context up to the last, without that."""
    between = zip(pairwise(contexts), pairwise(steps_s), strict=True)
    return sum((high - low) * (first + last) / 2 for (low, high), (first, last) in between)
