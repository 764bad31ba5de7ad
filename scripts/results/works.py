"""Works, and the visits to a machine in which each was measured.

A shared host gives its cores now more, now less, so the same work is measured in several visits,
and no single one stands for it. *Typical* is the visit in the middle by the gain that was reached;
of an even number of visits the slower one of the two in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from headrace.bench.catalogue import CASES, PLAIN

from .runs import Run

SINCE = "2026-11-27T22:12"
"""Where a work was measured from then on, only such visits count: since then prompts come in parts,
which leaves more of the device to the cache, and what the link gives is learnt."""

_HEADLINES = {"stream": ("auto", "recompute", "resident"), PLAIN: ("resident", "auto")}
"""What a run is compared with, the first that ran, and by which policy it is judged, likewise."""


@dataclass(frozen=True)
class Work:
    """A work on a machine.

    Attributes:
        runs: of all visits, that in which least was gained first.
    """

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """What it is called; in the newest visit, if that changed."""
        return max(self.runs, key=lambda run: run.date).name

    @property
    def machine(self) -> str:
        """What it ran on, or what was emulated."""
        return self.typical.machine

    @property
    def origin(self) -> str:
        """Measured, or emulated."""
        return self.typical.origin

    @property
    def slowest(self) -> Run:
        """The visit in which least was gained."""
        return self.runs[0]

    @property
    def typical(self) -> Run:
        """The visit in the middle."""
        return self.runs[(len(self.runs) - 1) // 2]

    @property
    def best(self) -> Run:
        """The visit in which most was gained."""
        return self.runs[-1]

    @cached_property
    def by_date(self) -> list[Run]:
        """The visits in the order in which they were paid."""
        return sorted(self.runs, key=lambda run: run.date)


def headline(run: Run) -> str:
    """Return the policy that a run is judged by: ``auto`` where it ran beside ``stream``."""
    names = _HEADLINES.get(reference(run) or "", ())
    return next((name for name in names if name in run.steps), next(iter(run.steps)))


def reference(run: Run) -> str | None:
    """Return what the headline is compared with: ``stream``, or plain transformers."""
    return next((name for name in _HEADLINES if name in run.steps), None)


def gain(run: Run) -> float:
    """Return the headline's speed over the reference; without one, its steps a second."""
    slow = reference(run)
    return (run.steps[slow] if slow else 1.0) / run.steps[headline(run)]


def works_of(runs: Iterable[Run]) -> list[Work]:
    """Return the works of all runs that hold, in the catalogue's order.

    Runs are of one work if they have its name or do the same. Where a work was measured with rivals
    and exactness in the same run, older runs without are left out; likewise those before ``SINCE``,
    and those of smaller sizes where it ran as asked.
    """
    groups: list[list[Run]] = []
    place: dict[object, list[Run]] = {}
    for run in sorted((run for run in runs if run.holds), key=lambda run: run.date, reverse=True):
        keys = [(run.machine, run.origin, key) for key in (run.name, run.work)]
        group = next((place[key] for key in keys if key in place), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(run)
        for key in keys:
            place.setdefault(key, group)
    return sorted(map(_work, groups), key=_order)


def _work(group: list[Run]) -> Work:
    latest = [run for run in group if not run.of_first_schema] or group
    latest = [run for run in latest if run.date >= SINCE] or latest
    latest = [run for run in latest if run.is_whole] or latest
    return Work(tuple(sorted(latest, key=gain)))


def _order(work: Work) -> tuple[bool, int, str]:
    known = list(CASES)
    named = work.name in CASES
    return not named, known.index(work.name) if named else 0, work.name
