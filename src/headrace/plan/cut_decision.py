"""Deciding for a cache that is cut in a given way: the split in whole pages, within the budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    host_embedding_bytes,
    kv_bytes_per_token,
)
from headrace.model.shape import ModelShape
from headrace.plan.decided import Decision
from headrace.plan.geometry import Geometry, prompt_granule_bytes
from headrace.plan.launching import Launching
from headrace.plan.memory import (
    cache_bytes_per_token,
    fixed_gpu_items,
    forward_bytes,
    gpu_items,
    host_items,
)
from headrace.plan.options import POLICY_PATHS, PlanOptions
from headrace.plan.placement import Placement
from headrace.plan.policies import Policy, Split
from headrace.plan.program import GPU_MEMORY, Choice, MemoryLimits, Optimum, optimise
from headrace.plan.prompt_parts import fewer_tokens, prefill_tokens
from headrace.plan.step_work import Schedule, StepWork
from headrace.plan.workload import Workload

_ROUNDING_BYTES = 4096
"""What is left of each budget, for the solver's rounding."""


@dataclass(frozen=True)
class CutDecider:
    """Decides for one workload on one machine, under any policy, however the cache is cut.

    Attributes:
        shape: the model.
        workload: the batch.
        profile: the machine.
        options: how to plan; its policy is not looked at here.
    """

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    options: PlanOptions

    @property
    def gpu_budget_bytes(self) -> float:
        """Device memory that may be used."""
        return _least(self.options.gpu_memory_bytes, self.profile.device_memory_bytes)

    @property
    def host_budget_bytes(self) -> float:
        """Host memory that may be used."""
        return _least(self.options.host_memory_bytes, self.profile.host_memory_bytes)

    def at(self, policy: Policy, schedule: Schedule, geometry: Geometry) -> Decision:
        """Return the best decision for a cache that is cut in a given way.

        Where none fits, it lacks as little memory as can be.
        """
        return self.with_launching(self.by_work(policy, schedule, geometry))

    def by_work(self, policy: Policy, schedule: Schedule, geometry: Geometry) -> Decision:
        """Return the best decision over all paths, or without those that only cost something."""
        paths = self.paths(policy)
        best = self._decided(policy, schedule, geometry, paths)
        for fewer in self._fewer(best, paths):
            other = self._decided(policy, schedule, geometry, fewer)
            if other is not None and (best is None or self._is_better(other, best)):
                best = other
        if best is None:
            limits = replace(self.limits(policy, geometry, paths), lacking=True)
            best = self._solved(policy, schedule, geometry, paths, limits)
        assert best is not None
        return best

    def with_launching(self, decided: Decision) -> Decision:
        """Return a decision, or one that takes fewer calls if launching it takes longer than work.

        A path costs calls in every layer, however little it brings, and a forward whose weights are
        streamed is launched kernel by kernel. No linear program knows that.
        """
        best = decided
        if not decided.fits or decided.launch_s <= decided.optimum.step_s:
            return decided
        for paths, streams in self._fewer_calls(decided):
            other = self._decided(
                decided.policy, decided.schedule, decided.geometry, paths, stream_weights=streams
            )
            if other is not None and self._is_better(other, best):
                best = other
        return best

    def _fewer_calls(self, decided: Decision) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Yield fewer paths, and whether weights may be streamed, which are quicker to launch."""
        paths, options = self.paths(decided.policy), self.options
        asked = "recompute" if options.recompute_fraction is not None else ""
        spared = [
            path
            for path in paths
            if path not in ("resident", asked) and decided.policy is Policy.AUTO
        ]
        fewer = list(_without_some(paths, spared))
        if options.stream_weights and options.weights_streamed is None:
            yield from ((kept, False) for kept in (paths, *fewer))
        yield from ((kept, options.stream_weights) for kept in fewer)

    @staticmethod
    def _fewer(decided: Decision | None, paths: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yield fewer paths with which a decision may be better, or fit."""
        fits = decided is not None and decided.fits
        binds = decided is None or decided.optimum.prices[GPU_MEMORY] > 0
        rebuilds = decided is not None and decided.placement.recompute > 0
        if "recompute" in paths and not rebuilds and (binds or not fits):
            # The workspace for rebuilding is better used for tokens.
            yield tuple(path for path in paths if path != "recompute")
        if not fits and "resident" in paths:
            # Later tokens stay on the device only if all K/V do, which no linear program knows.
            for kept in (("resident", "recompute"), ("resident",)):
                if set(kept) < set(paths):
                    yield kept

    def _launch_s(self, work: StepWork, geometry: Geometry, optimum: Optimum) -> float:
        """Return how long launching a step takes, where that was measured; else 0."""
        return Launching(self.profile).step_s(
            work,
            geometry,
            optimum.splits,
            streams_weights=optimum.weights_streamed > 0,
        )

    @staticmethod
    def _is_better(one: Decision, other: Decision) -> bool:
        """Return whether a decision lacks less memory than another, or fits and is faster."""
        if one.fits and other.fits:
            return one.least_s < other.least_s
        return one.lacking_bytes < other.lacking_bytes

    def _decided(
        self,
        policy: Policy,
        schedule: Schedule,
        geometry: Geometry,
        paths: tuple[str, ...],
        *,
        stream_weights: bool = True,
    ) -> Decision | None:
        """Return the best decision that takes some paths, or None if none fits.

        Rounding to whole pages takes up to a page of each row more than the program counts: where
        that does not fit, the program gets less memory to divide. Where it then divides nothing,
        the decision lacks what the rounding takes.
        """
        limits = self.limits(policy, geometry, paths)

        def solved(limits: MemoryLimits) -> Decision | None:
            return self._solved(
                policy, schedule, geometry, paths, limits, stream_weights=stream_weights
            )

        decided = solved(limits)
        if decided is None or decided.fits:
            return decided
        left = limits.host_left - self.rounding_bytes(geometry)
        again = solved(replace(limits, host_left=left))
        return decided if again is None else again

    def _solved(
        self,
        policy: Policy,
        schedule: Schedule,
        geometry: Geometry,
        paths: tuple[str, ...],
        limits: MemoryLimits,
        *,
        stream_weights: bool = True,
    ) -> Decision | None:
        """Return the program's solution in whole pages."""
        work = self.step_work(policy, schedule, geometry)
        choice = self.choice(policy, geometry, paths)
        choice = replace(choice, stream_weights=choice.stream_weights and stream_weights)
        optimum, tokens = optimise(work, self.profile, limits, choice), self.prefill_tokens()
        if optimum is None:
            return None
        if optimum.weights_streamed > 0 and not limits.lacking:
            for more, left in self._with_more_for_prompts(limits):
                again = optimise(work, self.profile, left, choice)
                if again is not None:
                    found = self._rounded(policy, schedule, geometry, again, more)
                    if found.fits:
                        return found
        return self._rounded(policy, schedule, geometry, optimum, tokens)

    def _with_more_for_prompts(self, limits: MemoryLimits) -> Iterator[tuple[int, MemoryLimits]]:
        """Yield more tokens of prompts than are counted already, and what they leave; most first.

        Where weights are streamed every forward brings them anew.
        """
        tokens, more = self.prefill_tokens(), self.prefill_tokens(True)
        counted = forward_bytes(self.shape, self.workload, tokens)
        while more > tokens:
            taken = forward_bytes(self.shape, self.workload, more) - counted
            yield more, replace(limits, gpu_left=limits.gpu_left - taken)
            more = fewer_tokens(self.workload, more)

    def prefill_tokens(self, streams_weights: bool = False) -> int:
        """Return how many tokens of prompts go through the model at once.

        Args:
            streams_weights: whether weights are streamed; then it is more, if memory suffices.
        """
        if self.options.prefill_tokens is not None:
            return self.options.prefill_tokens
        return prefill_tokens(
            self.shape,
            self.workload,
            self.profile,
            self.gpu_budget_bytes,
            streams_weights=streams_weights,
        )

    @property
    def least_granule_bytes(self) -> int:
        """Bytes that a granule has at least: 0, unless prompts come in parts."""
        tokens = self.prefill_tokens(bool(self.options.weights_streamed))
        in_parts = tokens < self.workload.prompt_len
        return prompt_granule_bytes(self.shape, tokens) if in_parts else 0

    def step_work(self, policy: Policy, schedule: Schedule, geometry: Geometry) -> StepWork:
        """Return a decode step at mean context."""
        context = self.workload.mean_context
        return StepWork(
            self.shape,
            self.workload.rows,
            context,
            geometry.paged_tokens(context),
            self.workload.batches,
            schedule,
            serial=policy is Policy.KVPR
            and (schedule is Schedule.ROW or self.workload.batches == 1),
            communication_s=self.options.communication_s,
            page_tokens=geometry.block_tokens,
        )

    def paths(self, policy: Policy) -> tuple[str, ...]:
        """Return the paths of a policy that may be taken and may be worth it.

        Where X has no fewer bytes than K/V, rebuilding needs more of everything than streaming.
        """
        ratios = [
            activation_bytes_per_token(one.shape) / kv_bytes_per_token(one.shape)
            for one in self.shape.groups
        ]
        dominated = min(ratios, default=1.0) >= 1 and not self.options.recompute_fraction
        left_out = ("recompute",) if dominated and "stream" in self.options.paths else ()
        return tuple(
            path
            for path in POLICY_PATHS[policy]
            if path in self.options.paths and path not in left_out
        )

    def rounding_bytes(self, geometry: Geometry) -> int:
        """Return what whole pages on the host may take beyond the program's parts of them."""
        layers = self.shape.groups
        x_bytes = sum(one.layers * activation_bytes_per_token(one.shape) for one in layers)
        token_bytes = x_bytes + 2 * cache_bytes_per_token(self.shape)
        return self.workload.rows * geometry.block_tokens * token_bytes

    def choice(self, policy: Policy, geometry: Geometry, paths: tuple[str, ...]) -> Choice:
        """Return what the program may choose from."""
        admitted, paged = self._pages(geometry)
        most = min(1.0, admitted / paged) if paged else 1.0
        fixed = {}
        if self.options.recompute_fraction is not None and "recompute" in paths:
            fixed["recompute"] = self.options.recompute_fraction * most
        return Choice(
            paths,
            self.options.stream_weights,
            most,
            fixed,
            tied=True,
            all_later=policy is Policy.RESIDENT,
            weights_streamed=self.options.weights_streamed,
        )

    def limits(self, policy: Policy, geometry: Geometry, paths: tuple[str, ...]) -> MemoryLimits:
        """Return what the program may place where."""
        nothing = Placement(resident_pages=0)
        items = gpu_items(self.shape, self.workload, nothing, geometry, 0.0, self.prefill_tokens())
        if "recompute" in paths:
            items["rebuild_workspace"] = geometry.workspace_bytes(self.shape)
        end = -(-self.workload.max_context // geometry.block_tokens) * geometry.block_tokens
        if policy is Policy.RESIDENT:
            # Nothing is staged, and there are no pages to be rounded to.
            items = fixed_gpu_items(self.shape, self.workload, 0.0, self.prefill_tokens())
            end = self.workload.max_context
        return MemoryLimits(
            self.gpu_budget_bytes - sum(items.values()) - _ROUNDING_BYTES,
            self.host_budget_bytes - host_embedding_bytes(self.shape) - _ROUNDING_BYTES,
            end,
        )

    def _pages(self, geometry: Geometry) -> tuple[int, int]:
        """Return the pages of a prompt, and of a row at mean context."""
        block = geometry.block_tokens
        admitted = geometry.paged_tokens(self.workload.prompt_len) // block
        return admitted, geometry.paged_tokens(self.workload.mean_context) // block

    def _rounded(
        self,
        policy: Policy,
        schedule: Schedule,
        geometry: Geometry,
        optimum: Optimum,
        prompt_tokens: int,
    ) -> Decision:
        """Return the program's solution in whole pages, within the budgets."""
        admitted, pages = self._pages(geometry)
        split = optimum.splits[0] if optimum.splits else Split(resident=1.0)
        everything = policy is Policy.RESIDENT
        rows = self.workload.rows
        placement = Placement.of(split, rows, admitted, pages, keep_all=everything)
        if self.options.recompute_fraction is not None and "recompute" in self.paths(policy):
            placement = replace(placement, recompute=self.options.recompute_fraction)

        def decision_of(placement: Placement) -> Decision:
            return self._decision(policy, schedule, placement, geometry, optimum, prompt_tokens)

        decision = decision_of(placement)
        over = sum(decision.gpu_items.values()) - self.gpu_budget_bytes
        page_bytes = geometry.block_tokens * cache_bytes_per_token(self.shape)
        kept = placement.resident_pages
        if kept is None or not page_bytes:
            return decision
        if over > 0:
            kept = max(0, kept - math.ceil(over / page_bytes))
        elif split.resident > 0 and split.stream == split.host == 0:
            # All K/V are on the device now: later ones stay there too, while there is room.
            end = rows * -(-self.workload.max_context // geometry.block_tokens)
            kept = max(kept, min(end, kept + int(-over // page_bytes)))
        if kept == placement.resident_pages:
            return decision
        return decision_of(replace(placement, resident_pages=kept))

    def _decision(
        self,
        policy: Policy,
        schedule: Schedule,
        placement: Placement,
        geometry: Geometry,
        optimum: Optimum,
        prompt_tokens: int,
    ) -> Decision:
        shape, workload, streamed = self.shape, self.workload, optimum.weights_streamed
        on_gpu = gpu_items(shape, workload, placement, geometry, streamed, prompt_tokens)
        on_host = host_items(shape, workload, placement, geometry, streamed)
        lacking = max(0.0, sum(on_gpu.values()) - self.gpu_budget_bytes)
        lacking += max(0.0, sum(on_host.values()) - self.host_budget_bytes)
        admitted, pages = self._pages(geometry)
        return Decision(
            policy=policy,
            schedule=schedule,
            split=placement.split(workload.rows, admitted, pages),
            placement=placement,
            geometry=geometry,
            weights_streamed=streamed,
            prefill_tokens=prompt_tokens,
            optimum=optimum,
            gpu_items=on_gpu,
            host_items=on_host,
            lacking_bytes=lacking,
            launch_s=self._launch_s(self.step_work(policy, schedule, geometry), geometry, optimum),
        )


def _without_some(paths: tuple[str, ...], spared: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield paths without one or more of those that may be spared; at least one is left."""
    for count in range(1, len(spared) + 1):
        for left_out in combinations(spared, count):
            kept = tuple(path for path in paths if path not in left_out)
            if kept:
                yield kept


def _least(allowed: float | None, available: float) -> float:
    return available if allowed is None else min(allowed, available)
