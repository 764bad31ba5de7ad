"""Measures decode steps under several policies, alternating, with the prediction beside.

The policies share one model, one batch and one run. In each round every policy takes a few steps in
turn, so that what else the machine does strikes them alike; figures are medians over all rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from headrace.engine.calm import calm_collector
from headrace.engine.rows_batch import RowsBatch
from headrace.hardware.profile import HardwareProfile
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.simulate import bound_s, step_durations_s
from headrace.plan.workload import Workload
from headrace.timeline import H2D_LANES, Lane, Origin, Timeline


@dataclass(frozen=True)
class PolicyMeasurement:
    """One policy's decode steps.

    Attributes:
        policy: the policy.
        batches: forwards of a step: 1 for column-by-column, several for row-by-row.
        origin: measured, or emulated when the link was slowed down on purpose.
        recompute_fraction: share of the prompts that is kept as X.
        resident_fraction: share of the prompts whose K/V stay on the device.
        prefill_s: seconds to the first token.
        step_s: median seconds of a decode step.
        step_s_range: least and largest.
        predicted_step_s: the same program by simulation, with the profile's rates.
        bound_s: the least that the profile's rates allow for the step's work.
        link_bytes: bytes that a step brings to the device.
        link_bytes_per_s: while the link was busy.
        link_busy: share of the time in which the link was busy, 0 to 1.
        device_busy: share of the time in which the device computed, 0 to 1.
        peak_gpu_bytes: peak device memory.
        host_bytes: host memory of the cache.
        grown_bytes: device memory that torch reserved further while decoding, after the first
            step (0 on a CPU, where this is not counted).
        predicted: the predicted timeline.
        measured: the measured timeline of the last round.
        token_ids: each row's greedy tokens.
        notes: what was decided differently from what was asked, and why.
    """

    policy: str
    batches: int
    origin: Origin
    recompute_fraction: float
    resident_fraction: float
    prefill_s: float
    step_s: float
    step_s_range: tuple[float, float]
    predicted_step_s: float
    bound_s: float
    link_bytes: int
    link_bytes_per_s: float
    link_busy: float
    device_busy: float
    peak_gpu_bytes: int
    host_bytes: int
    grown_bytes: int
    predicted: Timeline
    measured: Timeline
    token_ids: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    @property
    def prediction_error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted_step_s / self.step_s - 1.0

    @property
    def binding_busy(self) -> float:
        """Busy share of the busier of link and device."""
        return max(self.link_busy, self.device_busy)


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        rounds: how often each policy takes its turn.
        steps_per_round: steps of a turn that are timed, and after them as many that are recorded.
        warmup_steps: steps before either, at least 1.
        gpu_memory: budget of device memory, or None.
        host_memory: budget of host memory of each cache, or None.
        one_at_a_time: open a policy's cache only for its own rounds, where host memory does not
            hold all caches at once; rounds then do not alternate.
        batches: for each way to measure, the forwards of a step: 1 for column-by-column, several
            for row-by-row.
    """

    rounds: int = 3
    steps_per_round: int = 3
    warmup_steps: int = 1
    gpu_memory: str | int | None = None
    host_memory: str | int | None = None
    one_at_a_time: bool = False
    batches: tuple[int, ...] = (1,)

    @property
    def all_steps(self) -> int:
        """Steps that a cache goes through."""
        return 1 + 2 * self.rounds * (self.warmup_steps + self.steps_per_round)


def measure_policies(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    profile: HardwareProfile,
    policies: Sequence[str],
    options: MeasureOptions,
    *,
    label: str,
    progress: Callable[[str], None] = lambda _: None,
) -> list[PolicyMeasurement]:
    """Measure policies on one batch.

    Args:
        model: the model.
        ids: token ids ``[B, S]``, padded on the left.
        mask: their attention mask.
        profile: of this machine; if its link is emulated, the link is paced.
        policies: names of policies.
        options: how to measure.
        label: what runs, for the timelines.
        progress: is called with a line of text now and then.
    """
    runs = [
        _PolicyRun(model, ids, mask, profile, policy, options, f"{label}, {policy}", batches)
        for policy in policies
        for batches in options.batches
    ]
    try:
        with calm_collector(tidy=True):
            if options.one_at_a_time:
                _run_in_turn(runs, options, progress)
            else:
                _run_alternating(runs, options, progress)
        return [run.result() for run in runs]
    finally:
        for run in runs:
            run.close()


def _run_in_turn(
    runs: Sequence[_PolicyRun], options: MeasureOptions, progress: Callable[[str], None]
) -> None:
    """Run one policy after the other."""
    for run in runs:
        progress(f"{run.policy}: prompts and {options.all_steps} steps")
        run.open()
        for _ in range(options.rounds):
            run.take_turn()
        run.finish()


def _run_alternating(
    runs: Sequence[_PolicyRun], options: MeasureOptions, progress: Callable[[str], None]
) -> None:
    """Let the policies take turns."""
    for run in runs:
        progress(f"{run.policy}: prompts")
        run.open()
    for number in range(options.rounds):
        for run in runs:
            progress(f"round {number + 1} of {options.rounds}: {run.policy}")
            run.take_turn()
    for run in runs:
        run.finish()


