"""Measures decode steps under several policies, alternating, with the prediction beside.

The policies share one model, one batch and one run. In each round every policy takes a few steps in
turn, so that what else the machine does strikes them alike; figures are medians over all rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headrace.bench.comparison import Comparison
from headrace.bench.counts import EnergyCount, MemoryCount
from headrace.bench.lane_figures import LaneFigures, medians
from headrace.bench.measurement import PolicyMeasurement, run_name
from headrace.bench.turns import take_turns
from headrace.engine.rows_batch import RowsBatch
from headrace.hardware.profile import HardwareProfile
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.simulate import bound_s, step_durations_s
from headrace.plan.workload import Workload
from headrace.timeline import Lane, Timeline, without_first


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        rounds: how often each policy takes its turn.
        steps_per_round: steps of a turn that are timed, and as many that are recorded.
        warmup_steps: steps before either, at least 1.
        gpu_memory: budget of device memory, or None.
        host_memory: budget of host memory of each cache, or None.
        one_at_a_time: open a policy's cache only for its own rounds, where host memory does not
            hold all caches at once; rounds then do not alternate.
        batches: for each way to measure, the forwards of a step: 1 for column-by-column, several
            for row-by-row.
        first_steps: steps after the prompts, before any turn; they are not timed.
    """

    rounds: int = 3
    steps_per_round: int = 3
    warmup_steps: int = 1
    gpu_memory: str | int | None = None
    host_memory: str | int | None = None
    one_at_a_time: bool = False
    batches: tuple[int, ...] = (1,)
    first_steps: int = 1

    @property
    def all_steps(self) -> int:
        """Steps that a cache goes through."""
        return self.first_steps + 2 * self.rounds * (self.warmup_steps + self.steps_per_round)


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
    work = BatchWork(model, ids, mask, profile, label)
    runs = [
        PolicyRun(work, policy, options, batches)
        for policy in policies
        for batches in options.batches
    ]
    take_turns(runs, options.rounds, options.all_steps, options.one_at_a_time, progress)
    return [run.result for run in runs]


@dataclass(frozen=True)
class BatchWork:
    """What all runs have in common.

    Attributes:
        model: the model.
        ids: token ids ``[B, S]``, padded on the left.
        mask: their attention mask.
        profile: of this machine; if its link is emulated, the link is paced.
        label: what runs, for the timelines.
        comparison: what the logits of the first steps are compared with; None: nothing is.
    """

    model: nn.Module
    ids: Tensor
    mask: Tensor
    profile: HardwareProfile
    label: str
    comparison: Comparison | None = None

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def follow(self, name: str, logits: Tensor) -> Tensor:
        """Return the tokens that a run goes on with: its own, or those of the one it follows."""
        if self.comparison is None:
            return logits.argmax(dim=-1)
        return self.comparison.follow(name, logits)


