"""What was aimed at, and what has been reached: computed from the runs that are shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.bench.catalogue import PLAIN, WORKLOADS

from .figures import written
from .runs import Run, name_of
from .tables import table

_LONG_STEP_S = 0.2
_AIMS = {
    "paper-latency": (("auto", "stream", 4.0), ("auto", "kvpr", 2.5), ("recompute", "stream", 1.8)),
    "batch-mha": (("auto", "stream", 4.0), ("auto", "kvpr", 2.5), ("recompute", "stream", 1.8)),
    "batch-gqa": (("auto", "stream", 3.0),),
    "long-context": (("auto", "stream", 3.0),),
}
"""Of each workload, how many times as fast as the second the first shall be at least."""


@dataclass(frozen=True)
class Aim:
    """A line of the table.

    Attributes:
        case: of which run.
        words: what was aimed at.
        reached: what was reached.
        holds: whether that is enough.
    """

    case: str
    words: str
    reached: str
    holds: bool


def target_table(runs: Sequence[Run]) -> str:
    """Return which aims the runs of a machine reach."""
    rows = [
        [aim.case, aim.words, aim.reached, "yes" if aim.holds else "**no**"] for aim in _aims(runs)
    ]
    return table(["case", "aim", "reached", "holds"], rows) if rows else ""


def _aims(runs: Sequence[Run]) -> Iterator[Aim]:
    workloads = {case.name: name for name, work in WORKLOADS.items() for case in work.cases}
    for run in runs:
        steps = run.steps
        for fast, slow, least in _AIMS.get(workloads.get(run.name, ""), ()):
            if fast in steps and slow in steps:
                words = f"`{fast}` at least {least:g} × `{slow}`"
                ratio = steps[slow] / steps[fast]
                yield Aim(run.name, words, written(ratio, ".2 ×"), ratio >= least)
        yield from _choice(run)
        yield from _fits(run)
    yield from _predictions(runs)
    yield from _bounds(runs)
    yield from _link(runs)


def _choice(run: Run) -> Iterator[Aim]:
    ours = {name_of(one): one["step_s"] for one in run.data["policies"]}
    auto = ours.pop("auto", None)
    if auto is not None and ours:
        behind = auto / min(ours.values()) - 1
        best = min(ours, key=lambda name: ours[name])
        yield Aim(
            run.name,
            "`auto` at most 3 % slower than the best other policy",
            f"{written(1 / (1 + behind), '.2 ×')} {best}",
            behind <= 0.03,
        )


def _fits(run: Run) -> Iterator[Aim]:
    steps = run.steps
    if run.gpu_memory is None and PLAIN in steps and "resident" in steps:
        behind = steps["resident"] / steps[PLAIN] - 1
        yield Aim(
            run.name,
            "`resident` at most 3 % slower than plain transformers",
            f"{written(1 / (1 + behind), '.2 ×')} {PLAIN}",
            behind <= 0.03,
        )


def _every(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [one for run in runs for one in run.data["policies"]]


def _predictions(runs: Sequence[Run]) -> Iterator[Aim]:
    errors = [abs(one["predicted_step_s"] / one["step_s"] - 1) for one in _every(runs)]
    if errors:
        middle = statistics.median(errors)
        reached = f"{written(middle, '.1 %')}; at worst {written(max(errors), '.1 %')}"
        yield Aim("all", "median prediction error at most 5 %", reached, middle <= 0.05)


def _bounds(runs: Sequence[Run]) -> Iterator[Aim]:
    shares = [
        (one["bound_s"] / one["step_s"], f"{name_of(one)} in {run.name}")
        for run in runs
        for one in run.data["policies"]
        if one["step_s"] >= _LONG_STEP_S
    ]
    if shares:
        least, where = min(shares)
        middle = written(statistics.median(value for value, _ in shares), ".0 %")
        yield Aim(
            "steps of 0.2 s and more",
            "at least 90 % of the bound",
            f"{written(least, '.0 %')} ({where}); median {middle}",
            least >= 0.9,
        )


def _link(runs: Sequence[Run]) -> Iterator[Aim]:
    shares = [
        (one["link_bytes_per_s"] / run.data["profile"]["h2d_bytes_per_s"], run.name)
        for run in runs
        for one in run.data["policies"]
        if one["policy"] == "stream" and "profile" in run.data
    ]
    if shares:
        least, where = min(shares)
        reached = f"{written(least, '.0 %')} ({where})"
        yield Aim("all", "`stream` at 95 % of the link's rate", reached, least >= 0.95)