class _PolicyRun:
    """One policy's cache, its batch, and what was measured so far."""

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor,
        mask: Tensor,
        profile: HardwareProfile,
        policy: str,
        options: MeasureOptions,
        label: str,
        batches: int,
    ) -> None:
        self.policy = policy
        self._batches = batches
        self._model = model
        self._inputs = ids, mask
        self._profile = profile
        self._options = options
        self._label = label
        self._cache: RowsCache | None = None
        self._steps_s: list[float] = []
        self._predicted_s: list[float] = []
        self._bounds_s: list[float] = []
        self._dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self._busy: list[tuple[float, float, float]] = []
        self._result: PolicyMeasurement | None = None

    def open(self) -> None:
        """Run the prompts."""
        if next(self._model.parameters()).is_cuda:
            torch.cuda.reset_peak_memory_stats()
        rows, prompt_len = self._inputs[0].shape
        self._cache = RowsCache(
            self._model,
            Workload(rows, prompt_len, self._options.all_steps + 1),
            CacheOptions.checked(
                self.policy,
                self._options.gpu_memory,
                self._options.host_memory,
                None,
                None,
                self._profile,
                poison=False,
            ),
        )
        self._batch = RowsBatch(*self._inputs, self._cache, self._batches)
        self._tokens = self._batch.prefill().argmax(dim=-1)
        self._made = [self._tokens.tolist()]
        self._step()
        self._reserved_bytes = _reserved_bytes(self._model)

    def _step(self) -> float:
        start_s = time.perf_counter()
        self._tokens = self._batch.step(self._tokens).argmax(dim=-1)
        self._made.append(self._tokens.tolist())
        return time.perf_counter() - start_s

    def take_turn(self) -> None:
        """Take a turn of steps: first those that are timed, then as many that are recorded.

        Recording costs time, most of all where launching limits a step. The first ones of either
        do not count.
        """
        cache, options = self._opened, self._options
        forwards = options.warmup_steps * self._batches
        for _ in range(options.warmup_steps):
            self._step()
        self._steps_s += [self._step() for _ in range(options.steps_per_round)]
        cache.trace()
        for _ in range(options.warmup_steps + options.steps_per_round):
            self._step()
        timeline = cache.timeline(self._label)
        predicted = cache.predicted_timeline(self._label)
        assert predicted is not None
        self._predicted = without_first(predicted, forwards)
        self._predicted_s += self._by_step(step_durations_s(predicted)[forwards:])
        self._bounds_s += self._by_step(
            [
                bound_s(program, self._profile, self._dtype)
                for program in cache.paged.recorder.programs[forwards:]
            ]
        )
        cache.trace(False)
        self._timeline, shares = _counted(timeline, forwards)
        self._busy.append(shares)

    def _by_step(self, of_forwards: Sequence[float]) -> list[float]:
        """Return the sums over the forwards of each step."""
        count = self._batches
        return [sum(of_forwards[at : at + count]) for at in range(0, len(of_forwards), count)]

    def finish(self) -> None:
        """Note the result and close the cache."""
        cache = self._opened
        links, devices, rates = zip(*self._busy, strict=True)
        self._result = PolicyMeasurement(
            policy=self.policy,
            batches=self._batches,
            origin=cache.origin,
            recompute_fraction=cache.recompute_fraction,
            resident_fraction=cache.resident_fraction,
            prefill_s=self._batch.forward_s[0],
            step_s=statistics.median(self._steps_s),
            step_s_range=(min(self._steps_s), max(self._steps_s)),
            predicted_step_s=statistics.median(self._predicted_s),
            bound_s=statistics.median(self._bounds_s),
            link_bytes=self._batch.link_bytes,
            link_bytes_per_s=statistics.median(rates),
            link_busy=statistics.median(links),
            device_busy=statistics.median(devices),
            peak_gpu_bytes=cache.peak_gpu_bytes,
            host_bytes=cache.paged.host_bytes,
            grown_bytes=_reserved_bytes(self._model) - self._reserved_bytes,
            predicted=self._predicted,
            measured=self._timeline,
            token_ids=tuple(zip(*self._made, strict=True)),
            notes=cache.notes,
        )
        self.close()

    def result(self) -> PolicyMeasurement:
        """Return the result."""
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    @property
    def _opened(self) -> RowsCache:
        assert self._cache is not None
        return self._cache


def _reserved_bytes(model: nn.Module) -> int:
    """Return the device memory that torch has reserved (0 on a CPU)."""
    device = next(model.parameters()).device
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _counted(timeline: Timeline, warmup_steps: int) -> tuple[Timeline, tuple[float, float, float]]:
    """Return the steps that count, with the busy shares of link and device and the link's rate.

    A step lasts from the end of the compute of the one before to the end of its own; what the link
    does in that time counts, whichever step it is for.
    """
    compute = timeline.select([Lane.COMPUTE])
    before = sorted({span.step for span in compute})[warmup_steps - 1]
    start_s = max(span.finish_s for span in compute if span.step == before)
    finish_s = max(span.finish_s for span in compute)
    loads = timeline.select(H2D_LANES)
    busy_s = timeline.busy_s(H2D_LANES)
    shares = (
        timeline.busy_share(H2D_LANES, start_s, finish_s),
        timeline.busy_share([Lane.COMPUTE], start_s, finish_s),
        sum(span.size_bytes for span in loads) / busy_s if busy_s else 0.0,
    )
    return without_first(timeline, warmup_steps), shares


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
