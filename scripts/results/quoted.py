"""Does every figure in the documentation come from a result?"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .blocks import Block, CommentError, Source, blocks_of
from .figures import agrees, figures_in, in_unit_of
from .values import ValueNotFoundError, number_of

ROOT = Path(__file__).parents[2]
RESULTS = Path("benchmarks/results")
HELP = f"""
A result gets its source in a comment in the same paragraph or table, without an empty line between:
<!-- figures
from FOLDER/FILE.json
235.3 ms = policies[auto].step_s
-->
What is no result (an example, a setting, a tolerance) is said there to be one: 80 %: a setting
A command's output has before its fence: <!-- output of FOLDER/FILE.json -->
More: {RESULTS}/README.md"""
"""What to do about a complaint."""

_NOTES = Path("docs/log.md")
GENERATED, PAGES = Path("docs/results.md"), Path("docs/results")
"""What is made from results: the page, and the folder of the pages of every run."""


def pages(root: Path) -> list[Path]:
    """Return the pages whose figures must come from a result.

    The log is left out, since its figures are notes of single runs and it says so; the results'
    pages are generated.
    """
    found = [
        Path("README.md"),
        *sorted(page.relative_to(root) for page in root.glob("docs/**/*.md")),
    ]
    left_out = (_NOTES, GENERATED)
    return [page for page in found if page not in left_out and PAGES not in page.parents]


def complaints(root: Path, page: Path) -> list[str]:
    """Return what is wrong with a page's figures, a line each.

    Args:
        root: of the repository.
        page: below it.
    """
    try:
        blocks = list(blocks_of((root / page).read_text("utf-8")))
    except CommentError as error:
        return [f"{page}: {error}"]
    found = []
    for block in blocks:
        check = _output if block.output_of else _figures
        found += [f"{page}:{block.line}: {words}" for words in check(root, block)]
    return found


def _output(root: Path, block: Block) -> Iterator[str]:
    """Yield what is not quoted rightly of a command's output: gaps are lines of … alone."""
    try:
        recorded = _words("\n".join(_load(root, block.output_of)["text"]))
    except (ValueNotFoundError, KeyError) as error:
        yield f"{block.output_of} holds no output of a command: {error}"
        return
    place = 0
    for part in re.split(r"^\s*…\s*$", block.text, flags=re.MULTILINE):
        at = recorded.find(_words(part), place)
        if at < 0:
            line = next(
                (line for line in part.strip().split("\n") if _words(line) not in recorded), part
            )
            yield (
                f"{line.strip()!r} is not what {block.output_of} has there; take the lines from "
                "it, and put a line with … where some are left out"
            )
            return
        place = at + len(_words(part))


def _words(text: str) -> str:
    return " ".join(text.split())


def _figures(root: Path, block: Block) -> Iterator[str]:
    """Yield which figures of a block have no source, another value, or a source too many."""
    seen = Counter(figure.text for figure in figures_in(block.text))
    given = {source.figure for source in block.sources if not source.file}
    claimed = Counter(source.figure for source in block.sources if source.file)
    for figure, count in seen.items():
        if figure not in given and claimed[figure] < count:
            yield _unsourced(figure, count, claimed[figure])
    for source in block.sources:
        if source.figure not in seen:
            near = ", ".join(seen) or "none"
            yield f"the comment names {source.figure!r}, which is not in this block; there: {near}"
        elif source.file:
            yield from _disagreement(root, source)
    for figure, count in claimed.items():
        if figure in seen and count > seen[figure]:
            yield f"the comment has {figure!r} {count} times, the text {seen[figure]} times"


def _disagreement(root: Path, source: Source) -> Iterator[str]:
    try:
        value = number_of(source.expression, _load(root, source.file))
    except ValueNotFoundError as error:
        yield f"{source.figure!r}: in {source.file}, {error}"
        return
    if not agrees(source.figure, value):
        yield (
            f"{source.figure!r} is {in_unit_of(source.figure, value)} by {source.file}, "
            f"{source.expression}"
        )


def _unsourced(figure: str, count: int, claimed: int) -> str:
    often = f" (here {count} times, {claimed} with a source)" if count > 1 else ""
    return f"{figure!r}{often} has no source"


def _load(root: Path, file: str) -> Any:
    path = root / RESULTS / file
    if not path.is_file():
        raise ValueNotFoundError(f"there is no file {RESULTS / file}")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed_ns: int) -> Any:
    return json.loads(path.read_text("utf-8"))