class PolicyRun:
    """One policy's cache, its batch, and what was measured so far."""

    def __init__(
        self, work: BatchWork, policy: str, options: MeasureOptions, batches: int = 1
    ) -> None:
        self.name = run_name(policy, batches)
        self._work = work
        self._policy = policy
        self._batches = batches
        self._options = options
        self._label = f"{work.label}, {policy}"
        self._cache: RowsCache | None = None
        self._dtype = str(next(work.model.parameters()).dtype).removeprefix("torch.")
        self._steps_s: list[float] = []
        self._predicted_s: list[float] = []
        self._bounds_s: list[float] = []
        self._lanes: list[LaneFigures] = []
        self._turns = 0
        self._energy = EnergyCount(work.device)
        self._memory = MemoryCount(work.model)
        self._result: PolicyMeasurement | None = None

    def open(self) -> None:
        """Run the prompts, and the first steps."""
        work, options = self._work, self._options
        self._memory.start()
        rows, prompt_len = work.ids.shape
        self._cache = RowsCache(
            work.model,
            Workload(rows, prompt_len, options.all_steps + 1),
            CacheOptions.checked(
                self._policy,
                options.gpu_memory,
                options.host_memory,
                None,
                None,
                work.profile,
                poison=False,
            ),
        )
        self._batch = RowsBatch(work.ids, work.mask, self._cache, self._batches)
        self._made: list[list[int]] = []
        self._follow(self._batch.prefill())
        for _ in range(options.first_steps):
            self._follow(self._batch.step(self._tokens))
        self._memory.note()

    def _follow(self, logits: Tensor) -> None:
        self._tokens = self._work.follow(self.name, logits)
        self._made.append(self._tokens.tolist())

    def _step(self) -> float:
        start_s = time.perf_counter()
        self._tokens = self._batch.step(self._tokens).argmax(dim=-1)
        self._made.append(self._tokens.tolist())
        return time.perf_counter() - start_s

    def take_turn(self) -> None:
        """Take a turn of steps: some that are timed, and as many that are recorded.

        Recording costs time, most of all where launching limits a step. The first ones of either
        do not count. Which come first alternates, so that contexts are as long for both.
        """
        parts = [self._time, self._record]
        for part in parts if self._turns % 2 == 0 else parts[::-1]:
            part()
        self._turns += 1

    def _time(self) -> None:
        """Take steps that are timed, and predict the same ones."""
        cache, options = self._opened, self._options
        cache.follow()
        for _ in range(options.warmup_steps):
            self._step()
        with self._energy:
            self._steps_s += [self._step() for _ in range(options.steps_per_round)]
        forwards = options.warmup_steps * self._batches
        predicted = cache.predicted_timeline(self._label)
        assert predicted is not None
        self._predicted_s += self._by_step(step_durations_s(predicted)[forwards:])
        self._bounds_s += self._by_step(
            [
                bound_s(program, self._work.profile, self._dtype)
                for program in cache.noted_programs[forwards:]
            ]
        )
        cache.follow(False)

    def _record(self) -> None:
        """Take steps that are recorded."""
        cache, options = self._opened, self._options
        forwards = options.warmup_steps * self._batches
        cache.trace()
        for _ in range(options.warmup_steps + options.steps_per_round):
            self._step()
        timeline = cache.timeline(self._label)
        predicted = cache.predicted_timeline(self._label)
        assert predicted is not None
        self._predicted = without_first(predicted, forwards)
        cache.trace(False)
        self._timeline, figures = _counted(timeline, forwards)
        self._lanes.append(figures)

    def _by_step(self, of_forwards: Sequence[float]) -> list[float]:
        """Return the sums over the forwards of each step."""
        count = self._batches
        return [sum(of_forwards[at : at + count]) for at in range(0, len(of_forwards), count)]

    def finish(self) -> None:
        """Note the result and close the cache."""
        cache = self._opened
        self._result = PolicyMeasurement(
            policy=self._policy,
            batches=self._batches,
            origin=cache.origin,
            recompute_fraction=cache.recompute_fraction,
            resident_fraction=cache.resident_fraction,
            stream_fraction=cache.stream_fraction,
            host_fraction=cache.host_fraction,
            prefill_s=self._batch.forward_s[0],
            step_s=statistics.median(self._steps_s),
            step_s_range=(min(self._steps_s), max(self._steps_s)),
            predicted_step_s=statistics.median(self._predicted_s),
            bound_s=statistics.median(self._bounds_s),
            link_bytes=self._batch.link_bytes,
            lanes=medians(self._lanes),
            peak_gpu_bytes=self._memory.peak_bytes(cache.peak_gpu_bytes),
            host_bytes=cache.paged.host_bytes,
            grown_bytes=self._memory.grown_bytes,
            energy_j=self._energy.per_step(len(self._steps_s)),
            predicted=self._predicted,
            measured=self._timeline,
            token_ids=tuple(zip(*self._made, strict=True)),
            notes=cache.notes,
        )
        self.close()

    @property
    def result(self) -> PolicyMeasurement:
        """What was measured, once it has finished."""
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


def _counted(timeline: Timeline, warmup_steps: int) -> tuple[Timeline, LaneFigures]:
    """Return the steps that count, and what the lanes did in them.

    A step lasts from the end of the compute of the one before to the end of its own; what the link
    does in that time counts, whichever step it is for.
    """
    compute = timeline.select([Lane.COMPUTE])
    before = sorted({span.step for span in compute})[warmup_steps - 1]
    start_s = max(span.finish_s for span in compute if span.step == before)
    finish_s = max(span.finish_s for span in compute)
    figures = LaneFigures.of(timeline, start_s, finish_s)
    return without_first(timeline, warmup_steps), figures
