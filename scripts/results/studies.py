"""The simulated studies: what each method gains over ``stream``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .figures import written
from .runs import Files
from .tables import table

SIMULATED = "simulated"
"""The page that tells all of them."""

_RESULTS = "../../benchmarks/results"


def simulated(file: Path, data: dict[str, Any]) -> Iterator[str]:
    """Yield what the simulated studies come to."""
    beside = file.with_suffix(".md").as_posix()
    yield (
        f"{data['label'].capitalize()}. The whole of it, beside what the paper reports: "
        f"[{beside}]({_RESULTS}/{beside}). JSON: [{file}]({_RESULTS}/{file})."
    )
    for study in data["studies"]:
        what, key = _gain(study)
        methods = _methods(study)
        rows = [
            [
                case["model"],
                f"{case['workload']['prompt_len']:,}",
                f"{case['workload']['generate_len']:,}",
                *(_signed(case["simulated"][name][key], key) for name in methods),
            ]
            for case in study["cases"]
        ]
        yield (
            f"## {study['title']}, {study['machine']}\n\n"
            f"Simulated: {what} over `stream`. {study['assumes']}\n\n"
            f"{table(['model', 'prompt', 'new', *methods], rows)}"
        )


def _methods(study: dict[str, Any]) -> list[str]:
    """Return the methods that a study compares with ``stream``."""
    return [name for name in study["cases"][0]["simulated"] if name != "stream"]


def _gain(study: dict[str, Any]) -> tuple[str, str]:
    """Return what a study gains over ``stream``, in words, and the field that has it."""
    if study["objective"] == "latency":
        return "time saved", "latency_saved_over_stream"
    return "throughput gained", "throughput_gained_over_stream"


def _signed(value: float, key: str) -> str:
    """Return a gain of a study."""
    return written(value, ".1 %") if key.startswith("latency") else f"+{written(value, '.0 %')}"


def studies_table(files: Files) -> str:
    """Return what each study comes to, from the least to the most of its cases."""
    studies = [study for data in files.values() for study in data.get("studies", [])]
    every = list(dict.fromkeys(name for study in studies for name in _methods(study)))
    rows = []
    for study in studies:
        what, key = _gain(study)
        cells = []
        for name in every:
            values = [
                case["simulated"][name][key] for case in study["cases"] if name in case["simulated"]
            ]
            ends = (
                dict.fromkeys(_signed(end, key) for end in (min(values), max(values)))
                if values
                else ()
            )
            cells.append(" to ".join(ends))
        rows.append([study["title"], study["machine"], what, *cells])
    return table(["study", "machine", "over `stream`", *every], rows)
