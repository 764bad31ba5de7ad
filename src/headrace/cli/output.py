"""The rules of output: results on standard output, everything else on standard error.

With ``--json`` standard output holds exactly one JSON object, also where a command fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.parser import Options

BAD_INPUT = 2
INTERRUPTED = 130
_NUMERIC = tuple("0123456789+-–")


def add_options(parser: Options) -> None:
    """Add ``--json`` and ``--quiet``, which every command has."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    group.add_argument("--quiet", action="store_true", help="show no progress")


def emit(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """Print a command's result, once: ``data`` with ``--json``, else ``text``.

    Args:
        args: what ``run`` was given.
        data: the result as JSON has it; numbers are finite.
        text: the same for people.
    """
    words = json.dumps(data, indent=2, allow_nan=False) if args.json else text
    print(words, file=getattr(args, "stdout", sys.stdout))


def finite(value: float) -> float | None:
    """Return a number, or None for one that JSON does not have."""
    return value if math.isfinite(value) else None


@contextmanager
def reserved(args: argparse.Namespace) -> Iterator[None]:
    """Keep standard output for ``emit``: with ``--json``, what others print goes to stderr."""
    args.stdout = sys.stdout
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """Run a command and return its exit code; errors that a user can mend become one line.

    Other exceptions pass: they are defects, and their traceback is wanted.

    Args:
        command: what to run.
        as_json: whether standard output holds JSON; then the error is an object there, too.
    """
    for stream in (sys.stdout, sys.stderr):
        # Bars and µs shall not stop a command on a terminal that has no such characters.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads has left (`headrace plan … | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _failed("KeyboardInterrupt", "interrupted", INTERRUPTED, as_json)
    except (HeadraceError, OSError) as error:
        return _failed(type(error).__name__, _message(error), BAD_INPUT, as_json)


def _failed(kind: str, message: str, code: int, as_json: bool) -> int:
    print(f"headrace: error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message}}, indent=2))
    return code


def _message(error: HeadraceError | OSError) -> str:
    """Return an error's message as one line."""
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"cannot use {os.fspath(error.filename)!r}: {error.strerror or error}"
    return " ".join(message.split())


class Progress:
    """Shows on standard error what is being done: in one line that changes, if it is a terminal.

    An instance is called with a line of text. Leaving it (``with``) clears the line.

    Args:
        args: what ``run`` was given; ``--quiet`` shows nothing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._quiet = args.quiet
        self._one_line = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._one_line and not self._quiet:
            self._write("\r\x1b[K")

    def __call__(self, text: str) -> None:
        """Show what is being done now."""
        if self._quiet:
            return
        if self._one_line:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{' '.join(text.split())[:width]}")
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with aligned columns; those of numbers are aligned to the right.

    Args:
        columns: the heads.
        rows: the cells, as many in each row as there are heads.
    """
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    numeric = [
        bool(rows) and all(not cell or cell.startswith(_NUMERIC) for cell in cells)
        for cells in (zip(*rows, strict=True) if rows else [() for _ in columns])
    ]
    lines = [columns, ["─" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
