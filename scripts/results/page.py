"""The results page: words from ``words.md``, everything else from the results' JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headrace.bench.catalogue import CASES

from .charts import prediction_chart, speed_chart, step_chart
from .figures import figures_in, written
from .overview import (
    exactness_table,
    machines_table,
    page_link,
    predictions_table,
    rivals_table,
    steps_table,
    visits_table,
)
from .runs import EMULATED, MEASURED, Files, Run, runs_of
from .studies import studies_table
from .tables import table
from .targets import aims_by_machine, aims_table
from .values import number_of
from .works import Work, works_of

TEMPLATE = Path(__file__).with_name("words.md")
_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_RESULTS = "../benchmarks/results"
_TELLING = (
    "paper-latency-512",
    "paper-throughput-opt-13b",
    "opt-6.7b-24gib",
    "batch-gqa-llama-3-8b",
    "long-context-24gib",
    "weights-opt-30b",
)
"""Emulated works that the page shows."""


_BESIDE = "Beside transformers' own caches; in brackets, how many times our step theirs is:"

_AIMED = (
    "What was aimed at, and what of it holds; typical is the value in the middle of all visits:"
)


class Page:
    """The page and its pictures.

    Args:
        files: what the files below ``benchmarks/results`` hold, by their place there.
        template: the words, with places to fill: ``{{ WHICH | EXPRESSION | FORM }}`` for a figure,
            where WHICH is a file, or a work in its typical visit, or ``best WORK`` or ``slowest
            WORK``; and sections, such as ``{{ measured }}``.

    Raises:
        ValueError: the words have a figure of their own, or a place that cannot be filled.
    """

    def __init__(self, files: Files, template: str) -> None:
        self.files = files
        self.template = template
        self.runs = list(runs_of(files))
        self.works = works_of(self.runs)
        self.pictures: dict[str, str] = {}

    def text(self) -> str:
        """Return the page; afterwards ``pictures`` has its pictures by their names."""
        own = [figure.text for figure in figures_in(_code_blanked(_PLACE.sub("", self.template)))]
        if own := [figure for figure in own if not figure.endswith("GiB")]:
            raise ValueError(
                f"the words have figures of their own: {', '.join(own)}; write "
                "{{ CASE | EXPRESSION | FORM }}, so that they come from a result"
            )
        paragraphs = _PLACE.sub(self._filled, self.template).split("\n\n")
        return "\n\n".join(
            _wrapped(one) if "\N{NO-BREAK SPACE}" in one else one for one in paragraphs
        )

    def _filled(self, match: re.Match[str]) -> str:
        """Return what stands in a place; spaces in a figure are such that no line ends there."""
        parts = [part.strip() for part in match[1].split("|")]
        if len(parts) == 1:
            if parts[0] not in self._sections:
                raise ValueError(f"{match[0]} is neither a section nor WHICH | EXPRESSION | FORM")
            return "\n\n".join(self._sections[parts[0]]())
        name, expression, form = parts
        figure = written(number_of(expression, self._data(name)), form)
        return figure.replace(" ", "\N{NO-BREAK SPACE}")

    @property
    def _sections(self) -> dict[str, Callable[[], Iterator[str]]]:
        return {
            "machines": lambda: iter([machines_table(self.runs, self.files)]),
            "measured": self._measured,
            "visits": self._visits,
            "predictions": self._predictions,
            "emulated": self._emulated,
            "exactness": lambda: iter([exactness_table(self.files)]),
            "simulated": lambda: iter([studies_table(self.files)]),
            "others": self._others,
        }

    def _data(self, name: str) -> Any:
        """Return what a file holds, or a visit's run of a work; measured before emulated."""
        if name.endswith(".json"):
            if Path(name) not in self.files:
                raise ValueError(f"the words name {name}, which is no file of the results")
            return self.files[Path(name)]
        which, _, named = name.rpartition(" ")
        found = [work for work in self.works if work.name == named]
        visits = {"": "typical", "best": "best", "slowest": "slowest"}
        if not found or which not in visits:
            raise ValueError(f"the words name {name!r}, of which there is no run")
        work = next((work for work in found if work.origin == MEASURED), found[0])
        run: Run = getattr(work, visits[which])
        return run.data

    def _on_gpus(self) -> dict[str, list[Work]]:
        """Return what was measured on each GPU; what the suite does not know where it is all."""
        found: dict[str, list[Work]] = {}
        for work in self.works:
            if work.origin == MEASURED and work.typical.environment["gpu"]:
                found.setdefault(work.machine, []).append(work)
        return {
            gpu: [work for work in works if _known(work)] or works for gpu, works in found.items()
        }

    def _measured(self) -> Iterator[str]:
        for gpu, works in self._on_gpus().items():
            yield f"### {gpu}"
            yield steps_table(works)
            if rivals := rivals_table(works):
                yield _BESIDE
                yield rivals
            if aims := aims_table(list(filter(_of_suite, works))):
                yield _AIMED
                yield aims
            yield from self._drawn(gpu, works)

    def _drawn(self, gpu: str, works: Sequence[Work]) -> Iterator[str]:
        """Yield all pictures of the suite's works, of older ones the steps alone."""
        key = re.sub(r"\W+", "-", gpu.lower()).strip("-")
        for kind, (draw, words) in _CHARTS.items():
            if kind != "steps" and not any(map(_of_suite, works)):
                continue
            name = f"results-{key}-{kind}"
            self.pictures[f"{name}.svg"] = draw(works, f"{gpu}, measured")
            yield f"[![{gpu}, measured: {words}](img/{name}.png)](img/{name}.svg)"

    def _visits(self) -> Iterator[str]:
        for works in self._on_gpus().values():
            yield from filter(None, [visits_table(list(filter(_of_suite, works)))])

    def _predictions(self) -> Iterator[str]:
        for gpu, works in self._on_gpus().items():
            if found := list(filter(_of_suite, works)):
                yield f"{gpu}:"
                yield predictions_table(found)

    def _emulated(self) -> Iterator[str]:
        machines: dict[str, list[Work]] = {}
        for work in self.works:
            if work.origin == EMULATED and _known(work):
                machines.setdefault(work.machine, []).append(work)
        for machine, works in machines.items():
            yield f"### {machine}\n\nAll of it: {page_link(works[0].typical)}."
            yield steps_table([work for work in works if work.name in _TELLING])
        if machines:
            yield "### Aims, of the works of the whole suite"
            yield aims_by_machine(machines)

    def _others(self) -> Iterator[str]:
        rows = []
        for file, data in self.files.items():
            if "command" in data and "environment" in data and "workloads" not in data:
                where = data["environment"]
                what = _origin(data)
                on = where["gpu"] or f"{where['cpu']}, {where['cpu_cores']} cores"
                on = "" if what.startswith("predicted") else on
                date = where["date"][:10]
                rows.append(
                    [f"[{file}]({_RESULTS}/{file})", f"`{data['command']}`", what, on, date]
                )
        yield table(["file", "command", "", "on", "date"], rows) if rows else "None."


_CHARTS: dict[str, tuple[Callable[[Sequence[Work], str], str], str]] = {
    "steps": (step_chart, "a step of every policy and rival, beside its bound"),
    "speed": (speed_chart, "speed over stream of every policy"),
    "predictions": (prediction_chart, "predicted against measured steps"),
}


def _known(work: Work) -> bool:
    """Return whether the suite has a work, or its runs have what the suite's have."""
    return work.name in CASES or _of_suite(work)


def _of_suite(work: Work) -> bool:
    """Return whether its runs have what the suite's have: rivals, and exactness in the same run."""
    return not work.typical.of_first_schema


def _origin(data: dict[str, Any]) -> str:
    """Return whether a command's figures are measured, emulated or predicted."""
    policies = data.get("policies")
    first = policies[0] if isinstance(policies, list) and policies else {}
    return str(data.get("origin") or first.get("origin", MEASURED))


def _wrapped(paragraph: str) -> str:
    """Return a paragraph of words, or a list of them, with lines of even length."""
    lines = []
    for item in re.split(r"\n(?=- )", paragraph):
        indent = "  " if item.startswith("- ") else ""
        lines += textwrap.wrap(
            re.sub(r"[ \n]+", " ", item),
            104,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _code_blanked(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)
