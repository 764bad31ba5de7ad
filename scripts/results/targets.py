"""What was aimed at, and what has been reached: computed from all visits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from headrace.bench.catalogue import PLAIN, WORKLOADS

from .figures import written
from .runs import Run, name_of
from .tables import table
from .works import Work

_LONG_STEP_S = 0.2
_GAINS = {
    "paper-latency": (("auto", "stream", 4.0), ("auto", "kvpr", 2.5), ("recompute", "stream", 1.8)),
    "batch-mha": (("auto", "stream", 4.0), ("auto", "kvpr", 2.5), ("recompute", "stream", 1.8)),
    "batch-gqa": (("auto", "stream", 3.0),),
    "long-context": (("auto", "stream", 3.0),),
}
"""Of each workload, how many times as fast as the second the first shall be at least."""

CHOICE = "`auto` at most 3 % slower than the best other policy"
FITS = "`resident` at most 3 % slower than plain transformers"
ERROR = "median prediction error at most 5 %"
BOUND = "steps of 0.2 s and more at 90 % of their bound or better"
LINK = "`stream` at 95 % of the link's rate or better"


@dataclass(frozen=True)
class Reached:
    """What a run reached of an aim.

    Attributes:
        value: higher is better.
        holds: whether that is enough.
        where: the work, and what else tells this value from others of the same aim.
        run: which.
    """

    value: float
    holds: bool
    where: str
    run: Run


@dataclass
class Aim:
    """An aim, and what was reached of it in every run that it applies to.

    Attributes:
        words: what was aimed at.
        form: how its values are written.
        by_work: whether it is told for each work.
        reached: in every run.
    """

    words: str
    form: str
    by_work: bool = False
    reached: list[Reached] = field(default_factory=list)

    @property
    def held(self) -> int:
        """In how many it holds."""
        return sum(one.holds for one in self.reached)

    @property
    def least(self) -> Reached:
        """The worst that was reached."""
        return min(self.reached, key=lambda one: one.value)


def aims_of(works: Sequence[Work]) -> list[Aim]:
    """Return every aim that applies to any of these works, but the one about predictions."""
    found: dict[str, Aim] = {}
    for work in works:
        for run in work.by_date:
            for words, form, one in _reached(work.name, run):
                aim = found.setdefault(words, Aim(words, form, by_work="at least" in words))
                aim.reached.append(one)
    return sorted(found.values(), key=lambda aim: _ORDER.index(aim.words))


def _gain_words(fast: str, slow: str, least: float) -> str:
    return f"`{fast}` at least {least:g} × `{slow}`"


def _by_names(gain: tuple[str, str, float]) -> tuple[str, bool, float]:
    fast, slow, least = gain
    return fast, slow != "stream", -least


_ORDER = [
    *dict.fromkeys(_gain_words(*one) for one in sorted({*chain(*_GAINS.values())}, key=_by_names)),
    *(CHOICE, FITS, BOUND, LINK),
]


def _reached(name: str, run: Run) -> Iterator[tuple[str, str, Reached]]:
    """Yield what a run reached: of which aim, how it is written, and what."""
    steps = run.steps
    for fast, slow, least in _GAINS.get(_WORKLOAD_OF.get(name, ""), ()):
        if fast in steps and slow in steps:
            ratio = steps[slow] / steps[fast]
            yield _gain_words(fast, slow, least), ".2 ×", Reached(ratio, ratio >= least, name, run)
    ours = {name_of(one): one["step_s"] for one in run.data["policies"]}
    auto = ours.pop("auto", None)
    if auto is not None and ours:
        ratio = min(ours.values()) / auto
        yield CHOICE, ".2 ×", Reached(ratio, auto <= 1.03 * min(ours.values()), name, run)
    if run.gpu_memory is None and PLAIN in steps and "resident" in steps:
        ratio = steps[PLAIN] / steps["resident"]
        yield FITS, ".2 ×", Reached(ratio, steps["resident"] <= 1.03 * steps[PLAIN], name, run)
    for one in run.data["policies"]:
        where = f"`{name_of(one)}` in {name}"
        if one["step_s"] >= _LONG_STEP_S:
            share = one["bound_s"] / one["step_s"]
            yield BOUND, ".0 %", Reached(share, share >= 0.9, where, run)
        if one["policy"] == "stream" and one.get("link_bytes_per_s") and "profile" in run.data:
            share = one["link_bytes_per_s"] / run.data["profile"]["h2d_bytes_per_s"]
            yield LINK, ".0 %", Reached(share, share >= 0.95, name, run)


_WORKLOAD_OF = {case.name: name for name, work in WORKLOADS.items() for case in work.cases}


def aims_table(works: Sequence[Work]) -> str:
    """Return which aims a machine reaches: typically, at best, at worst, and how often."""
    rows = []
    for aim in aims_of(works):
        groups: dict[str, list[Reached]] = {}
        for one in aim.reached:
            groups.setdefault(one.where if aim.by_work else "all", []).append(one)
        rows += [_row(aim, where, reached) for where, reached in groups.items()]
    error = prediction_errors([run for work in works for run in work.runs])
    if error:
        holds = "yes" if statistics.median(error) <= 0.05 else "**no**"
        middle, worst = (written(one, ".1 %") for one in (statistics.median(error), max(error)))
        rows.append([ERROR, "all", middle, written(min(error), ".1 %"), worst, holds])
    return table(["aim", "work", "typical", "best", "worst", "holds in"], rows) if rows else ""


def _row(aim: Aim, where: str, reached: Sequence[Reached]) -> list[str]:
    values = sorted(one.value for one in reached)
    held, worst = sum(one.holds for one in reached), min(reached, key=lambda one: one.value)
    ends = [written(values[-1], aim.form), written(worst.value, aim.form)]
    if not aim.by_work:
        ends[1] += f" ({worst.where}, {worst.run.visit})"
    often = f"{held} of {len(reached)}"
    return [
        aim.words,
        where,
        written(values[(len(values) - 1) // 2], aim.form),
        *(ends if len(values) > 1 else ["", ""]),
        often if held == len(reached) else f"**{often}**",
    ]


def aims_by_machine(machines: Mapping[str, Sequence[Work]]) -> str:
    """Return in how many works each aim holds, and the worst, with a column for each machine."""
    aims = {
        machine: {aim.words: aim for aim in aims_of(works)} for machine, works in machines.items()
    }
    named = [words for words in _ORDER if any(words in found for found in aims.values())]
    rows = [
        [words, *(_held(found[words]) if words in found else "" for found in aims.values())]
        for words in named
    ]
    middles = []
    for works in machines.values():
        error = statistics.median(prediction_errors([run for work in works for run in work.runs]))
        middles.append(written(error, ".1 %") if error <= 0.05 else f"**{written(error, '.1 %')}**")
    return table(["aim", *machines], [*rows, [ERROR, *middles]])


def _held(aim: Aim) -> str:
    often, least = f"{aim.held} of {len(aim.reached)}", written(aim.least.value, aim.form)
    if aim.held < len(aim.reached):
        return f"**{often}**; least {least} ({aim.least.where})"
    return f"{often}; least {least}"


def prediction_errors(runs: Sequence[Run], policies: Sequence[str] = ()) -> list[float]:
    """Return how far off each prediction was, without its sign; of some policies or of all."""
    return [
        abs(off(one))
        for run in runs
        for one in run.data["policies"]
        if not policies or one["policy"] in policies
    ]


def off(one: dict[str, Any]) -> float:
    """Return how far a prediction is above its measurement, as a share of that."""
    error: float = one["predicted_step_s"] / one["step_s"] - 1
    return error
