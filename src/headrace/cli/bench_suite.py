"""``headrace bench NAME …``: workloads of the benchmark suite, with rivals in the same run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.bench.catalogue import CASES, SUITE, WORKLOADS, named_cases
from headrace.cli import machine, output
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.suite import SuiteOptions
    from headrace.cli.parser import Options

EMULATED = "a100-40gb-pcie4"
KEPT = (
    "names",
    "policies",
    "rounds",
    "steps",
    "rows",
    "prompt",
    "layers",
    "device",
    "dtype",
    "emulate",
)
"""Options of measuring that named workloads follow, too."""


def add_options(parser: Options) -> None:
    """Add what only named workloads have."""
    parser.add_argument(
        "--rivals",
        metavar="A,B",
        help="of named workloads: which of transformers' caches run beside, or none "
        "(default: as the workload says)",
    )
    parser.add_argument(
        "--narrow",
        type=int,
        default=1,
        metavar="N",
        help="of named workloads: layers that are N times narrower, with N times fewer heads",
    )
    parser.add_argument(
        "--page", metavar="FILE.html", help="of named workloads: write a page with pictures"
    )


def are_named(names: Sequence[str]) -> bool:
    """Return whether words name workloads, single cases or the suite, rather than a model.

    Raises:
        ConfigurationError: several were given, and some name nothing.
    """
    if len(names) == 1:
        return names[0] in (*WORKLOADS, *CASES, SUITE)
    if names:
        named_cases(list(names))
    return bool(names)


def run(args: argparse.Namespace) -> int:
    """Run named workloads."""
    from headrace.bench.figures import SCHEMA_VERSION, case_json, unable_json
    from headrace.bench.measurement import Unable
    from headrace.bench.suite import run_cases
    from headrace.bench.verdict import verdict, verdict_words
    from headrace.cli.bench_text import case_text
    from headrace.cli.measured import machine_words
    from headrace.engine.environment import environment
    from headrace.engine.loading import quiet_libraries

    quiet_libraries()
    cases, machines = named_cases(args.names), _options(args)
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "workloads": args.names,
        "environment": environment(),
        "verdict": verdict([]),
        "cases": [],
        "unable": [],
    }
    with output.Progress(args) as progress:
        for options in machines:
            for result in run_cases(cases, options, lambda line: _say(args, line), progress):
                if isinstance(result, Unable):
                    data["unable"].append(unable_json(result))
                    shown = f"{result.name} cannot run here: {result.reason}"
                else:
                    data["cases"].append(case_json(result))
                    shown = f"{case_text(result)}\non {machine_words(result.profile)}\n"
                _say(args, shown)
                data["verdict"] = verdict(data["cases"])
                _write(args, data)
    words = verdict_words(data["verdict"]) if data["cases"] else ["Nothing could run."]
    # What was found is on the terminal already, case by case.
    output.emit(args, data, "\n".join(words))
    return 0 if data["cases"] and data["verdict"]["passed"] else 1


def _say(args: argparse.Namespace, line: str) -> None:
    """Show what was found as soon as it is; with ``--json`` only the object at the end is."""
    if not args.json:
        print(line, file=getattr(args, "stdout", None), flush=True)


def _options(args: argparse.Namespace) -> list[SuiteOptions]:
    """Return how the cases are run: once for each machine that is emulated."""
    from headrace.bench.rivals import RIVALS
    from headrace.bench.suite import SuiteOptions
    from headrace.engine.loading import resolve_device
    from headrace.hardware.catalog import machine as published

    for setting in ("rows", "prompt", "rounds", "steps", "layers", "narrow"):
        value = getattr(args, setting)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{setting} is {value}; allowed is 1 up")
    on_cpu = resolve_device(machine.device(args)).type == "cpu"
    emulated: list[str | None] = [None]
    if on_cpu:
        emulated = [*(args.emulate or EMULATED).split(",")]
    for name in emulated:
        if name is not None:
            published(name)
    return [
        SuiteOptions(
            device=machine.device(args),
            dtype=args.dtype or "bfloat16",
            emulate=name,
            layers=args.layers,
            policies=_listed(args.policies, _policies(), "--policies"),
            rivals=() if args.rivals == "none" else _listed(args.rivals, RIVALS, "--rivals"),
            rounds=args.rounds,
            steps=args.steps,
            rows=args.rows,
            prompt_len=args.prompt,
            narrow=args.narrow,
        )
        for name in emulated
    ]


def _policies() -> list[str]:
    from headrace.plan.policies import Policy

    return [policy.value for policy in Policy]


def _listed(given: str | None, allowed: Any, option: str) -> tuple[str, ...] | None:
    """Return the words of a list, or None where none was given."""
    if given is None:
        return None
    words = tuple(given.split(","))
    for word in words:
        if word not in allowed:
            raise ConfigurationError(
                f"{option} is {given!r}; allowed are some of {', '.join(allowed)}, with commas "
                "between them"
            )
    return words


def _write(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """Write the files that were asked for; after every case, so that none is lost."""
    if args.output:
        Path(args.output).write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    if args.page:
        from headrace.report.bench_page import write_bench_page

        write_bench_page(Path(args.page), data)
