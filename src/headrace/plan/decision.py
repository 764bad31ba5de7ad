"""Deciding: the split, where everything goes and how the cache is cut, within the budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.demands import Schedule, StepWork
from headrace.plan.geometry import Geometry, choose_geometry
from headrace.plan.memory import (
    cache_bytes_per_token,
    fixed_gpu_items,
    gpu_items,
    hidden_bytes_per_token,
    host_items,
)
from headrace.plan.options import POLICY_PATHS, PlanOptions
from headrace.plan.placement import Placement
from headrace.plan.policies import Policy, Split
from headrace.plan.program import Choice, MemoryLimits, Optimum, optimise
from headrace.plan.workload import Workload

PREFILL_SHARE = 0.05
"""Share of the device's budget that the prompts which go through the model at once may take."""

STAGING_SHARE = 0.1
"""Most of the device memory that staging takes from what could keep tokens there."""


@dataclass(frozen=True)
class Decision:
    """What is decided, before anything is simulated.

    Attributes:
        policy: the policy asked for.
        schedule: the order of a step's operations.
        split: how cached tokens in pages are divided at mean context.
        placement: where they are kept.
        geometry: how the cache is cut.
        weights_streamed: share of the layers' weights that is streamed.
        prefill_rows: rows whose prompts go through the model at once.
        optimum: the linear program's solution.
        gpu_items: bytes on the device, by item.
        host_items: bytes on the host, by item.
        lacking_bytes: bytes beyond the budgets; 0 where it fits.
    """

    policy: Policy
    schedule: Schedule
    split: Split
    placement: Placement
    geometry: Geometry
    weights_streamed: float
    prefill_rows: int
    optimum: Optimum
    gpu_items: Mapping[str, int]
    host_items: Mapping[str, int]
    lacking_bytes: float

    @property
    def fits(self) -> bool:
        """Whether it keeps the budgets."""
        return self.lacking_bytes <= 0


