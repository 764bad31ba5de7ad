"""What is decided for a workload, before anything is simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.plan.geometry import Geometry
from headrace.plan.placement import Placement
from headrace.plan.policies import Policy, Split
from headrace.plan.program import Optimum
from headrace.plan.step_work import Schedule


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
        prefill_tokens: tokens of prompts that go through the model at once.
        optimum: the linear program's solution.
        gpu_items: bytes on the device, by item.
        host_items: bytes on the host, by item.
        lacking_bytes: bytes beyond the budgets; 0 where it fits.
        launch_s: seconds of launching a step; 0 where that was not measured.
    """

    policy: Policy
    schedule: Schedule
    split: Split
    placement: Placement
    geometry: Geometry
    weights_streamed: float
    prefill_tokens: int
    optimum: Optimum
    gpu_items: Mapping[str, int]
    host_items: Mapping[str, int]
    lacking_bytes: float
    launch_s: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it keeps the budgets."""
        return self.lacking_bytes <= 0

    @property
    def least_s(self) -> float:
        """The least time of a step, by its work and by its launching."""
        return max(self.optimum.step_s, self.launch_s)
