"""The results page: words from ``words.md``, everything else from the results' JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headrace.units import format_bytes, format_rate

from .charts import prediction_chart, speed_chart, step_chart
from .figures import figures_in, written
from .runs import EMULATED, MEASURED, Run, checks_of, newest, runs_of
from .tables import audit_table, run_table, table
from .targets import target_table
from .values import number_of

TEMPLATE = Path(__file__).with_name("words.md")
_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_RESULTS = "../benchmarks/results"

Files = dict[Path, dict[str, Any]]


class Page:
    """The page and its pictures.

    Args:
        files: what the files below ``benchmarks/results`` hold, by their place there.
        template: the words, with places to fill: ``{{ CASE or FILE | EXPRESSION | FORM }}``, and
            ``{{ measured }}``, ``{{ emulated }}``, ``{{ simulated }}``, ``{{ others }}``.

    Raises:
        ValueError: the words have a figure of their own, or a place that cannot be filled.
    """

    def __init__(self, files: Files, template: str) -> None:
        self.files = files
        self.template = template
        self.shown = newest(runs_of(files))
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
            sections = {
                "measured": self._measured,
                "emulated": self._emulated,
                "simulated": self._simulated,
                "others": self._others,
            }
            if parts[0] not in sections:
                raise ValueError(f"{match[0]} is neither a section nor CASE | EXPRESSION | FORM")
            return "\n\n".join(sections[parts[0]]())
        name, expression, form = parts
        figure = written(number_of(expression, self._data(name)), form)
        return figure.replace(" ", "\N{NO-BREAK SPACE}")

    def _data(self, name: str) -> Any:
        """Return what a file holds, or the newest run of a case; measured before emulated."""
        if name.endswith(".json"):
            if Path(name) not in self.files:
                raise ValueError(f"the words name {name}, which is no file of the results")
            return self.files[Path(name)]
        found = [run for run in self.shown if run.name == name]
        if not found:
            raise ValueError(f"the words name {name!r}, of which no run is shown")
        return next((run for run in found if run.origin == MEASURED), found[0]).data

    def _measured(self) -> Iterator[str]:
        runs = [run for run in self.shown if run.origin == MEASURED and run.environment["gpu"]]
        for gpu in dict.fromkeys(run.machine for run in runs):
            here = [run for run in runs if run.machine == gpu]
            latest = [run for run in here if not run.of_first_schema] or here
            yield f"### {gpu}"
            yield from self._drawn(gpu, latest)
            yield from self._aims(latest)
            for run in latest:
                yield from _run(run, "####")
            earlier = [run for run in here if run not in latest]
            if earlier:
                yield (
                    f"#### Earlier, on the {gpu}\n\nOf these works there is no newer run; they "
                    "were measured before there were rivals and exactness in the same run."
                )
            for run in earlier:
                yield from _run(run, "#####")
            yield from self._checks(gpu)

    def _drawn(self, gpu: str, runs: Sequence[Run]) -> Iterator[str]:
        key = re.sub(r"\W+", "-", gpu.lower()).strip("-")
        words = f"{gpu}, measured"
        for kind, draw in _CHARTS.items():
            name = f"results-{key}-{kind}.svg"
            self.pictures[name] = draw(runs, words)
            yield f"![{words}: {_PICTURES[kind]}](img/{name})"

    def _aims(self, runs: Sequence[Run]) -> Iterator[str]:
        found = target_table(runs)
        if found:
            yield "What was aimed at, and what of it holds in these runs:"
            yield found

    def _checks(self, gpu: str) -> Iterator[str]:
        for (where, name), (file, data) in sorted(checks_of(self.files).items()):
            if where != gpu:
                continue
            yield f"#### {_CHECKS.get(name, name)}\n\n{_source(file, data['environment'])}"
            if "audits" in data:
                yield audit_table(data["audits"])
            else:
                same = [
                    [way, "identical" if ok else "DIFFERENT"] for way, ok in data["rows"].items()
                ]
                yield table(["policy", "tokens in company and alone"], same)

    def _emulated(self) -> Iterator[str]:
        runs = [run for run in self.shown if run.origin == EMULATED]
        yield from self._aims([run for run in runs if not run.of_first_schema])
        for run in runs:
            yield from _run(run, "###")

    def _simulated(self) -> Iterator[str]:
        for file, data in self.files.items():
            if "studies" not in data:
                continue
            page = file.with_suffix(".md").as_posix()
            yield (
                f"{data['label'].capitalize()}. The whole of it, beside what the paper reports: "
                f"[{page}]({_RESULTS}/{page}). JSON: [{file}]({_RESULTS}/{file})."
            )
            yield from map(_study, data["studies"])

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


_CHARTS = {"steps": step_chart, "speed": speed_chart, "predictions": prediction_chart}
_PICTURES = {
    "steps": "a step of every policy and rival, beside its bound",
    "speed": "speed over stream of every policy and rival",
    "predictions": "predicted against measured steps",
}
_CHECKS = {
    "exactness": "Exactness on small models, audited on this GPU",
    "weights": "Exactness with streamed weights",
    "rows": "Rows that come and go",
}


def _run(run: Run, level: str) -> Iterator[str]:
    """Yield what is said of a run."""
    work, profile = run.data["workload"], run.data.get("profile")
    layers = work.get("layers")
    words = [
        f"{work.get('model') or run.data['model']}"
        + (f", {layers} layers" if layers and run.work[1] is not None else ""),
        *([f"1/{work['narrow']} as wide"] if work.get("narrow", 1) > 1 else []),
        f"{work['rows']:,} rows × {work['prompt_len']:,} tokens",
    ]
    if run.gpu_memory is not None:
        words.append(f"within {format_bytes(run.gpu_memory)} of device memory")
    if work.get("weights_on_host"):
        words.append(f"{work['weights_on_host']:.0%} of the layers' weights streamed")
    if profile:
        words.append(f"link {format_rate(profile['h2d_bytes_per_s'])}")
    yield f"{level} {run.name}\n\n{', '.join(words)}. {_source(run.file, run.environment)}"
    if run.origin == EMULATED:
        yield f"Emulated: {run.data['machine']}."
    yield run_table(run)
    notes = [
        *run.data.get("adapted", []),
        *(f"`{one['name']}` cannot run: {one['reason']}" for one in run.data.get("unable", [])),
        *(f"{one['policy']}: {note}" for one in run.data["policies"] for note in one["notes"]),
    ]
    if notes:
        yield "\n".join(f"- {note}" for note in dict.fromkeys(notes))
    if run.command:
        yield f"Again: `{run.command}`"


def _origin(data: dict[str, Any]) -> str:
    """Return whether a command's figures are measured, emulated or predicted."""
    policies = data.get("policies")
    first = policies[0] if isinstance(policies, list) and policies else {}
    return str(data.get("origin") or first.get("origin", MEASURED))


