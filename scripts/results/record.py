"""Run a command of headrace and keep what it found, for the documentation to quote.

    python -m scripts.results.record cpu/demo.json demo
    python -m scripts.results.record predicted/closed-forms.json --code docs/cost-model.md

The file, below ``benchmarks/results``, gets the command, the environment, the JSON that the command
gives with ``--json`` and, as ``text``, the lines that it prints without. With ``--code`` the Python
of a page is run instead; where it prints a table, ``rows`` has its cells, numbers where they are.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from headrace.cli import main as headrace
from headrace.cli import output

from .quoted import RESULTS, ROOT

_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"([\d.]+)(?: ×)?")


def record(file: str, words: list[str]) -> int:
    """Run a command and write its file; return its exit code."""
    found: dict[str, Any] = {}

    def keep(args: object, data: Mapping[str, Any], text: str) -> None:
        found.update({**data, "text": text.split("\n")})

    output.emit = keep
    code = headrace(words)
    if found:
        _write(file, f"headrace {' '.join(words)}", found)
    return code


def record_code(file: str, page: str) -> int:
    """Run the Python of a page and write what it prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        for code in _CODE.findall((ROOT / page).read_text("utf-8")):
            exec(compile(code, page, "exec"), {})
    lines = printed.getvalue().rstrip("\n").split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(_distinct(cells[0]), map(_cell, row), strict=True)) for row in cells[2:]]
    _write(file, f"the Python of {page}", {"origin": "predicted", "rows": rows, "text": lines})
    return 0


def _distinct(names: list[str]) -> list[str]:
    """Name a column that has the name of one before it after its neighbour on the left."""
    return [
        f"{name} of {names[n - 1]}" if name in names[:n] or names.count(name) > 1 else name
        for n, name in enumerate(names)
    ]


def _cell(text: str) -> str | float:
    match = _CELL.fullmatch(text)
    return float(match[1]) if match else text


def _write(file: str, command: str, found: Mapping[str, Any]) -> None:
    from headrace.engine.environment import environment

    target = ROOT / RESULTS / file
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {"schema_version": 1, "command": command, "environment": environment(), **found}
    target.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(words: list[str]) -> int:
    if len(words) < 2:
        raise SystemExit("usage: python -m scripts.results.record FOLDER/FILE.json COMMAND …")
    if words[1] == "--code":
        return record_code(words[0], words[2])
    return record(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
