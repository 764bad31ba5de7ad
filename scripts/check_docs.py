"""Check that every relative link in the documentation leads to a file, and to a heading in it.

Read are README.md and CHANGELOG.md at the root and every Markdown file under docs/. Links to
other sites are not followed. Exits 1, with one line for each link that is broken.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_HTML_ANCHOR = re.compile(r"""<[^>]+\s(?:id|name)=["']([^"']+)["']""")
_LINKS = (
    re.compile(r"""\]\(\s*<?([^)\s>]+)>?(?:\s+["'(][^)]*)?\)"""),  # [text](target "title")
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?"),  # [label]: target
    re.compile(r"""<[^>]+\s(?:href|src)=["']([^"']+)["']"""),  # <img src="target">
)
_OTHER_SITE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


class Link(NamedTuple):
    """A link, and where it stands."""

    page: Path
    line: int
    target: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    root = parser.parse_args(arguments).root.resolve()

    pages = find_pages(root)
    links = [link for page in pages for link in relative_links(page)]
    complaints = [(link, complaint) for link in links if (complaint := check(link, root))]
    for link, complaint in complaints:
        print(f"{link.page.relative_to(root)}:{link.line}: {link.target}: {complaint}")
    print(f"{len(pages)} pages, {len(links)} relative links, {len(complaints)} broken")
    return 1 if complaints else 0


def find_pages(root: Path) -> list[Path]:
    """Return the Markdown files that make up the documentation."""
    at_root = [root / name for name in ("README.md", "CHANGELOG.md")]
    return [page for page in at_root if page.is_file()] + sorted(root.glob("docs/**/*.md"))


def relative_links(page: Path) -> Iterator[Link]:
    """Yield the links of a page that lead into the repository."""
    for number, line in prose_lines(page):
        text = _CODE_SPAN.sub("", line)
        for pattern in _LINKS:
            for match in pattern.finditer(text):
                if not _OTHER_SITE.match(match[1]):
                    yield Link(page, number, match[1])


def prose_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page that are outside fenced code."""
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif match:
            fence = match[1]
        else:
            yield number, line


def check(link: Link, root: Path) -> str | None:
    """Return what is wrong with a link, or None."""
    path, _, anchor = unquote(link.target).partition("#")
    target = (link.page.parent / path).resolve() if path else link.page
    if not target.is_relative_to(root):
        return "leads out of the repository"
    if not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"no such heading in {target.relative_to(root)}"
    return None


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page, headings named as GitHub names them."""
    found: set[str] = set()
    for _, line in prose_lines(page):
        found.update(_HTML_ANCHOR.findall(line))
        if heading := _HEADING.match(line):
            slug = anchor_of(heading[1])
            repeat = 0
            unique = slug
            while unique in found:
                repeat += 1
                unique = f"{slug}-{repeat}"
            found.add(unique)
    return frozenset(found)


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    kept = re.sub(r"[^\w\- ]", "", text.strip().lower())
    return kept.replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
