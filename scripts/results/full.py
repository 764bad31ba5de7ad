"""The pages that tell everything of every run: one of each visit, linked from the results page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from headrace.units import format_bytes, format_rate

from .runs import EMULATED, Files, Run, is_check, runs_of
from .studies import SIMULATED, simulated
from .tables import audit_table, run_table, table

_RESULTS = "../../benchmarks/results"
_ABOUT = """Made by `make results` from the JSON files under
[benchmarks/results](../../benchmarks/results/README.md); what it comes to is on the
[results page](../results.md).

A row is a policy of headrace, or a rival, on the same work in the same run. *Predicted* is the
simulation of the same program with the profile's rates, made before; *bound* the least that those
rates allow for the work of that policy. *Over stream* and *over kvpr* say how many times as fast a
step is. The link's rate is while it is busy, as a share of the profile's. *Tokens* compares the
first tokens with the plain model's in the same run; errors are shares of the logits' range."""
_OF_ALL = """Made by `make results`, likewise. A visit is one session on one machine; what all of
them come to is on the [results page](../results.md)."""
_CHECKS = {
    "exactness": "Exactness on small models, audited on this machine",
    "experts": "Exactness of mixtures of experts",
    "weights": "Exactness with streamed weights",
    "rows": "Rows that come and go",
}


def full_pages(files: Files) -> dict[str, str]:
    """Return every page by its name.

    Args:
        files: what the files below ``benchmarks/results`` hold, by their place there.
    """
    parts: dict[str, list[str]] = {}
    for run in runs_of(files):
        parts.setdefault(run.page, [_title(run), _ABOUT]).extend(_run(run))
    for file, data in files.items():
        if is_check(data) and file.parent.as_posix() in parts:
            parts[file.parent.as_posix()].extend(_check(file, data))
    pages = {name: _text(*lines) for name, lines in parts.items()}
    pages["README"] = _text("# Every run of each visit", _OF_ALL, _list_of(runs_of(files)))
    if studies := [(file, data) for file, data in files.items() if "studies" in data]:
        pages[SIMULATED] = _text(
            "# Simulated", *(words for one in studies for words in simulated(*one))
        )
    return pages


def _list_of(runs: Iterable[Run]) -> str:
    """Return a row for each page: what ran, where, when, and of which works."""
    pages: dict[str, list[Run]] = {}
    for run in runs:
        pages.setdefault(run.page, []).append(run)
    rows = [
        [
            f"[{name}]({name}.md)",
            some[0].origin,
            some[0].machine,
            min(run.date for run in some)[:10],
            ", ".join(dict.fromkeys(run.name for run in some)),
        ]
        for name, some in sorted(pages.items())
    ]
    return table(["page", "how", "machine", "when", "works"], rows)


def _text(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _title(run: Run) -> str:
    if run.origin == EMULATED:
        return "# Emulated" if run.place is None else f"# {run.machine}, emulated"
    return f"# {run.environment['gpu'] or run.environment['cpu']}, {run.origin}: {run.visit}"


def _run(run: Run) -> Iterator[str]:
    """Yield what is said of a run."""
    work, profile = run.data["workload"], run.data.get("profile")
    layers = work.get("layers")
    words = [
        f"{run.model}" + (f", {layers} layers" if layers and run.work[1] is not None else ""),
        *([f"1/{work['narrow']} as wide"] if work.get("narrow", 1) > 1 else []),
        f"{work['rows']:,} rows × {work['prompt_len']:,} tokens",
    ]
    if run.gpu_memory is not None:
        words.append(f"within {format_bytes(run.gpu_memory)} of device memory")
    if work.get("weights_on_host"):
        words.append(f"{work['weights_on_host']:.0%} of the layers' weights streamed")
    if profile:
        words.append(f"link {format_rate(profile['h2d_bytes_per_s'])}")
    yield f"## {run.name}\n\n{', '.join(words)}. {_source(run.file, run.environment)}"
    if not run.holds:
        yield "**Its tokens are not the plain model's, so it counts nowhere.**"
    if run.origin == EMULATED:
        yield f"Emulated: {run.data['machine'].rstrip('.')}."
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


def _source(file: Path, where: dict[str, Any]) -> str:
    """Return where figures come from: file, hardware, versions, commit, date."""
    cuda = f"CUDA {where['cuda']}, " if where["cuda"] else ""
    return (
        f"[{file}]({_RESULTS}/{file}): {where['cpu']} ({where['cpu_cores']} cores), {cuda}torch "
        f"{where['torch']}, transformers {where['transformers']}, commit {where['commit']}, "
        f"{where['date'][:10]}."
    )


def _check(file: Path, data: dict[str, Any]) -> Iterator[str]:
    yield f"## {_CHECKS.get(file.stem, file.stem)}\n\n{_source(file, data['environment'])}"
    if "audits" in data:
        yield audit_table(data["audits"])
    else:
        same = [[way, "identical" if ok else "DIFFERENT"] for way, ok in data["rows"].items()]
        yield table(["policy", "tokens in company and alone"], same)
