"""KVPR's experiments (``paper.py``), simulated: full transfer, the paper's schedule, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from headrace.hardware.catalog import machine
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import activation_bytes_per_token, all_layers_weight_bytes
from headrace.model.published import published_shape
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider, Decision
from headrace.plan.decode import DecodeWork, step_program
from headrace.plan.demands import Schedule
from headrace.plan.forecast import decode_stretches, decode_time
from headrace.plan.geometry import SMALLEST_BLOCK_TOKENS, Geometry, choose_geometry
from headrace.plan.memory import cache_bytes_per_token, fixed_gpu_items
from headrace.plan.operations import Kind, Program
from headrace.plan.options import PlanOptions
from headrace.plan.outcome import Plan
from headrace.plan.paper import Case, Method, Study
from headrace.plan.plan import Planner, plan_program
from headrace.plan.policies import Policy, Split, recompute_split
from headrace.plan.schedule import StepOrder
from headrace.plan.simulate import predicted_step_s
from headrace.plan.workload import Workload

_STAGING_BYTES = 2**30
"""Device memory for staging and workspace where weights and cache are on the host."""

_MANY_OPERATIONS = 5_000
_STORES = (Kind.STORE_KV, Kind.STORE_ACTIVATIONS)

_POLICIES = {
    Method.SYNCHRONOUS: (Policy.STREAM, ("stream",)),
    Method.STREAM: (Policy.STREAM, ("stream",)),
    Method.PAPER: (Policy.KVPR, ("stream", "recompute")),
    Method.RECOMPUTE: (Policy.RECOMPUTE, ("stream", "recompute")),
    Method.AUTO: (Policy.AUTO, ("stream", "recompute")),
    Method.AUTO_HOST: (Policy.AUTO, ("stream", "recompute", "host")),
    Method.AUTO_FREE: (Policy.AUTO, ("resident", "stream", "recompute", "host")),
}


@dataclass(frozen=True)
class Simulated:
    """What a method is simulated to take in a setting.

    Attributes:
        method: the method.
        decode_s: seconds of all decode steps.
        tokens_per_s: tokens a second while decoding, over all rows.
        policy: what the planner chose.
        schedule: row-by-row or column-by-column.
        split: of the cached tokens in the middle of the decoding.
        weights_streamed: share of the layers' weights that each step brings in.
        feasible: whether it fits the machine's memory.
    """

    method: Method
    decode_s: float
    tokens_per_s: float
    policy: Policy
    schedule: Schedule
    split: Split
    weights_streamed: float
    feasible: bool


@dataclass(frozen=True)
class Row:
    """A setting, simulated under each method.

    Attributes:
        case: the setting.
        methods: the results, by method.
    """

    case: Case
    methods: dict[Method, Simulated]

    def saving(self, method: Method) -> float:
        """Return by which share decoding takes less time than by overlapped full transfer."""
        return 1 - self.methods[method].decode_s / self.methods[Method.STREAM].decode_s

    def gain(self, method: Method) -> float:
        """Return by which share more tokens a second are decoded than by that."""
        return self.methods[method].tokens_per_s / self.methods[Method.STREAM].tokens_per_s - 1


def methods(study: Study) -> tuple[Method, ...]:
    """Return the methods that a study compares.

    On a machine that is only a link and a GPU there are no cores that could attend, and no memory
    rate that would tell what the planner should keep on the device.
    """
    found = [Method.STREAM, Method.PAPER, Method.AUTO]
    if study.keeps_weights:
        found = [Method.SYNCHRONOUS, Method.STREAM, Method.PAPER, Method.RECOMPUTE, Method.AUTO]
    if not math.isinf(machine(study.machine).host_attend_rate):
        found += [Method.AUTO_HOST, Method.AUTO_FREE]
    return tuple(found)


def simulate_study(
    study: Study, progress: Callable[[str], None] = lambda text: None
) -> Iterator[Row]:
    """Yield a study's rows.

    Args:
        study: the study.
        progress: is told which setting is simulated now.
    """
    for case in study.cases:
        progress(f"{study.key}: {case.model}, prompts of {case.workload.prompt_len} tokens")
        simulation = _Simulation(study, case)
        yield Row(case, {method: simulation.of(method) for method in methods(study)})


def one_at_a_time(program: Program) -> Program:
    """Return a program in which each load and kernel waits for the one before; stores do not."""
    operations = []
    before: tuple[int, ...] = ()
    for op in program.operations:
        if op.kind in _STORES:
            operations.append(op)
            continue
        operations.append(replace(op, waits_for=(*op.waits_for, *before)))
        before = (op.index,)
    slots = max(program.ring_slots, len(program.loads))
    return replace(program, operations=tuple(operations), ring_slots=slots, lookahead=False)


@dataclass(frozen=True)
class _Simulation:
    """One setting of a study."""

    study: Study
    case: Case

    @cached_property
    def shape(self) -> ModelShape:
        return published_shape(self.case.model)

    @cached_property
    def profile(self) -> HardwareProfile:
        return machine(self.study.machine)

    def of(self, method: Method) -> Simulated:
        """Simulate the setting under a method."""
        if method is Method.PAPER:
            fits = self._paper_host_bytes() <= self.profile.host_memory_bytes
            decision = self._decided(method, self.case.workload)
            return self._simulated(method, decision, fits, self._paper_step_s)
        if _POLICIES[method][0] is Policy.AUTO:
            return self._planned(method)
        decision = self._decided(method, self.case.workload)

        def step_s(context: int) -> float:
            program = self._program(decision, context)
            return self._step_s(one_at_a_time(program) if method is Method.SYNCHRONOUS else program)

        return self._simulated(method, decision, decision.fits, step_s)

    def _planned(self, method: Method) -> Simulated:
        """Simulate what the planner chooses."""
        workload = self.case.workload
        options = self._options(method, workload.prompt_len)
        plan = Planner(self.shape, workload, self.profile, options).plan()
        if method is not Method.AUTO_FREE:
            plan = replace(plan, weights_streamed=self._weights_streamed)

        def step_s(context: int) -> float:
            return self._step_s(plan_program(plan, self.shape, context))

        return self._simulated(method, plan, plan.feasible, step_s)

    def _simulated(
        self,
        method: Method,
        chosen: Plan | Decision,
        fits: bool,
        step_s: Callable[[int], float],
    ) -> Simulated:
        """Return the whole decoding, of a method whose step at a context can be simulated."""
        workload = self.case.workload
        stretches = decode_stretches(
            workload.prompt_len, workload.decode_steps, chosen.geometry.block_tokens
        )
        decode_s = decode_time(stretches, step_s).total_s
        return Simulated(
            method=method,
            decode_s=decode_s,
            tokens_per_s=workload.rows * workload.decode_steps / decode_s,
            policy=chosen.policy,
            schedule=chosen.schedule,
            split=chosen.split,
            weights_streamed=chosen.weights_streamed
            if method is Method.AUTO_FREE
            else self._weights_streamed,
            feasible=fits,
        )

    def _paper_host_bytes(self) -> float:
        """Return what the paper's schedule keeps on the host: all K/V, and X of the prompts."""
        shape, workload = self.shape, self.case.workload
        kv = workload.max_context * cache_bytes_per_token(shape)
        x = workload.prompt_len * shape.num_layers * activation_bytes_per_token(shape)
        weights = self._weights_streamed * all_layers_weight_bytes(shape)
        return workload.rows * (kv + x) + weights

    def _paper_step_s(self, context: int) -> float:
        """Return a step of the paper's schedule, with the best split at this context.

        X is kept besides K/V, so that each step may split anew. Only prompts have X, so at most
        their share of the context is rebuilt.
        """
        workload = replace(self.case.workload, prompt_len=context, generate_len=1)
        decision = self._decided(Method.PAPER, workload)
        share = min(decision.split.recompute, self.case.workload.prompt_len / context)
        geometry = self._paper_geometry(context)
        work = DecodeWork(
            self.shape, workload.batch_rows, context, recompute_split(share), geometry
        )
        program = step_program(work, self._order(Policy.KVPR, geometry.ring_slots))
        return self._step_s(program)

    def _paper_geometry(self, context: int) -> Geometry:
        """Return how the paper's schedule cuts the cache: its ring holds the X of a whole batch."""
        everything = recompute_split(1.0)
        return choose_geometry(
            self.shape, self._batch_rows, context, everything, policy=Policy.KVPR
        )

    def _program(self, decision: Decision, context: int) -> Program:
        """Return a step at a context, of a split that was fixed when the rows were admitted."""
        workload, geometry = self.case.workload, decision.geometry
        pages, admitted = (
            geometry.paged_tokens(tokens) // geometry.block_tokens
            for tokens in (context, workload.prompt_len)
        )
        split = decision.placement.split(workload.rows, admitted, pages)
        return step_program(
            DecodeWork(self.shape, workload.batch_rows, context, split, geometry),
            self._order(decision.policy, geometry.ring_slots),
        )

    def _order(self, policy: Policy, ring_slots: int) -> StepOrder:
        return StepOrder(policy, ring_slots, self._schedule, self._weights_streamed)

    def _step_s(self, program: Program) -> float:
        """Simulate a step. Of a large program the second step is as good as steady."""
        steps = 3 if len(program.operations) < _MANY_OPERATIONS else 2
        return predicted_step_s(program, self.profile, self.shape.dtype, steps)

    def _decided(self, method: Method, workload: Workload) -> Decision:
        """Return what the linear program decides under the method's policy."""
        options = self._options(method, workload.prompt_len)
        decider = Decider(self.shape, workload, self.profile, options)
        return decider.decide(_POLICIES[method][0], self._schedule)

    def _options(self, method: Method, prompt_len: int) -> PlanOptions:
        policy, paths = _POLICIES[method]
        if method is Method.AUTO_FREE:
            return PlanOptions.checked(paths=paths)
        if self.study.keeps_weights:
            return PlanOptions.checked(policy=policy, paths=paths, stream_weights=False)
        return PlanOptions.checked(
            policy=policy,
            paths=paths,
            schedule=self._schedule,
            gpu_memory_bytes=self._staging_budget_bytes,
            prefill_tokens=self._batch_rows * prompt_len,
        )

    @property
    def _schedule(self) -> Schedule:
        return Schedule.ROW if self.study.keeps_weights else Schedule.COLUMN

    @property
    def _weights_streamed(self) -> float:
        return 0.0 if self.study.keeps_weights else 1.0

    @property
    def _batch_rows(self) -> int:
        return max(self.case.workload.batch_rows)

    @property
    def _staging_budget_bytes(self) -> int:
        """Return the device memory that is needed with weights and cache on the host.

        With little more than that, the planner divides the cache knowing that weights travel too.
        """
        workload = self.case.workload
        prompts = self._batch_rows * workload.prompt_len
        items = fixed_gpu_items(self.shape, workload, 1.0, prompts)
        newest = Geometry(SMALLEST_BLOCK_TOKENS, 1)
        return sum(items.values()) + newest.tail_bytes(self.shape, workload.rows) + _STAGING_BYTES
