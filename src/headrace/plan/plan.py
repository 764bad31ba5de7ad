"""Planning: choose the split and the geometry for a workload on a machine, and predict the step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import kv_bytes_per_token
from headrace.model.shape import ModelShape
from headrace.plan.decide_rows import best_rows
from headrace.plan.decision import Decider, Decision
from headrace.plan.decode import DecodeWork, step_program
from headrace.plan.demands import PATHS, Schedule
from headrace.plan.embedding import with_embedding_placed
from headrace.plan.explain import NEAR_BOUND, explain, shortfalls
from headrace.plan.linear import load_solver
from headrace.plan.operations import Program
from headrace.plan.options import Objective, PlanOptions
from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy, Split
from headrace.plan.program import Optimum
from headrace.plan.resources import Resource
from headrace.plan.schedule import StepOrder
from headrace.plan.simulate import bound_s, predicted_step_s, work_s
from headrace.plan.workload import Workload
from headrace.timeline import Origin

__all__ = ["Plan", "Planner", "make_plan", "plan_program"]

_SINGLE = (Policy.RESIDENT, Policy.STREAM, Policy.RECOMPUTE, Policy.KVPR, Policy.HOST)
_SIMULATED_STEPS = 4
_MANY_OPERATIONS = 5_000
"""Of so large a program two steps are simulated: the second is as good as steady."""

_ABOUT_AS_BUSY = 0.9
"""Share of the link's time from which on others are taken to be as busy."""

_MOST_GRANULES = 60_000
"""A step of more is not simulated: it has terabytes."""

_RATES = {
    Origin.PREDICTED: "data-sheet",
    Origin.MEASURED: "measured",
    Origin.EMULATED: "emulated",
}

_HARDLY_FASTER = 0.995
"""A mixture is chosen over a pure path only where it is faster by more than this."""


def make_plan(
    shape: ModelShape,
    workload: Workload,
    profile: HardwareProfile,
    *,
    policy: Policy | str = Policy.AUTO,
    objective: Objective | str = Objective.LATENCY,
    gpu_memory_bytes: float | None = None,
    host_memory_bytes: float | None = None,
    recompute_fraction: float | None = None,
    paths: Sequence[str] = PATHS,
    stream_weights: bool = True,
    weights_streamed: float | None = None,
    schedule: Schedule | str | None = None,
    prefill_tokens: int | None = None,
    embedding_on_host: bool | None = None,
) -> Plan:
    """Plan a workload on a machine.

    A plan that does not fit is returned all the same, with ``feasible`` false and the reasons;
    ``auto`` takes the fastest that fits, or, if none fits, the one that lacks least memory.

    Args:
        shape: the model.
        workload: the batch; with the objective ``throughput`` its rows are the most there may be.
        profile: the machine.
        policy: how to choose the split.
        objective: ``latency`` or ``throughput``.
        gpu_memory_bytes: device memory to use, at most the machine's; None: all of it.
        host_memory_bytes: host memory to use, at most the machine's; None: all of it.
        recompute_fraction: share of each prompt's tokens to keep as X, from 0 to 1, instead of the
            planned one; for ``recompute`` (which ``auto`` then means) and ``kvpr``.
        paths: paths that may be taken.
        stream_weights: whether weights may be streamed.
        weights_streamed: share of the layers' weights that is streamed, where that is settled.
        schedule: ``row`` or ``column``; None: the faster, where the workload has batches.
        prefill_tokens: tokens of prompts that go through the model at once; None: chosen.
        embedding_on_host: whether the input embedding stays on the host; None: as the shape says,
            or chosen.

    Raises:
        ConfigurationError: a setting is not allowed, or two do not go together.
        ProfileError: the machine has no GEMM rate for the model's dtype.
    """
    options = PlanOptions.checked(
        policy=policy,
        objective=objective,
        gpu_memory_bytes=gpu_memory_bytes,
        host_memory_bytes=host_memory_bytes,
        recompute_fraction=recompute_fraction,
        paths=paths,
        stream_weights=stream_weights,
        weights_streamed=weights_streamed,
        schedule=schedule,
        prefill_tokens=prefill_tokens,
        embedding_on_host=embedding_on_host,
    )
    return Planner(shape, workload, profile, options).plan()