def _source(file: Path, where: dict[str, Any]) -> str:
    """Return where figures come from: file, hardware, versions, commit, date."""
    cuda = f"CUDA {where['cuda']}, " if where["cuda"] else ""
    return (
        f"[{file}]({_RESULTS}/{file}): {where['cpu']} ({where['cpu_cores']} cores), {cuda}torch "
        f"{where['torch']}, transformers {where['transformers']}, commit {where['commit']}, "
        f"{where['date'][:10]}."
    )


def _study(study: dict[str, Any]) -> str:
    """Return what a study comes to: each method's gain over ``stream``."""
    gain = (
        "latency_saved_over_stream"
        if study["objective"] == "latency"
        else "throughput_gained_over_stream"
    )
    methods = [name for name in study["cases"][0]["simulated"] if name != "stream"]
    head = ["model", "prompt", "new", *methods]
    rows = [
        [
            case["model"],
            f"{case['workload']['prompt_len']:,}",
            f"{case['workload']['generate_len']:,}",
            *(_signed(case["simulated"][name][gain], gain) for name in methods),
        ]
        for case in study["cases"]
    ]
    what = "time saved" if study["objective"] == "latency" else "throughput gained"
    words = f"### {study['title']}, {study['machine']}\n\nSimulated: {what} over `stream`. "
    return f"{words}{study['assumes']}\n\n{table(head, rows)}"


def _signed(value: float, gain: str) -> str:
    return written(value, ".1 %") if gain.startswith("latency") else f"+{written(value, '.0 %')}"


def _wrapped(paragraph: str) -> str:
    """Return a paragraph of words with lines of even length."""
    words = paragraph.replace("\n", " ")
    kept = textwrap.wrap(words, 104, break_long_words=False, break_on_hyphens=False)
    return "\n".join(kept).replace("\N{NO-BREAK SPACE}", " ")


def _code_blanked(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)