@dataclass(frozen=True)
class Decider:
    """Decides for one workload on one machine, under any policy.

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

    def decide(self, policy: Policy, schedule: Schedule = Schedule.ROW) -> Decision:
        """Return the best decision under a policy; one that lacks memory where none fits."""
        nominal = self._nominal(policy)
        geometry = self._geometry(policy, nominal, shared="resident" in self._paths(policy))
        optimum = self._optimum(policy, schedule, geometry)
        decided = self._rounded(policy, schedule, geometry, optimum)
        final = self._geometry(
            policy, decided.split, shared=decided.placement.resident_pages != 0
        )
        if final != geometry and final.block_tokens == geometry.block_tokens:
            again = self._rounded(policy, schedule, final, optimum)
            decided = again if again.fits or not decided.fits else decided
        return decided

    def prefill_rows(self) -> int:
        """Return how many rows' prompts go through the model at once."""
        if self.options.prefill_rows is not None:
            return min(self.options.prefill_rows, self.workload.rows)
        row_bytes = self.workload.prompt_len * hidden_bytes_per_token(self.shape)
        most = int(PREFILL_SHARE * self.gpu_budget_bytes / row_bytes)
        return max(1, min(self.workload.rows, most))

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
            serial=policy is Policy.KVPR and schedule is Schedule.ROW,
            communication_s=self.options.communication_s,
        )

    def _paths(self, policy: Policy) -> tuple[str, ...]:
        return tuple(path for path in POLICY_PATHS[policy] if path in self.options.paths)

    def _nominal(self, policy: Policy) -> Split:
        """Return the split whose staging is the largest that the policy may need."""
        paths = self._paths(policy)
        if "recompute" in paths:
            return Split(recompute=1.0)
        if "stream" in paths:
            return Split(stream=1.0)
        return Split(host=1.0) if "host" in paths else Split(resident=1.0)

    def _geometry(self, policy: Policy, split: Split, shared: bool) -> Geometry:
        """Return how the cache is cut, within what the device has left for staging.

        Args:
            policy: whose staging.
            split: of the tokens in pages.
            shared: whether tokens are to be kept on the device too: staging then takes but a part.
        """
        least_weights = 1.0 if self.options.stream_weights else 0.0
        fixed = fixed_gpu_items(self.shape, self.workload, 0.0, self.prefill_rows())
        left = self.gpu_budget_bytes - sum(fixed.values())
        if left <= 0 and least_weights:
            fixed = fixed_gpu_items(self.shape, self.workload, 1.0, self.prefill_rows())
            left = self.gpu_budget_bytes - sum(fixed.values())
        if shared and left > 0:
            left *= STAGING_SHARE
        return choose_geometry(
            self.shape,
            self.workload.rows,
            self.workload.mean_context,
            split,
            left if left > 0 else None,
            policy=policy,
        )

    def _optimum(self, policy: Policy, schedule: Schedule, geometry: Geometry) -> Optimum:
        """Solve the linear program; where nothing fits, without the budgets."""
        work = self.step_work(policy, schedule, geometry)
        limits = self._limits(policy, geometry)
        choice = self._choice(policy, geometry)
        found = optimise(work, self.profile, limits, choice)
        if found is None:
            # Nothing on the device that can be elsewhere: the least that must be had.
            paths = tuple(path for path in choice.paths if path != "resident") or choice.paths
            boundless = replace(limits, gpu_left=math.inf, host_left=math.inf)
            least = replace(choice, paths=paths)
            found = optimise(work, self.profile, boundless, least)
        assert found is not None
        return found

    def _choice(self, policy: Policy, geometry: Geometry) -> Choice:
        admitted, paged = self._pages(geometry)
        most = min(1.0, admitted / paged) if paged else 1.0
        fixed = {}
        if self.options.recompute_fraction is not None and "recompute" in self._paths(policy):
            fixed["recompute"] = self.options.recompute_fraction * most
        return Choice(self._paths(policy), self.options.stream_weights, most, fixed, tied=True)

    def _limits(self, policy: Policy, geometry: Geometry) -> MemoryLimits:
        """Return what the program may place where."""
        nothing = Placement(resident_pages=0)
        items = gpu_items(
            self.shape, self.workload, nothing, geometry, 0.0, self.prefill_rows()
        )
        if "recompute" in self._paths(policy):
            items["rebuild_workspace"] = geometry.workspace_bytes(self.shape)
        if policy is Policy.RESIDENT:
            items = fixed_gpu_items(self.shape, self.workload, 0.0, self.prefill_rows())
            # The program counts the tokens at mean context; those at the end must fit.
            context = geometry.paged_tokens(self.workload.mean_context)
            growth = self.workload.rows * (self.workload.max_context - context)
            items["growth"] = growth * cache_bytes_per_token(self.shape)
        block = geometry.block_tokens
        return MemoryLimits(
            self.gpu_budget_bytes - sum(items.values()),
            self.host_budget_bytes,
            -(-self.workload.max_context // block) * block,
        )

    def _pages(self, geometry: Geometry) -> tuple[int, int]:
        """Return the pages of a prompt, and of a row at mean context."""
        block = geometry.block_tokens
        admitted = geometry.paged_tokens(self.workload.prompt_len) // block
        return admitted, geometry.paged_tokens(self.workload.mean_context) // block

    def _rounded(
        self, policy: Policy, schedule: Schedule, geometry: Geometry, optimum: Optimum
    ) -> Decision:
        """Return the program's solution in whole pages, within the budgets."""
        admitted, pages = self._pages(geometry)
        split = optimum.splits[0] if optimum.splits else Split(resident=1.0)
        everything = policy is Policy.RESIDENT
        rows = self.workload.rows
        placement = Placement.of(split, rows, admitted, pages, keep_all=everything)
        if self.options.recompute_fraction is not None and "recompute" in self._paths(policy):
            placement = replace(placement, recompute=self.options.recompute_fraction)
        decision = self._decision(policy, schedule, placement, geometry, optimum)
        over = sum(decision.gpu_items.values()) - self.gpu_budget_bytes
        if over > 0 and placement.resident_pages:
            page_bytes = geometry.block_tokens * cache_bytes_per_token(self.shape)
            fewer = max(0, placement.resident_pages - math.ceil(over / page_bytes))
            placement = replace(placement, resident_pages=fewer)
            decision = self._decision(policy, schedule, placement, geometry, optimum)
        return decision

    def _decision(
        self,
        policy: Policy,
        schedule: Schedule,
        placement: Placement,
        geometry: Geometry,
        optimum: Optimum,
    ) -> Decision:
        shape, workload = self.shape, self.workload
        streamed, prefill_rows = optimum.weights_streamed, self.prefill_rows()
        on_gpu = gpu_items(shape, workload, placement, geometry, streamed, prefill_rows)
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
            prefill_rows=prefill_rows,
            optimum=optimum,
            gpu_items=on_gpu,
            host_items=on_host,
            lacking_bytes=lacking,
        )


def _least(allowed: float | None, available: float) -> float:
    return available if allowed is None else min(allowed, available)