@dataclass(frozen=True)
class Planner:
    """Plans of one workload on one machine, under any policy.

    Attributes:
        shape: the model.
        workload: the batch.
        profile: the machine.
        options: how to plan; paths that the machine lacks are left out of them.

    Raises:
        ConfigurationError: the policy needs a path that the machine lacks.
    """

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    options: PlanOptions = field(default_factory=PlanOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", self.options.on(self.profile))

    @cached_property
    def decider(self) -> Decider:
        """What decides for this workload, with the embedding where it is to be."""
        given = Decider(self.shape, self.workload, self.profile, self.options)
        budgets = given.gpu_budget_bytes, given.host_budget_bytes
        shape = with_embedding_placed(self.shape, self.workload, self.options, *budgets)
        return replace(given, shape=shape)

    def plan(self) -> Plan:
        """Return the plan for the policy and the objective that are asked for."""
        if self.options.objective is Objective.THROUGHPUT:
            rows = best_rows(self.decider, self.options.policy)
            if rows != self.workload.rows:
                batches = min(rows, self.workload.batches)
                fewer = replace(self.workload, rows=rows, batches=batches)
                return replace(self, workload=fewer).of(self.options.policy)
        return self.of(self.options.policy)

    def of(self, policy: Policy) -> Plan:
        """Return the plan under one policy, for just the workload's rows."""
        if policy is not Policy.AUTO:
            return self._judged(self._fastest(self._candidates(policy)))
        plans = list(self._candidates(Policy.AUTO))
        for single in self.available():
            plans += self._candidates(single, self._fastest(plans))
        return self._judged(self._fastest(plans))

    def available(self) -> tuple[Policy, ...]:
        """Return the policies other than ``auto`` whose paths may be taken."""
        found = []
        for policy in _SINGLE:
            try:
                PlanOptions.checked(policy=policy, paths=self.options.paths)
            except ConfigurationError:
                continue
            found.append(policy)
        return tuple(found)

    def lack(self, plan: Plan) -> float:
        """Return the bytes that a plan needs beyond the budgets."""
        return max(0.0, plan.gpu_bytes - self.decider.gpu_budget_bytes) + max(
            0.0, plan.host_bytes - self.decider.host_budget_bytes
        )

    def _fastest(self, plans: Iterator[Plan] | Sequence[Plan]) -> Plan:
        """Return the fastest plan that fits, or the one that lacks least; the first of equals."""
        plans = list(plans)
        fitting = [plan for plan in plans if self.lack(plan) <= 0]
        if not fitting:
            return min(plans, key=self.lack)
        best = min(fitting, key=lambda plan: plan.step_s)
        pure = [plan for plan in fitting if plan.policy is not Policy.AUTO]
        simplest = min(pure, key=lambda plan: plan.step_s, default=best)
        return simplest if simplest.step_s * _HARDLY_FASTER <= best.step_s else best

    def _candidates(self, policy: Policy, rival: Plan | None = None) -> Iterator[Plan]:
        """Yield a policy's plan in each order of operations that may be taken.

        Where a rival fits whose step is shorter than the policy's could be by any simulation, the
        policy is left out.
        """
        orders = [self.options.schedule or Schedule.ROW]
        if self.workload.batches > 1 and self.options.schedule is None:
            orders = [Schedule.ROW, Schedule.COLUMN]
        load_solver()
        for order in orders:
            start_s = time.perf_counter()
            decision = self.decider.decide(policy, order)
            least_s = decision.least_s * _HARDLY_FASTER
            hopeless = not decision.fits or (rival and least_s > rival.step_s)
            if rival is not None and self.lack(rival) <= 0 and hopeless:
                continue
            yield self._predicted(decision, time.perf_counter() - start_s)

    def _judged(self, plan: Plan) -> Plan:
        """Return a plan with its comparison with ``stream``, its feasibility and its reasons."""
        plan = replace(
            plan,
            stream_step_s=self._stream_step_s(plan),
            step_without_latency_s=self._step_without_latency_s(plan),
        )
        decider = self.decider
        lacking = shortfalls(self.shape, plan, decider.gpu_budget_bytes, decider.host_budget_bytes)
        reasons = (*lacking, *explain(self.shape, plan, self.profile))
        return replace(plan, feasible=not lacking, reasons=reasons)

    def _step_without_latency_s(self, plan: Plan) -> float:
        """Return the step's seconds without latencies, where there is a distance to explain."""
        far = plan.step_s > NEAR_BOUND * plan.bound_s
        if not far or _granules(plan, self.shape, plan.workload) > _MOST_GRANULES:
            return plan.step_s
        profile = self.profile.without_latencies()
        return predicted_step_s(plan_program(plan, self.shape), profile, self.shape.dtype, 2)

    @cached_property
    def _stream_steps_s(self) -> dict[Schedule, float]:
        return {}

    def _stream_step_s(self, plan: Plan) -> float:
        """Return the step time of ``stream``, in the plan's own order of operations."""
        if plan.policy is Policy.STREAM:
            self._stream_steps_s[plan.schedule] = plan.step_s
        if plan.schedule in self._stream_steps_s:
            return self._stream_steps_s[plan.schedule]
        paths = tuple(dict.fromkeys((*self.options.paths, "stream")))
        options = replace(self.options, paths=paths, recompute_fraction=None)
        decider = replace(self.decider, options=options)
        stream = self._predicted(decider.decide(Policy.STREAM, plan.schedule), 0.0)
        self._stream_steps_s[plan.schedule] = stream.step_s
        return stream.step_s

    def _predicted(self, decision: Decision, solve_s: float) -> Plan:
        """Return a plan with its figures, without judgement and comparison."""
        shape, workload = self.shape, self.workload
        policy = _named_policy(decision)
        figures = self._estimated(decision)
        if _granules(decision, shape, workload) <= _MOST_GRANULES:
            figures = self._simulated(decision, policy)
        admitted = decision.geometry.paged_tokens(workload.prompt_len)
        admitted //= decision.geometry.block_tokens
        return Plan(
            model=shape.name,
            dtype=shape.dtype,
            hardware=self.profile.name,
            origin=f"predicted, from {_RATES[self.profile.origin]} rates of {self.profile.name}",
            workload=workload,
            policy=policy,
            schedule=decision.schedule,
            split=decision.split,
            admission=decision.placement.split(workload.rows, admitted, admitted),
            placement=decision.placement,
            geometry=decision.geometry,
            weights_streamed=decision.weights_streamed,
            communication_s=self.options.communication_s,
            prefill_tokens=decision.prefill_tokens,
            embedding_on_host=self.decider.shape.embedding_on_host,
            granule_pages=decision.geometry.pages_per_granule(kv_bytes_per_token(shape)),
            gpu_items=decision.gpu_items,
            host_items=decision.host_items,
            step_s=figures.step_s,
            step_without_latency_s=figures.step_s,
            bound_s=figures.bound_s,
            stream_step_s=0.0,
            work_s=figures.work_s,
            optimum=decision.optimum,
            launch_s=decision.launch_s,
            solve_s=solve_s,
            feasible=True,
            reasons=(),
        )

    def _estimated(self, decision: Decision) -> _Figures:
        """Return figures of a step that is too large to be simulated, and so fits no machine."""
        optimum = decision.optimum
        work = {resource.value: seconds for resource, seconds in optimum.seconds.items()}
        step_s = max(optimum.step_s, self.decider.estimated_step_s(decision))
        return _Figures(step_s, optimum.step_s, work)

    def _simulated(self, decision: Decision, policy: Policy) -> _Figures:
        """Return figures of the step's program."""
        shape, workload = self.shape, self.workload
        program = step_program(
            DecodeWork(
                shape,
                workload.batch_rows,
                workload.mean_context,
                decision.split,
                decision.geometry,
            ),
            StepOrder(
                policy,
                decision.geometry.ring_slots,
                decision.schedule,
                decision.weights_streamed,
                self.options.communication_s / shape.num_layers,
                _weights_ahead(decision.optimum),
            ),
        )
        steps = _SIMULATED_STEPS if len(program.operations) < _MANY_OPERATIONS else 2
        return _Figures(
            predicted_step_s(program, self.profile, shape.dtype, steps),
            bound_s(program, self.profile, shape.dtype),
            work_s(program, self.profile, shape.dtype),
        )


@dataclass(frozen=True)
class _Figures:
    """What a step takes: by simulation or estimate, at least, and by resource."""

    step_s: float
    bound_s: float
    work_s: Mapping[str, float]


def _granules(decided: Decision | Plan, shape: ModelShape, workload: Workload) -> float:
    """Return about how many granules a step has, in all layers."""
    tokens = workload.rows * workload.mean_context * shape.full_layers
    pages = tokens / decided.geometry.block_tokens
    return pages / decided.geometry.pages_per_granule(kv_bytes_per_token(shape))


def plan_program(plan: Plan, shape: ModelShape, context: int | None = None) -> Program:
    """Return the program of a plan's decode step at a context (by default the mean one)."""
    workload, geometry = plan.workload, plan.geometry
    context = workload.mean_context if context is None else context
    block = geometry.block_tokens
    admitted = geometry.paged_tokens(workload.prompt_len) // block
    split = plan.placement.split(workload.rows, admitted, geometry.paged_tokens(context) // block)
    return step_program(
        DecodeWork(shape, workload.batch_rows, context, split, geometry),
        StepOrder(
            plan.policy,
            geometry.ring_slots,
            plan.schedule,
            plan.weights_streamed,
            plan.communication_s / shape.num_layers,
            _weights_ahead(plan.optimum),
        ),
    )


def _weights_ahead(optimum: Optimum) -> bool:
    """Return whether layers wait for the device or the host's cores as much as for the link."""
    busy_s = max(optimum.seconds[Resource.GPU], optimum.seconds.get(Resource.HOST, 0.0))
    return busy_s >= _ABOUT_AS_BUSY * optimum.seconds[Resource.LINK]


def _named_policy(decision: Decision) -> Policy:
    """Return the policy's name; a solution of ``auto`` that is a pure one gets that one's."""
    if decision.policy is not Policy.AUTO:
        return decision.policy
    used = _used(decision.split)
    if decision.placement.resident_pages:
        return Policy.AUTO
    names: dict[frozenset[str], Policy] = {
        frozenset(("stream",)): Policy.STREAM,
        frozenset(("recompute",)): Policy.RECOMPUTE,
        frozenset(("stream", "recompute")): Policy.RECOMPUTE,
        frozenset(("host",)): Policy.HOST,
    }
    return names.get(used, Policy.AUTO)


def _used(split: Split) -> frozenset[str]:
    return frozenset(path for path in PATHS if getattr(split, path) > 0)
