"""What ``headrace plan`` finds out: the plan, the other policies, and what else would fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.outcome import Plan
from headrace.plan.plan import make_plan
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload

COMPARED = (Policy.RESIDENT, Policy.STREAM, Policy.KVPR, Policy.RECOMPUTE)
_REBUILDING = (Policy.KVPR, Policy.RECOMPUTE)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        shape: the model.
        workload: the batch.
        profile: the machine.
        policy: a policy's name.
        objective: ``latency`` or ``throughput``.
        gpu_memory_bytes: device memory to use; None: all of it.
        host_memory_bytes: host memory to use; None: all of it.
        recompute_fraction: share of each prompt to keep as X; None: the planned one.
    """

    shape: ModelShape
    workload: Workload
    profile: HardwareProfile
    policy: Policy
    objective: str
    gpu_memory_bytes: int | None
    host_memory_bytes: int | None
    recompute_fraction: float | None

    @property
    def gpu_budget_bytes(self) -> int:
        """Device memory that may be used: at most the machine's."""
        available = self.profile.device_memory_bytes
        return min(self.gpu_memory_bytes or available, available)

    @property
    def host_budget_bytes(self) -> int:
        """Host memory that may be used: at most the machine's."""
        available = self.profile.host_memory_bytes
        return min(self.host_memory_bytes or available, available)

    def plan(self, policy: Policy, rows: int | None = None) -> Plan:
        """Return the plan under a policy, for the workload's rows or others."""
        rebuilds = policy in (*_REBUILDING, self.policy)
        return make_plan(
            self.shape,
            self.workload if rows is None else replace(self.workload, rows=rows),
            self.profile,
            policy=policy,
            gpu_memory_bytes=self.gpu_memory_bytes,
            host_memory_bytes=self.host_memory_bytes,
            recompute_fraction=self.recompute_fraction if rebuilds else None,
        )


@dataclass(frozen=True)
class Answer:
    """What is found.

    Attributes:
        question: what was asked.
        plan: the chosen plan.
        compared: the plans of all policies for the same workload.
        most_rows: for a plan that does not fit, the most rows up to the workload's that would,
            under the same policy; 0 if not even one would. For a plan that fits, its own.
    """

    question: Question
    plan: Plan
    compared: Mapping[Policy, Plan]
    most_rows: int

    def link_bytes(self, plan: Plan) -> int:
        """Return the bytes that a step of a plan brings to the device."""
        return round(plan.work_s["link"] * self.question.profile.h2d_bytes_per_s)

    def to_json(self) -> dict[str, Any]:
        """Return the plan's JSON, with what the comparison adds."""
        return {
            **self.plan.to_json(),
            "objective": self.question.objective,
            "gpu_budget_bytes": self.question.gpu_budget_bytes,
            "host_budget_bytes": self.question.host_budget_bytes,
            "most_rows": self.most_rows,
            "link_bytes": self.link_bytes(self.plan),
            "policies": {
                policy.value: {
                    "feasible": plan.feasible,
                    "step_s": plan.step_s,
                    "bound_s": plan.bound_s,
                    "tokens_per_s": plan.tokens_per_s,
                    "link_bytes": self.link_bytes(plan),
                    "gpu_bytes": plan.gpu_bytes,
                    "host_bytes": plan.host_bytes,
                }
                for policy, plan in self.compared.items()
            },
        }


def answer(question: Question, progress: Callable[[str], object]) -> Answer:
    """Return the plan, and what else there is to say.

    Args:
        question: what is asked.
        progress: is told what is done.

    Raises:
        ConfigurationError: policy and recompute fraction do not go together.
        ProfileError: the machine has no rate for the model's element type.
    """
    progress("planning")
    plan = question.plan(question.policy)
    compared = {policy: question.plan(policy) for policy in COMPARED}
    rows = question.workload.rows
    if not plan.feasible:
        progress("looking for what would fit")
        rows = most_rows(lambda fewer: question.plan(plan.policy, fewer).feasible, rows)
    return Answer(question, plan, compared, rows)


def most_rows(fits: Callable[[int], bool], rows: int) -> int:
    """Return the most rows that fit, where ``rows`` do not: 0 if not even one row does.

    Args:
        fits: whether so many rows fit; if some do, fewer do.
        rows: a number that does not fit.
    """
    # Plans for few rows are made fast, so the search comes from below.
    fitting, too_many = 0, 1
    while too_many < rows and fits(too_many):
        fitting, too_many = too_many, min(2 * too_many, rows)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting
