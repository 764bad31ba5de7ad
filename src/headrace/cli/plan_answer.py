"""What ``headrace plan`` finds out: the plan, the other policies, and what else would fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import layer_weight_bytes
from headrace.model.shape import ModelShape
from headrace.plan.forecast import Forecast, forecast
from headrace.plan.limits import Limits, find_limits
from headrace.plan.options import PlanOptions
from headrace.plan.outcome import Plan
from headrace.plan.parallel import Cluster, ClusterPlan, plan_cluster
from headrace.plan.plan import Planner
from headrace.plan.policies import Policy
from headrace.plan.whatif import Improvement, improvements
from headrace.plan.workload import Workload
from headrace.units import format_bytes

_REBUILDING = (Policy.KVPR, Policy.RECOMPUTE)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        shape: the model.
        workload: the batch, over all GPUs.
        profile: the machine.
        options: how to plan.
        cluster: the GPUs.
    """

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    options: PlanOptions
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class Answer:
    """What is found.

    Attributes:
        question: what was asked.
        found: the chosen plan, of one GPU, and what made it.
        compared: the plans of all policies for the same rows.
        forecast: the whole generation; None for a plan that does not fit.
        improvements: what would make the step faster, the best first.
        limits: for a plan that does not fit, what would; else None.
    """

    question: Question
    found: ClusterPlan
    compared: Mapping[Policy, Plan]
    forecast: Forecast | None
    improvements: tuple[Improvement, ...]
    limits: Limits | None

    @property
    def plan(self) -> Plan:
        """The chosen plan, of one GPU."""
        return self.found.plan

    @cached_property
    def planner(self) -> Planner:
        """What plans for just the chosen plan's rows."""
        return replace(self.found.planner, workload=self.plan.workload)

    @property
    def gpu_budget_bytes(self) -> int:
        """Device memory that may be used, of each GPU."""
        return int(self.planner.decider.gpu_budget_bytes)

    @property
    def host_budget_bytes(self) -> int:
        """Host memory that may be used, by each GPU."""
        return int(self.planner.decider.host_budget_bytes)

    def _generation(self) -> dict[str, Any] | None:
        """Return the forecast's JSON, with the speed of all GPUs."""
        if self.forecast is None:
            return None
        total = self.found.total(self.forecast.tokens_per_s)
        return {**self.forecast.to_json(), "tokens_per_s": total}

    def link_bytes(self, plan: Plan) -> int:
        """Return the bytes that a step of a plan brings to a device."""
        return round(plan.work_s["link"] * self.planner.profile.h2d_bytes_per_s)

    def to_json(self) -> dict[str, Any]:
        """Return the plan's JSON, with what the comparison adds."""
        return {
            **self.plan.to_json(),
            "tokens_per_s": self.found.tokens_per_s,
            "objective": self.question.options.objective.value,
            "gpus": self.found.cluster.gpus,
            "parallel": self.found.cluster.parallel.value,
            "gathers_activations": self.found.gathers_activations,
            "communication_s": self.found.communication_s,
            "gpu_budget_bytes": self.gpu_budget_bytes,
            "host_budget_bytes": self.host_budget_bytes,
            "link_bytes": self.link_bytes(self.plan),
            "generation": self._generation(),
            "would_help": [asdict(one) for one in self.improvements],
            "limits": None if self.limits is None else asdict(self.limits),
            "policies": {policy.value: self._row(plan) for policy, plan in self.compared.items()},
        }

    def _row(self, plan: Plan) -> dict[str, Any]:
        return {
            "feasible": plan.feasible,
            "split": asdict(plan.split),
            "step_s": plan.step_s,
            "bound_s": plan.bound_s,
            "tokens_per_s": self.found.total(plan.tokens_per_s),
            "link_bytes": self.link_bytes(plan),
            "gpu_bytes": plan.gpu_bytes,
            "host_bytes": plan.host_bytes,
        }


def answer(question: Question, progress: Callable[[str], object]) -> Answer:
    """Return the plan, and what else there is to say.

    Args:
        question: what is asked.
        progress: is told what is done.

    Raises:
        ConfigurationError: policy and recompute fraction do not go together, the device's memory
            holds not even a layer, or the work cannot be divided over the GPUs.
        ProfileError: the machine has no rate for the model's element type.
    """
    progress("planning")
    found = plan_cluster(
        question.shape, question.workload, question.profile, question.options, question.cluster
    )
    planner = replace(found.planner, workload=found.plan.workload)
    compared = _compared(planner, found.plan)
    generation = limits = None
    helped = improvements(planner, found.plan)
    if found.plan.feasible:
        progress("simulating the generation")
        generation = forecast(found.plan, found.planner.shape, found.planner.profile)
    else:
        progress("looking for what would fit")
        limits = _limits(found.planner)
        _refuse_less_than_a_layer(found.planner, limits)
    return Answer(question, found, compared, generation, helped, limits)


def _compared(planner: Planner, chosen: Plan) -> dict[Policy, Plan]:
    """Return the plan of every policy that may be taken; ``auto`` last."""
    if planner.options.recompute_fraction is not None:
        planned = replace(planner.options, recompute_fraction=None)
        free = replace(planner, options=planned)
    else:
        free = planner
    plans = {
        policy: (planner if policy in _REBUILDING else free).of(policy)
        for policy in planner.available()
    }
    asked_for_auto = planner.options.policy is Policy.AUTO
    plans[Policy.AUTO] = chosen if asked_for_auto else free.of(Policy.AUTO)
    return plans


def _limits(planner: Planner) -> Limits:
    """Return what would fit, under the policy that was asked for."""
    policy = planner.options.policy
    policies = (*planner.available(), policy) if policy is Policy.AUTO else (policy,)
    return find_limits(planner.decider, policies, planner.shape.max_context)


def _refuse_less_than_a_layer(planner: Planner, limits: Limits) -> None:
    budget = planner.decider.gpu_budget_bytes
    layer = max(layer_weight_bytes(layer) for layer in planner.shape.layers)
    if budget >= layer:
        return
    needed = limits.least_gpu_bytes
    mend = "" if needed is None else f"; this workload needs {format_bytes(needed)}"
    raise ConfigurationError(
        f"--gpu-memory is {format_bytes(budget)}, and one layer of {planner.shape.name} has "
        f"{format_bytes(layer)}{mend}"
    )
