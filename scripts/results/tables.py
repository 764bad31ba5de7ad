"""Tables of results, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from headrace.units import format_bytes

from .figures import written
from .runs import Run, name_of

Entry = dict[str, Any]
Column = tuple[str, Callable[[Run, Entry], str]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compact_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without the columns in which nothing stands; nothing without rows."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = [[row[place] for place in kept] for row in rows]
    return table([head[place] for place in kept], lines) if rows else ""


def step(seconds: float | None) -> str:
    """Return a step's time."""
    return "" if seconds is None else written(seconds, ".1 ms")


def share(value: float | None) -> str:
    """Return a share."""
    return "" if value is None else written(value, ".0 %")


def times(value: float | None) -> str:
    """Return a ratio."""
    return "" if value is None else written(value, ".2 ×")


def _over(name: str) -> Callable[[Run, Entry], str]:
    def ratio(run: Run, one: Entry) -> str:
        other = run.steps.get(name)
        return "" if other is None else times(other / one["step_s"])

    return ratio


def _link_share(run: Run, one: Entry) -> str:
    rate, profile = one.get("link_bytes_per_s"), run.data.get("profile")
    return share(rate / profile["h2d_bytes_per_s"]) if rate and profile else ""


def _error(run: Run, one: Entry) -> str:
    predicted = one.get("predicted_step_s")
    return "" if predicted is None else f"{predicted / one['step_s'] - 1:+.1%}".replace("%", " %")


def _bound_share(run: Run, one: Entry) -> str:
    return share(one["bound_s"] / one["step_s"]) if "bound_s" in one else ""


def _rate(run: Run, one: Entry) -> str:
    rows = run.data["workload"]["rows"]
    return f"{one.get('tokens_per_s', rows / one['step_s']):,.0f}"


def _exact(run: Run, one: Entry) -> str:
    """Return whether an entry's tokens are those of the run that it was compared with."""
    found = one.get("agreement")
    if found is None:
        compared = {other["agreement"]["compared_with"] for other in run.every if _agrees(other)}
        return "the others are compared with it" if name_of(one) in compared else ""
    verdict = "identical" if found["tokens_identical"] else "near ties differ"
    if not found["passed"]:
        verdict = "DIFFERENT"
    error = found["max_logit_error"]
    return verdict if error is None else f"{verdict}, {error:.1e} of {found['tolerance']:.1e}"


def _agrees(one: Entry) -> bool:
    return one.get("agreement") is not None


def _field(form: Callable[[float | None], str], key: str) -> Callable[[Run, Entry], str]:
    return lambda run, one: form(one.get(key))


_NAME: Column = ("", lambda run, one: name_of(one))
_SPLIT: tuple[Column, ...] = (
    ("resident", _field(share, "resident_fraction")),
    ("rebuilt", _field(share, "recompute_fraction")),
    ("by the host", _field(share, "host_fraction")),
)
_TIMES: tuple[Column, ...] = (
    ("step", _field(step, "step_s")),
    ("predicted", _field(step, "predicted_step_s")),
    ("off by", _error),
    ("bound", _field(step, "bound_s")),
    ("of bound", _bound_share),
)
_REST: tuple[Column, ...] = (
    ("over stream", _over("stream")),
    ("over kvpr", _over("kvpr")),
    ("tokens/s", _rate),
    ("link, of its rate", _link_share),
    ("peak on the device", lambda run, one: _peak(one)),
    ("tokens; logit error", _exact),
)
_QUOTED: tuple[Column, ...] = (
    ("policy", lambda run, one: name_of(one)),
    *_SPLIT[:2],
    ("step, measured", _field(step, "step_s")),
    ("predicted", _field(step, "predicted_step_s")),
    ("bound", _field(step, "bound_s")),
    ("link busy", _field(share, "link_busy")),
    ("speed", _over("stream")),
)


def _peak(one: Entry) -> str:
    return format_bytes(one["peak_gpu_bytes"]) if one.get("peak_gpu_bytes") else ""


def run_table(run: Run) -> str:
    """Return everything about a run; columns in which nothing stands are left out."""
    return _table(run, (_NAME, *_SPLIT, *_TIMES, *_REST), run.every)


def quoted_table(run: Run, names: Sequence[str]) -> str:
    """Return the table that other pages show.

    Args:
        run: what ran.
        names: policies and rivals in the order of the rows.

    Raises:
        ValueError: the run has not got one of them.
    """
    by_name = {name_of(one): one for one in run.every}
    lacking = [name for name in names if name not in by_name]
    if lacking:
        raise ValueError(f"{run.path} has no {lacking[0]!r}; it has {', '.join(by_name)}")
    return _table(run, _QUOTED, [by_name[name] for name in names])


def _table(run: Run, columns: Sequence[Column], entries: Sequence[Entry]) -> str:
    cells = [[cell(run, one) for _, cell in columns] for one in entries]
    return compact_table([name for name, _ in columns], cells)


def audit_table(audits: Sequence[Entry]) -> str:
    """Return what the audits of small models found."""
    rows = [
        [
            one["model"],
            one["dtype"],
            "passed" if one["passed"] else "FAILED",
            "identical" if all(way["tokens_identical"] for way in one["results"]) else "near ties",
            f"{max(way['max_logit_error'] for way in one['results']):.1e}",
            f"{one['tolerance']:.1e}",
        ]
        for one in audits
    ]
    return table(["model", "type", "verdict", "tokens", "worst logit error", "allowed"], rows)
