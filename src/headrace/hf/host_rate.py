"""How fast the host's cores turn out to attend: the rate of some steps, freed of outliers.

The cores of a host are shared with whoever else runs there, so that a profile's rate may be far
from what they do an hour later.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from headrace.runtime.lanes import Busy


@dataclass(frozen=True)
class RateRules:
    """When a rate is taken to have changed, and when cores that do nothing are tried again.

    Attributes:
        steps: decode steps whose median counts. Of these, nearly half may be outliers.
        least_change: share by which the median must differ.
        try_every: decode steps from one trial to the next, at the least.
        try_steps: decode steps of a trial.
        most_try_cost: share of the time until the next trial that one may take, as predicted.
    """

    steps: int = 8
    least_change: float = 0.15
    try_every: int = 128
    try_steps: int = 3
    most_try_cost: float = 0.01

    def differ(self, one: float, other: float) -> bool:
        """Return whether two rates, or ratios of rates, differ by enough."""
        return abs(math.log(one / other)) > math.log1p(self.least_change)

    def wait_steps(self, step_s: float, tried_s: float) -> int:
        """Return the decode steps from a trial to the next.

        Args:
            step_s: seconds of a step without the cores.
            tried_s: seconds of one of a trial.
        """
        cost_s = self.try_steps * max(0.0, tried_s - step_s)
        return max(self.try_every, math.ceil(cost_s / (self.most_try_cost * step_s)))


class HostRate:
    """The rate at which the cores attended in the newest steps.

    Args:
        steps: how many steps make a rate.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._rates: list[float] = []

    def note(self, busy: Busy) -> float | None:
        """Note a step; return the median in bytes a second once there are enough, then forget them.

        A step in which the cores had nothing to do does not count.
        """
        if busy.read_bytes > 0 and busy.seconds > 0:
            self._rates.append(busy.read_bytes / busy.seconds)
        if len(self._rates) < self._steps:
            return None
        rate = statistics.median(self._rates)
        self._rates = []
        return rate
