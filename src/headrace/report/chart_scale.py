"""Axes of charts: where a value is drawn, and which round values are marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log, log2, log10
from typing import Literal

Kind = Literal["linear", "log", "log2"]

_TICK_SETS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
)
_FEWEST_TICKS = 3


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """What an axis shows.

    Attributes:
        title: what is shown, with its unit.
        kind: ``linear``, ``log`` (marked at 1, 2, 5, 10 …) or ``log2`` (at powers of two).
        write: how a marked value is written.
        low: the least value; None: the least that is drawn.
        high: the largest value; None: the largest that is drawn.
    """

    title: str
    kind: Kind
    write: Callable[[float], str]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values are drawn.

    Attributes:
        kind: as in ``AxisSpec``.
        low: the value at ``start``.
        high: the value at ``finish``.
        start: a pixel.
        finish: a pixel; less than ``start`` for an axis that goes up.
    """

    kind: Kind
    low: float
    high: float
    start: float
    finish: float

    @classmethod
    def over(cls, spec: AxisSpec, values: Sequence[float], start: float, finish: float) -> Scale:
        """Return the scale on which all values can be drawn.

        Args:
            spec: the axis.
            values: what is drawn.
            start: the pixel of the least.
            finish: the pixel of the largest.
        """
        low = spec.low if spec.low is not None else min(values, default=1.0)
        high = spec.high if spec.high is not None else max(values, default=low)
        if spec.kind == "linear":
            high = high if high > low else low + (abs(low) or 1.0)
        elif high <= low:
            low, high = low / 2, high * 2
        return cls(spec.kind, low, high, start, finish)

    def at(self, value: float) -> float:
        """Return where a value is drawn; what lies outside is drawn at the border."""
        if self.kind == "linear":
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            share = 0.0
        else:
            share = log(value / self.low) / log(self.high / self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.finish - self.start)

    def ticks(self, least_gap: float) -> list[float]:
        """Return round values that are at least so many pixels apart."""
        most = max(2, floor(abs(self.finish - self.start) / least_gap) + 1)
        if self.kind == "log2":
            return self._powers_of_two(most)
        if self.kind == "log":
            found = self._decimal(most)
            if len(found) >= _FEWEST_TICKS:
                return found
        return self._even(most)

    def _powers_of_two(self, most: int) -> list[float]:
        first, last = ceil(log2(self.low) - 1e-9), floor(log2(self.high) + 1e-9)
        stride = max(1, ceil((last - first + 1) / most))
        powers = [2.0**power for power in range(first, last + 1) if power % stride == 0]
        return powers if len(powers) > 1 else self._even(most)

    def _decimal(self, most: int) -> list[float]:
        """Return the densest of the usual sets of values in a decade that is not too dense."""
        best: list[float] = []
        powers = range(floor(log10(self.low)) - 1, ceil(log10(self.high)) + 1)
        for factors in _TICK_SETS:
            found = [10.0**power * factor for power in powers for factor in factors]
            found = [tick for tick in found if self._holds(tick)]
            gaps = [abs(self.at(b) - self.at(a)) for a, b in pairwise(found)]
            length = abs(self.finish - self.start)
            if len(found) <= most and min(gaps, default=length) >= length / most:
                best = found if len(found) > len(best) else best
        return best

    def _even(self, most: int) -> list[float]:
        rough = (self.high - self.low) / max(1, most - 1)
        power = 10.0 ** floor(log10(rough))
        unit = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
        first, last = ceil(self.low / unit - 1e-9), floor(self.high / unit + 1e-9)
        return [unit * n for n in range(first, last + 1)]

    def _holds(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)
