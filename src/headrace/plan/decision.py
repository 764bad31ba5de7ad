"""Deciding how the cache is cut, and with it the split and where everything goes."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.plan.cut_decision import CutDecider
from headrace.plan.decided import Decision
from headrace.plan.geometry import Geometry, choose_geometry, staging_choices
from headrace.plan.memory import (
    fixed_gpu_items,
)
from headrace.plan.pace import StepEstimate
from headrace.plan.policies import Policy, Split
from headrace.plan.program import GPU_MEMORY
from headrace.plan.step_work import Schedule

__all__ = ["Decider", "Decision"]

STAGING_SHARE = 0.1
"""Most of the device memory that staging takes from what could keep tokens there."""

_LAUNCH_WEIGHT = 0.1
"""Part of the time of launching that counts even where work hides it.

Where others use the host it takes several times as long as was measured, at times: then steps of
many granules take as long as launching does.
"""

_DECIDED = 2
"""Further ways to cut the cache for which the split is decided: the best, by an estimate."""


class Decider(CutDecider):
    """Decides for one workload on one machine, under any policy, how the cache is cut, too."""

    def decide(self, policy: Policy, schedule: Schedule = Schedule.ROW) -> Decision:
        """Return the best decision under a policy; one that lacks memory where none fits.

        Large granules and long rings run better, but what they take of the device's memory is not
        there for tokens: several ways to cut the cache are compared by an estimate, and the best
        that fit are decided.
        """
        nominal = self._nominal(policy)
        shared = "resident" in self.paths(policy)
        usual = self._geometry(policy, nominal, shared)
        first = self.by_work(policy, schedule, usual)
        found = [self.with_launching(first)]
        for geometry in self._staging(first, nominal):
            found.append(self.at(policy, schedule, geometry))
            if sum(one.fits for one in found) > _DECIDED:
                break
        if self.least_granule_bytes and not any(one.fits for one in found):
            # Prompts in parts then take more calls.
            rows, context = self.workload.rows, self.workload.mean_context
            smallest = choose_geometry(self.shape, rows, context, nominal, 0.0, policy=policy)
            found.append(self.at(policy, schedule, smallest))
        fitting = [one for one in found if one.fits]
        if not fitting:
            return min(found, key=lambda one: one.lacking_bytes)
        return min(fitting, key=self._cost_s)

    def _cost_s(self, decision: Decision) -> float:
        """Return the estimate, and part of what the work hides of launching."""
        estimate, geometry = self._estimate(decision), decision.geometry
        return estimate.seconds(geometry) + _LAUNCH_WEIGHT * estimate.launch_s(geometry)

    def estimated_step_s(self, decision: Decision) -> float:
        """Return about how long a step takes, with the waits that finite staging makes."""
        return self._estimate(decision).seconds(decision.geometry)

    def _estimate(self, decision: Decision) -> StepEstimate:
        work = self.step_work(decision.policy, decision.schedule, decision.geometry)
        return StepEstimate(work, self.profile, decision.optimum)

    @staticmethod
    def _launches(estimate: StepEstimate, geometry: Geometry) -> bool:
        """Return whether it matters how many granules are loaded."""
        return estimate.launch_s(geometry) > 0 and any(estimate.granules(geometry))

    def _staging(self, first: Decision, nominal: Split) -> list[Geometry]:
        """Return ways to cut the cache, the best first by what a first decision says of them.

        Its solution tells how long a step takes with each, and its price of device memory what each
        takes from the tokens.
        """
        estimate = self._estimate(first)
        policy, rows, context = first.policy, self.workload.rows, self.workload.mean_context
        pace = estimate.pace()
        cut, launches = first.split, self._launches(estimate, first.geometry)
        choices = [
            *staging_choices(
                *(self.shape, rows, context, cut),
                policy=policy,
                pace=pace,
                launches_count=launches,
                least_bytes=self.least_granule_bytes,
            ),
            choose_geometry(
                *(self.shape, rows, context, nominal, 0.0),
                policy=policy,
                least_bytes=self.least_granule_bytes,
            ),
        ]
        solved = self._by_pages(first, choices) if launches else {}

        def about_s(geometry: Geometry) -> float:
            near = solved.get(geometry.block_tokens, first)
            estimate, price = self._estimate(near), near.optimum.prices[GPU_MEMORY]
            more_bytes = self._staged_bytes(geometry) - self._staged_bytes(near.geometry)
            launch_s = _LAUNCH_WEIGHT * estimate.launch_s(geometry)
            return estimate.seconds(geometry) + launch_s + price * more_bytes

        return sorted(dict.fromkeys(one for one in choices if one != first.geometry), key=about_s)

    def _by_pages(self, first: Decision, choices: Iterable[Geometry]) -> dict[int, Decision]:
        """Return, by the tokens of a page, a decision for one way to cut the cache, if it fits.

        Shorter pages leave more of the device's memory to tokens, and keep the cores longer.
        """
        solved = {first.geometry.block_tokens: first}
        for geometry in choices:
            if geometry.block_tokens not in solved:
                decided = self.at(first.policy, first.schedule, geometry)
                if decided.fits:
                    solved[geometry.block_tokens] = decided
        return solved

    def _staged_bytes(self, geometry: Geometry) -> int:
        """Return the device's memory that the way in which the cache is cut takes."""
        tail_bytes = geometry.tail_bytes(self.shape, self.workload.rows)
        return geometry.staging_bytes(self.shape) + tail_bytes

    def _nominal(self, policy: Policy) -> Split:
        """Return the split whose staging is the largest that the policy may need."""
        paths = self.paths(policy)
        if "recompute" in paths:
            return Split(recompute=1.0)
        if "stream" in paths:
            return Split(stream=1.0)
        return Split(host=1.0) if "host" in paths else Split(resident=1.0)

    def _left_bytes(self, weights_streamed: float, prefill_tokens: int) -> float:
        """Return the device's memory that nothing fixed takes."""
        fixed = fixed_gpu_items(self.shape, self.workload, weights_streamed, prefill_tokens)
        return self.gpu_budget_bytes - sum(fixed.values())

    def _geometry(self, policy: Policy, split: Split, shared: bool) -> Geometry:
        """Return how the cache is cut, within what the device has left for staging.

        Args:
            policy: whose staging.
            split: of the tokens in pages.
            shared: whether tokens are to be kept on the device too: staging then takes but a part.
        """
        settled = self.options.weights_streamed
        share = settled or 0.0
        left = self._left_bytes(share, self.prefill_tokens(share > 0))
        if left <= 0 and share > 0:
            left = self._left_bytes(share, self.prefill_tokens())
        if left <= 0 and self.options.stream_weights and settled is None:
            left = self._left_bytes(1.0, self.prefill_tokens())
        if shared and left > 0:
            left *= STAGING_SHARE
        return choose_geometry(
            self.shape,
            self.workload.rows,
            self.workload.mean_context,
            split,
            left if left > 0 else None,
            policy=policy,
            least_bytes=self.least_granule_bytes,
        )
