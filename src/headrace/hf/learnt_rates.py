"""How fast link and host's cores turn out to be: the rates of some steps, freed of outliers.

The memory of a host is shared with whoever else runs there, so that a profile's rates may be far
from what link and cores do an hour later.
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

    def differ(self, one: float | None, other: float) -> bool:
        """Return whether two rates differ by enough; one that is not known does not."""
        return one is not None and abs(math.log(one / other)) > math.log1p(self.least_change)

    def wait_steps(self, step_s: float, tried_s: float) -> int:
        """Return the decode steps from a trial to the next.

        Args:
            step_s: seconds of a step without the cores.
            tried_s: seconds of one of a trial.
        """
        cost_s = self.try_steps * max(0.0, tried_s - step_s)
        return max(self.try_every, math.ceil(cost_s / (self.most_try_cost * step_s)))


@dataclass(frozen=True)
class LearntRates:
    """Bytes a second of some steps, in the median.

    Attributes:
        link: at which the cache was loaded; None where nothing was.
        cores: at which the host's cores attended; None where they had nothing to do.
    """

    link: float | None
    cores: float | None

    def at_most(self, link: float) -> LearntRates:
        """Return the same, with a link that is no faster than so many bytes a second."""
        return self if self.link is None else LearntRates(min(self.link, link), self.cores)


class RecentRates:
    """The rates of the newest steps.

    Args:
        steps: how many steps make a rate.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._link: list[float] = []
        self._cores: list[float] = []
        self._noted = 0

    def note(self, link: Busy, cores: Busy) -> LearntRates | None:
        """Note a step; return the medians once there are enough, then forget all steps.

        A step in which neither had anything to do does not count.
        """
        rates = link.bytes_per_s, cores.bytes_per_s
        for rate, noted in zip(rates, (self._link, self._cores), strict=True):
            if rate is not None:
                noted.append(rate)
        self._noted += any(rate is not None for rate in rates)
        if self._noted < self._steps:
            return None
        made = LearntRates(_median(self._link), _median(self._cores))
        self._link, self._cores, self._noted = [], [], 0
        return made


def _median(rates: list[float]) -> float | None:
    return statistics.median(rates) if rates else None
