"""A whole generation, simulated: prompts, and decode steps while the context grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.outcome import Plan
from headrace.plan.plan import plan_program
from headrace.plan.prefill import prefill_s
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
        decode_s: seconds of all decode steps (see ``decode_time``).
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


@dataclass(frozen=True)
class DecodeTime:
    """What the decode steps of a generation take.

    Attributes:
        contexts: contexts of a row at which a step was simulated, ascending.
        step_s: the step's seconds at each.
        total_s: seconds of all steps.
    """

    contexts: tuple[int, ...]
    step_s: tuple[float, ...]
    total_s: float


def forecast(plan: Plan, shape: ModelShape, profile: HardwareProfile) -> Forecast:
    """Simulate a plan's generation.

    Args:
        plan: the plan.
        shape: the model that it was made for.
        profile: the machine that it was made for.
    """
    workload = plan.workload
    ttft_s = prefill_s(plan, shape, profile)
    mean = plan_program(plan, shape)
    is_large = len(mean.operations) >= _MANY_OPERATIONS
    simulated = 2 if is_large else 3

    def step_s(context: int) -> float:
        program = plan_program(plan, shape, context)
        return predicted_step_s(program, profile, shape.dtype, simulated)

    stretches = decode_stretches(
        workload.prompt_len, workload.decode_steps, plan.geometry.block_tokens
    )
    decode = decode_time(stretches, step_s, _FEWER_POINTS if is_large else _POINTS)
    total_s = ttft_s + decode.total_s
    timeline = simulate(mean, profile, shape.dtype, simulated)
    return Forecast(
        ttft_s=ttft_s,
        contexts=decode.contexts,
        step_s=decode.step_s,
        decode_s=decode.total_s,
        tokens_per_s=workload.rows * workload.generate_len / total_s,
        busy=lane_shares(timeline),
        peak_gpu_bytes=plan.gpu_items,
        peak_host_bytes=plan.host_items,
    )


def decode_stretches(prompt_len: int, steps: int, block_tokens: int) -> tuple[range, ...]:
    """Return the contexts of the decode steps, a stretch for each number of whole blocks.

    In a stretch the steps bring the same pages through the link; only the tail on the device grows.
    """
    end = prompt_len + steps
    first_full = (prompt_len // block_tokens + 1) * block_tokens
    cuts = [prompt_len, *range(first_full, end, block_tokens), end]
    return tuple(range(start, stop) for start, stop in pairwise(cuts) if start < stop)


def decode_time(
    stretches: Sequence[range], step_s: Callable[[int], float], points: int = _POINTS
) -> DecodeTime:
    """Return what all decode steps take, from few that are simulated.

    A stretch's steps are taken to be as long as the one in its middle. Stretches that are not
    simulated lie between two that are, and are interpolated.

    Args:
        stretches: contexts of the steps (see ``decode_stretches``).
        step_s: simulates a step at a context.
        points: most stretches that are simulated; the first and the last always are.
    """
    count = min(max(points, 2), len(stretches))
    last = len(stretches) - 1
    places = sorted({last * point // max(1, count - 1) for point in range(count)})
    contexts = tuple((stretches[place][0] + stretches[place][-1]) // 2 for place in places)
    steps_s = tuple(step_s(context) for context in contexts)
    total_s = sum(
        len(stretch) * _between(places, steps_s, place) for place, stretch in enumerate(stretches)
    )
    return DecodeTime(contexts, steps_s, total_s)


def lane_shares(timeline: Timeline) -> dict[str, float]:
    """Return the share of the middle steps in which each lane is busy, 0 to 1."""
    durations = step_durations_s(timeline)
    start_s = timeline.start_s + durations[0]
    finish_s = start_s + sum(durations[1:-1] or durations[1:])
    if len(durations) == 1:
        start_s, finish_s = timeline.start_s, timeline.start_s + durations[0]
    return {lane.value: timeline.busy_share([lane], start_s, finish_s) for lane in Lane}


def _between(places: Sequence[int], values: Sequence[float], place: int) -> float:
    """Return the value at a place, interpolated between the known ones on either side."""
    above = min(bisect_right(places, place), len(places) - 1)
    low, high = max(0, above - 1), above
    if places[low] == places[high]:
        return values[low]
    share = (place - places[low]) / (places[high] - places[low])
    return values[low] + share * (values[high] - values[low])
