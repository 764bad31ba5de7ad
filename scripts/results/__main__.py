"""Write the results page, its pictures, and the tables of results that other pages show.

    python -m scripts.results            # or: make results

With ``--check`` nothing is written. Exits 1 if a figure in the documentation has no source, and
with ``--check`` also if something would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .blocks import TABLE
from .page import TEMPLATE, Page
from .quoted import HELP, RESULTS, ROOT, complaints, pages
from .runs import Run, load, runs_of
from .tables import quoted_table

TARGET, IMAGES = Path("docs/results.md"), Path("docs/img")
_PICTURES = "results-*.svg"


def generated(root: Path) -> dict[Path, str]:
    """Return the text of every file that is made from results, by its place in the repository."""
    files = load(root / RESULTS)
    page = Page(files, TEMPLATE.read_text("utf-8"))
    made = {TARGET: page.text() + "\n"}
    made |= {IMAGES / name: picture for name, picture in page.pictures.items()}
    runs = {run.file.as_posix(): run for run in runs_of(files) if run.place is None}
    return made | {path: _with_tables(root, path, runs) for path in pages(root)}


def _with_tables(root: Path, page: Path, runs: dict[str, Run]) -> str:
    """Return a page with its generated tables made anew."""
    text = (root / page).read_text("utf-8")
    for match in list(TABLE.finditer(text)):
        file, names = match["file"], [name.strip() for name in match["names"].split(",")]
        if file not in runs:
            raise ValueError(
                f"{page}: there is no run in {RESULTS / file}; allowed: {', '.join(runs)}"
            )
        head = match[0].partition("\n")[0]
        table = f"{head}\n\n{quoted_table(runs[file], names)}\n\n<!-- end of table -->"
        text = text.replace(match[0], table)
    return text


def changed(root: Path) -> dict[Path, str]:
    """Return the files that are not what the results make of them, with what they should be."""
    made = generated(root)
    return {path: text for path, text in made.items() if _now(root / path) != text}


def _now(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def leftover(root: Path) -> list[Path]:
    """Return pictures of results that are no longer made."""
    made = generated(root)
    found = [path.relative_to(root) for path in sorted((root / IMAGES).glob(_PICTURES))]
    return [path for path in found if path not in made]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts.results", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    writes, removes = changed(ROOT), leftover(ROOT)
    for path in removes:
        print(f"{path}: {'would be removed' if args.check else 'removed'}")
    for path, text in writes.items():
        print(f"{path}: {'would change' if args.check else 'written'}")
        if not args.check:
            (ROOT / path).write_text(text, "utf-8")
    if not args.check:
        for path in removes:
            (ROOT / path).unlink()
    found = [words for page in pages(ROOT) for words in complaints(ROOT, page)]
    print("\n".join([*found, HELP] if found else ["Every figure has its source."]))
    return 1 if found or (args.check and (writes or removes)) else 0


if __name__ == "__main__":
    sys.exit(main())
