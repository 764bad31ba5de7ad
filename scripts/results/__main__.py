"""Write the pages of results, their pictures, and the tables of results on other pages.

    python -m scripts.results            # or: make results

With ``--check`` nothing is written. Exits 1 if a figure in the documentation has no source, and
with ``--check`` also if something would be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .blocks import TABLE
from .full import full_pages
from .page import TEMPLATE, Page
from .png import draw_png, drawn_from, hash_of
from .quoted import GENERATED, HELP, PAGES, RESULTS, ROOT, complaints, pages
from .runs import Run, load, runs_of
from .tables import quoted_table

IMAGES = Path("docs/img")


def generated(root: Path) -> dict[Path, str]:
    """Return the text of every file that is made from results, by its place in the repository."""
    files = load(root / RESULTS)
    page = Page(files, TEMPLATE.read_text("utf-8"))
    made = {GENERATED: page.text() + "\n"}
    made |= {IMAGES / name: picture for name, picture in page.pictures.items()}
    made |= {PAGES / f"{name}.md": text for name, text in full_pages(files).items()}
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
    """Return the texts that are not what the results make of them, with what they should be."""
    made = generated(root)
    return {path: text for path, text in made.items() if _now(root / path) != text}


def _now(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def undrawn(root: Path) -> dict[Path, str]:
    """Return the PNGs that were not drawn from the SVG of the results, with that SVG."""
    svgs = {path: text for path, text in generated(root).items() if path.suffix == ".svg"}
    pngs = {path.with_suffix(".png"): text for path, text in svgs.items()}
    return {
        path: svg
        for path, svg in pngs.items()
        if not (root / path).is_file() or drawn_from((root / path).read_bytes()) != hash_of(svg)
    }


def leftover(root: Path) -> list[Path]:
    """Return pictures and pages of results that are no longer made."""
    made = set(generated(root))
    made |= {path.with_suffix(".png") for path in made if path.suffix == ".svg"}
    there = [
        *(root / IMAGES).glob("results-*.svg"),
        *(root / IMAGES).glob("results-*.png"),
        *(root / PAGES).glob("**/*.md"),
    ]
    return sorted({path.relative_to(root) for path in there} - made)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts.results", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    writes, draws, removes = changed(ROOT), undrawn(ROOT), leftover(ROOT)
    for words, paths in (("written", writes), ("drawn", draws), ("removed", removes)):
        for path in paths:
            print(f"{path}: {'would be ' if args.check else ''}{words}")
    if not args.check:
        _write(writes, draws, removes)
    found = [words for page in pages(ROOT) for words in complaints(ROOT, page)]
    print("\n".join([*found, HELP] if found else ["Every figure has its source."]))
    return 1 if found or (args.check and (writes or draws or removes)) else 0


def _write(writes: dict[Path, str], draws: dict[Path, str], removes: list[Path]) -> None:
    for path, text in writes.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, "utf-8")
    for path in removes:
        (ROOT / path).unlink()
    for path, svg in draws.items():
        try:
            (ROOT / path).write_bytes(draw_png(svg))
        except RuntimeError as error:
            sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    sys.exit(main())
