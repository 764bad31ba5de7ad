"""``headrace bench --simulate paper``: KVPR's experiments, simulated, beside what it reports."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.cli import output
from headrace.errors import ConfigurationError
from headrace.plan.paper import CITATION, Case, Method, Reported, Study, studies
from headrace.plan.reproduction import Row, Simulated, methods, simulate_study

STUDIES = ("paper",)

_NOTHING = "–"
_SIMULATED = "simulated, from data sheets: nothing of them was run"
_WORDS = {
    Method.SYNCHRONOUS: "full transfer, nothing beside it: each load and kernel waits for the last",
    Method.STREAM: "full transfer, overlapped with everything; percentages are against this",
    Method.PAPER: "the paper's schedule, with the best split at every step (it keeps X and K/V)",
    Method.RECOMPUTE: "ours: X and K/V interleaved, with look-ahead; the split fixed at admission",
    Method.AUTO: "ours: the planner's choice, the host's cores not used",
    Method.AUTO_HOST: "ours: the planner's choice, the host's cores attend too",
    Method.AUTO_FREE: "ours: the planner's choice of everything; all device memory may be used",
}
_HEADS = {
    Method.SYNCHRONOUS: "synchronous",
    Method.STREAM: "stream",
    Method.PAPER: "paper (kvpr)",
    Method.RECOMPUTE: "recompute",
    Method.AUTO: "auto",
    Method.AUTO_HOST: "auto + host",
    Method.AUTO_FREE: "auto, free",
}

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
Results = Mapping[Study, Sequence[Row]]


def run(args: argparse.Namespace) -> int:
    """Simulate the study that ``args.simulate`` names; no torch is imported."""
    if args.simulate not in STUDIES:
        raise ConfigurationError(
            f"--simulate is {args.simulate!r}; allowed is {', '.join(STUDIES)}"
        )
    path = None if args.output is None else Path(args.output)
    if path is not None and path.suffix not in (".json", ".md"):
        raise ConfigurationError(
            f"--output is {args.output!r}; with --simulate allowed are FILE.json and FILE.md"
        )
    with output.Progress(args) as progress:
        results = {study: list(simulate_study(study, progress)) for study in studies()}
    data = to_json(results)
    if path is not None:
        as_json = path.suffix == ".json"
        words = json.dumps(data, indent=2) if as_json else markdown(results)
        path.write_text(words + "\n", "utf-8")
    output.emit(args, data, text(results))
    return 0


def to_json(results: Results) -> dict[str, Any]:
    """Return all studies as a JSON-compatible dictionary."""
    return {
        "schema_version": 1,
        "study": "paper",
        "origin": "predicted",
        "label": _SIMULATED,
        "paper": CITATION,
        "methods": {method.value: words for method, words in _WORDS.items()},
        "studies": [_study_json(study, rows) for study, rows in results.items()],
    }


def text(results: Results) -> str:
    """Return all studies as tables, for a terminal."""
    return "\n".join(_lines(results, output.table, heading=""))


def markdown(results: Results) -> str:
    """Return all studies as a Markdown page."""
    lines = ["# The experiments of KVPR's paper, simulated", ""]
    return "\n".join([*lines, *_lines(results, _markdown_table, heading="## ")])


def _lines(results: Results, table: Table, heading: str) -> Iterator[str]:
    yield _wrapped(f"All figures but those under “reported” are {_SIMULATED}.")
    yield ""
    yield _wrapped(f"Reported figures are the authors' measurements: {CITATION}.")
    yield ""
    yield table(("column", "what it is"), [(_HEADS[one], words) for one, words in _WORDS.items()])
    for study, rows in results.items():
        yield ""
        yield f"{heading}{study.title}"
        yield ""
        yield f"{_setting(study)}."
        yield study.assumes
        yield ""
        compared = methods(study)
        heads = ["model", "prompt", "new", *(_HEADS[one] for one in compared), "reported"]
        yield table(heads, [_cells(study, row, compared) for row in rows])
        yield ""
        if any(not one.feasible for row in rows for one in row.methods.values()):
            yield "* needs more memory than the machine has."
            yield ""
        yield _wrapped(study.differs)


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 100)


def _setting(study: Study) -> str:
    workload = study.cases[0].workload
    rows = f"{workload.rows} rows"
    if workload.batches > 1:
        rows += f" ({workload.batches} batches of {workload.rows // workload.batches})"
    what = "seconds of all decode steps" if study.keeps_weights else "tokens/s while decoding"
    return f"{study.machine}, {rows}: {what}"


def _cells(study: Study, row: Row, compared: Sequence[Method]) -> list[str]:
    workload = row.case.workload
    return [
        row.case.model,
        str(workload.prompt_len),
        str(workload.generate_len),
        *(_cell(study, row, row.methods[method]) for method in compared),
        _reported(row.case.reported),
    ]


def _cell(study: Study, row: Row, one: Simulated) -> str:
    mark = "" if one.feasible else " *"
    if study.keeps_weights:
        value, change = f"{one.decode_s:.2f} s", -row.saving(one.method)
    else:
        value, change = f"{one.tokens_per_s:.1f}", row.gain(one.method)
    compared = "" if one.method is Method.STREAM else f" {change:+.1%}"
    return f"{value}{compared.replace('-', '−')}{mark}"


def _reported(reported: Reported | None) -> str:
    if reported is None:
        return _NOTHING
    share = f"{reported.share:.1%}"
    return (
        f"up to +{share} over {reported.baseline}"
        if reported.is_maximum
        else (f"−{share} against {reported.baseline}")
    )


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _study_json(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "key": study.key,
        "title": study.title,
        "origin": "predicted",
        "machine": study.machine,
        "assumes": study.assumes,
        "objective": study.objective.value,
        "cases": [_case_json(row.case, row) for row in rows],
        "differs": study.differs,
    }


def _case_json(case: Case, row: Row) -> dict[str, Any]:
    reported = case.reported
    return {
        "model": case.model,
        "workload": asdict(case.workload),
        "simulated": {
            method.value: {
                "decode_s": one.decode_s,
                "tokens_per_s": one.tokens_per_s,
                "latency_saved_over_stream": row.saving(method),
                "throughput_gained_over_stream": row.gain(method),
                "policy": one.policy.value,
                "schedule": one.schedule.value,
                "split": asdict(one.split),
                "weights_streamed": one.weights_streamed,
                "feasible": one.feasible,
            }
            for method, one in row.methods.items()
        },
        "reported": None
        if reported is None
        else {**asdict(reported), "origin": "measured by the paper's authors"},
    }
