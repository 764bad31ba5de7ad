"""What a call of ``generate`` took, measured and predicted."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from headrace.hf.attached_cache import AttachedCache
from headrace.plan.policies import Split
from headrace.plan.simulate import steady_step_s
from headrace.timeline import Origin, Timeline, without_first


@dataclass(frozen=True)
class GenerationStats:
    """What a call of ``generate`` took.

    Attributes:
        origin: measured, or emulated when the link was slowed down on purpose.
        prefill_s: seconds from the call to the first token of the rows that were begun first.
        step_s: median seconds of a decode step, from token to token (0 if there was none).
        tokens_per_s: tokens a second that decode steps made, over all rows.
        predicted_step_s: what the last step's program takes by simulation; None without a profile.
        link_bytes_per_step: bytes that the last step brought to the device.
        peak_gpu_bytes: peak device memory: CUDA's own count, or on a CPU weights and cache buffers.
        host_bytes: host memory of the cache.
        policy: the policy that was used.
        resident_fraction: share of each prompt's tokens whose K/V stayed on the device, as planned.
        stream_fraction: share whose K/V on the host were brought to the device in every step.
        recompute_fraction: share that was kept as X.
        host_fraction: share that the host's cores attended to. The four sum to 1.
        weights_stream_fraction: share of the layers' weights that every forward brought.
        notes: what was decided differently from what was asked, or changed since, and why.
        split_changes: how often the split was changed while rows ran.
        split: how cached tokens were divided when that was last looked at; None if never.
    """

    origin: Origin
    prefill_s: float
    step_s: float
    tokens_per_s: float
    predicted_step_s: float | None
    link_bytes_per_step: int
    peak_gpu_bytes: int
    host_bytes: int
    policy: str
    resident_fraction: float
    stream_fraction: float
    recompute_fraction: float
    host_fraction: float
    weights_stream_fraction: float
    notes: tuple[str, ...]
    split_changes: int = 0
    split: Split | None = None


@dataclass
class Stopwatch:
    """The seconds of a call's steps.

    Attributes:
        first_s: of the prompts before the first decode step, with all that came before them.
        steps_s: of each decode step.
        tokens: that decode steps made.
    """

    first_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    tokens: int = 0

    def note(self, seconds: float, decoded: int) -> None:
        """Note a step, and the rows that it decoded."""
        if decoded:
            self.steps_s.append(seconds)
            self.tokens += decoded
        elif not self.steps_s:
            self.first_s += seconds

    def stats(self, cache: AttachedCache, predicted: Timeline | None) -> GenerationStats:
        """Return the figures of a call that ran with a cache."""
        replanning = cache.replanning
        return GenerationStats(
            origin=cache.origin,
            prefill_s=self.first_s,
            step_s=statistics.median(self.steps_s) if self.steps_s else 0.0,
            tokens_per_s=self.tokens / sum(self.steps_s) if self.steps_s else 0.0,
            predicted_step_s=None if predicted is None else steady_step_s(predicted),
            link_bytes_per_step=cache.link_bytes_per_step,
            peak_gpu_bytes=cache.peak_gpu_bytes,
            host_bytes=cache.paged.host_bytes,
            policy=cache.policy,
            resident_fraction=cache.resident_fraction,
            stream_fraction=cache.stream_fraction,
            recompute_fraction=cache.recompute_fraction,
            host_fraction=cache.host_fraction,
            weights_stream_fraction=cache.weights_stream_fraction,
            notes=cache.notes,
            split_changes=0 if replanning is None else replanning.changes,
            split=None if replanning is None else replanning.split,
        )


def recorded(cache: AttachedCache, predicted: Timeline | None, label: str) -> tuple[Timeline, ...]:
    """Return what was recorded, with the prediction first if there is one.

    Steps are numbered from 0, as predicted ones are: a page lays steps of a number over each other.
    """
    measured = without_first(cache.timeline(label), 0)
    return (measured,) if predicted is None else (predicted, measured)
