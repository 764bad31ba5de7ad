"""Planning: choose the split and the geometry for a workload on a machine, and predict the step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import kv_bytes_per_token
from headrace.model.shape import ModelShape
from headrace.plan.decode import decode_program, layer_times
from headrace.plan.explain import explain, shortfalls
from headrace.plan.geometry import Geometry, choose_geometry
from headrace.plan.memory import fixed_gpu_items, gpu_items, host_items
from headrace.plan.outcome import Plan
from headrace.plan.policies import (
    Policy,
    Split,
    best_fraction,
    recompute_split,
    resident_split,
    stream_split,
)
from headrace.plan.simulate import bound_s, simulate, steady_step_s, work_s
from headrace.plan.workload import Workload

__all__ = ["Plan", "make_plan"]

_AUTOMATIC = (Policy.RESIDENT, Policy.STREAM, Policy.RECOMPUTE, Policy.KVPR)
_SIMULATED_STEPS = 4
_MANY_OPERATIONS = 20_000
"""Of so large a program two steps are simulated: the second is as good as steady."""


def make_plan(
    shape: ModelShape,
    workload: Workload,
    profile: HardwareProfile,
    *,
    policy: Policy | str = Policy.AUTO,
    gpu_memory_bytes: float | None = None,
    host_memory_bytes: float | None = None,
    recompute_fraction: float | None = None,
) -> Plan:
    """Plan a workload on a machine.

    A plan that does not fit is returned all the same, with ``feasible`` false and the reasons;
    ``auto`` takes the fastest that fits, or, if none fits, the one that lacks least memory.

    Args:
        shape: the model.
        workload: the batch.
        profile: the machine.
        policy: how to choose the split.
        gpu_memory_bytes: device memory to use, at most the machine's; None: all of it.
        host_memory_bytes: host memory to use, at most the machine's; None: all of it.
        recompute_fraction: share of each prompt's tokens to keep as X, from 0 to 1, instead of the
            planned one; for ``recompute`` (which ``auto`` then means) and ``kvpr``.

    Raises:
        ConfigurationError: the policy is unknown or not available, or the fraction is not allowed.
        ProfileError: the machine has no GEMM rate for the model's dtype.
    """
    chosen = _checked_policy(policy, recompute_fraction)
    planner = _Planner(
        shape,
        workload,
        profile,
        _least(gpu_memory_bytes, profile.device_memory_bytes),
        _least(host_memory_bytes, profile.host_memory_bytes),
        recompute_fraction,
    )
    if chosen is not Policy.AUTO:
        return planner.plan(chosen)
    plans = [planner.plan(candidate) for candidate in _AUTOMATIC]
    fitting = [plan for plan in plans if plan.feasible]
    return min(fitting, key=lambda plan: plan.step_s) if fitting else min(plans, key=planner.lack)


def _checked_policy(policy: Policy | str, recompute_fraction: float | None) -> Policy:
    """Return the policy, ``recompute`` for an ``auto`` with a fraction; refuse what cannot be."""
    names = ", ".join(Policy)
    try:
        chosen = Policy(policy)
    except ValueError:
        raise ConfigurationError(f"policy is {policy!r}; allowed are {names}") from None
    if chosen is Policy.HOST:
        raise ConfigurationError(
            "policy is 'host', which is not available yet; "
            f"allowed are {names.replace('host, ', '')}; change policy"
        )
    if recompute_fraction is None:
        return chosen
    if not 0 <= recompute_fraction <= 1:
        raise ConfigurationError(
            f"recompute_fraction is {recompute_fraction}; allowed are fractions from 0 to 1"
        )
    if chosen is Policy.AUTO:
        return Policy.RECOMPUTE
    if chosen not in (Policy.RECOMPUTE, Policy.KVPR) and recompute_fraction > 0:
        raise ConfigurationError(
            f"recompute_fraction is {recompute_fraction}, but policy {chosen.value!r} rebuilds "
            "nothing; change policy to 'recompute' or 'kvpr', or leave recompute_fraction out"
        )
    return chosen


def _least(allowed: float | None, available: float) -> float:
    return available if allowed is None else min(allowed, available)


@dataclass(frozen=True)
class _Planner:
    """Plans of one workload on one machine, under any policy."""

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    gpu_budget_bytes: float
    host_budget_bytes: float
    recompute_fraction: float | None

    def plan(self, policy: Policy) -> Plan:
        """Return the plan under one policy."""
        plan = self._stream_plan if policy is Policy.STREAM else self._predicted(policy)
        plan = replace(plan, stream_step_s=self._stream_plan.step_s)
        lacking = shortfalls(self.shape, plan, self.gpu_budget_bytes, self.host_budget_bytes)
        return replace(plan, feasible=not lacking, reasons=(*lacking, *explain(self.shape, plan)))

    def lack(self, plan: Plan) -> float:
        """Return the bytes that a plan needs beyond the budgets."""
        return max(0.0, plan.gpu_bytes - self.gpu_budget_bytes) + max(
            0.0, plan.host_bytes - self.host_budget_bytes
        )

    @cached_property
    def _stream_plan(self) -> Plan:
        return self._predicted(Policy.STREAM)

    def _predicted(self, policy: Policy) -> Plan:
        """Return a plan with its figures, without judgement and comparison."""
        shape, workload = self.shape, self.workload
        context = workload.mean_context
        admission, split, geometry = self._division(policy)
        program = decode_program(shape, workload.rows, context, split, geometry, policy)
        steps = _SIMULATED_STEPS if len(program.operations) < _MANY_OPERATIONS else 2
        step_s = steady_step_s(simulate(program, self.profile, shape.dtype, steps))
        return Plan(
            model=shape.name,
            dtype=shape.dtype,
            hardware=self.profile.name,
            origin=f"predicted, from {self.profile.origin.value} rates of {self.profile.name}",
            workload=workload,
            policy=policy,
            schedule="row",
            split=split,
            admission=admission,
            geometry=geometry,
            granule_pages=geometry.pages_per_granule(kv_bytes_per_token(shape)),
            gpu_items=gpu_items(shape, workload, admission, geometry),
            host_items=host_items(shape, workload, admission, geometry),
            step_s=step_s,
            bound_s=bound_s(program, self.profile, shape.dtype),
            stream_step_s=step_s,
            work_s=work_s(program, self.profile, shape.dtype),
            feasible=True,
            reasons=(),
        )

    def _division(self, policy: Policy) -> tuple[Split, Split, Geometry]:
        """Return the split at admission, the split at mean context, and how the cache is cut."""
        admission = resident_split() if policy is Policy.RESIDENT else stream_split()
        geometry = self._geometry(policy, admission, admission)
        if policy not in (Policy.RESIDENT, Policy.STREAM):
            admission = self._rebuilding(policy, geometry)
            geometry = self._geometry(policy, admission, self._grown(admission, geometry))
        return admission, self._grown(admission, geometry), geometry

    def _rebuilding(self, policy: Policy, geometry: Geometry) -> Split:
        """Return the split at admission of a policy that rebuilds.

        The best share to rebuild is that of the mean context. New tokens are K/V, so the prompt's
        share is larger: it makes up for them as far as it can.
        """
        if self.recompute_fraction is not None:
            return recompute_split(self.recompute_fraction)
        context = self.workload.mean_context
        paged, admitted = self._paged(geometry)
        times = layer_times(self.shape, self.workload.rows, paged, self.profile, context - paged)
        fraction = best_fraction(policy, times)
        return recompute_split(min(1.0, fraction * paged / admitted) if admitted else fraction)

    def _grown(self, admission: Split, geometry: Geometry) -> Split:
        paged, admitted = self._paged(geometry)
        return admission.grown(admitted, paged)

    def _paged(self, geometry: Geometry) -> tuple[int, int]:
        """Return a row's tokens in pages at mean context, and of the prompt."""
        return (
            geometry.paged_tokens(self.workload.mean_context),
            geometry.paged_tokens(self.workload.prompt_len),
        )

    def _geometry(self, policy: Policy, admission: Split, split: Split) -> Geometry:
        """Return how the cache is cut, within what the device has left for staging."""
        fixed = sum(fixed_gpu_items(self.shape, self.workload, admission).values())
        left = self.gpu_budget_bytes - fixed
        return choose_geometry(
            self.shape,
            self.workload.rows,
            self.workload.mean_context,
            split,
            left if left > 0 else None,
            policy=policy,
        )
