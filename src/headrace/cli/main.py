"""The entry point: finds the command, and runs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from headrace import __version__
from headrace.cli import output
from headrace.cli.parser import Parser

COMMANDS = ("profile", "plan", "generate", "batch", "audit", "bench", "demo")
"""Each is a module here with ``add_parser(subparsers)`` and ``run(args) -> int``.

Such a module is imported for every command, so it imports torch and the like inside ``run``.
"""

_SPINS = "50000"
"""Looks of an idle OpenMP thread before it sleeps: a few hundred microseconds."""

_SUMMARY = "Exact LLM inference with the KV cache in host memory."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 only on success, 2 for input that is off.

    Args:
        argv: the words after ``headrace``; by default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _calm_openmp()
    return output.guarded(lambda: _run(words), as_json="--json" in words)


def build_parser(commands: dict[str, ModuleType]) -> Parser:
    """Return the parser of the command line with the given commands."""
    parser = Parser(prog="headrace", description=_SUMMARY)
    parser.add_argument("--version", action="version", version=f"headrace {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for command in commands.values():
        command.add_parser(subparsers)
    return parser


def _run(words: list[str]) -> int:
    commands = load_commands()
    args = build_parser(commands).parse_args(words)
    with output.reserved(args):
        return int(commands[args.command].run(args))


def load_commands() -> dict[str, ModuleType]:
    """Return the commands' modules by name."""
    return {name: importlib.import_module(f"headrace.cli.{name}") for name in COMMANDS}


def _calm_openmp() -> None:
    """Let OpenMP's idle threads sleep early. Must run before torch is imported.

    By default they spin. While one of ours copies, paces a link or attends, the spinning takes the
    core that it needs, and every parallel region of torch then stalls for about 5 ms: measured, ten
    times slower on two cores. Who sleeps at once, though, has to be woken for each of a layer's
    operations; this is for as long as they follow each other, but ends long before a load does. Who
    sets a policy of their own keeps it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
