"""Curves of a plan over one thing: the context, the share that is rebuilt, or the rows."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.plan.policies import Policy


@dataclass(frozen=True)
class StudyPoint:
    """A policy's step at one place.

    Attributes:
        x: the place: a row's cached tokens in the middle of the decoding, a share, or rows.
        least_s: the least that the rates, and launching, allow.
        step_s: the simulated step, or None where it was not simulated.
        lack: what there is not enough of; empty where it fits.
    """

    x: float
    least_s: float
    step_s: float | None
    lack: str = ""

    @property
    def best_s(self) -> float:
        """The simulated step where there is one, else the least."""
        return self.least_s if self.step_s is None else self.step_s


@dataclass(frozen=True)
class Curve:
    """A policy's steps.

    Attributes:
        policy: the policy.
        points: ascending by their place. Over contexts and rows only those that fit.
        lack: what ends the curve; empty where it goes on to the end of what is looked at.
        best_x: where the planner puts it, if it chooses the place.
    """

    policy: Policy
    points: tuple[StudyPoint, ...]
    lack: str = ""
    best_x: float | None = None

    @property
    def last_x(self) -> float:
        """The last place that fits, or 0."""
        return self.points[-1].x if self.points else 0.0


@dataclass(frozen=True)
class Study:
    """Curves over one thing.

    Attributes:
        curves: one for each policy.
        low: the first place looked at.
        high: the last one.
        here: the place of the plan.
    """

    curves: tuple[Curve, ...]
    low: float
    high: float
    here: float

    @property
    def simulated(self) -> bool:
        """Whether every point is simulated."""
        return all(point.step_s is not None for curve in self.curves for point in curve.points)

    def curve(self, policy: Policy) -> Curve | None:
        """Return a policy's curve, if there is one."""
        return next((curve for curve in self.curves if curve.policy is policy), None)


@dataclass(frozen=True)
class Studies:
    """All that is looked at for one plan."""

    contexts: Study
    shares: Study
    rows: Study
