"""Markdown pages as blocks: paragraphs, tables and fenced text, with what their comments say.

A comment belongs to the block that it touches, without an empty line between them. Three kinds are
read, see ``benchmarks/results/README.md``::

    <!-- figures              where a paragraph's or table's figures come from
    from FOLDER/FILE.json
    FIGURE = EXPRESSION
    FIGURE: what it is, if it is no result
    -->
    <!-- output of FOLDER/FILE.json -->              before fenced text: what a command wrote
    <!-- table of FOLDER/FILE.json: NAME, NAME -->   a table that is generated, up to
    <!-- end of table -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*(\w*)")
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_TARGET = re.compile(r"\]\([^)\s]*\)")
_INDENTED = re.compile(r"(?:(?: {4}.*)\n?)+")
_TAG = re.compile(r"</?[a-z][^>]*>")
TABLE = re.compile(
    r"<!-- table of (?P<file>\S+): (?P<names>[^>]+?) -->\n(?P<table>.*?)<!-- end of table -->",
    re.DOTALL,
)
"""A generated table."""


class CommentError(ValueError):
    """A comment about figures cannot be read."""


@dataclass(frozen=True)
class Source:
    """Where a figure comes from, as a comment says.

    Attributes:
        figure: as it is written on the page.
        file: the result's file below ``benchmarks/results``; empty for a figure that is no result.
        expression: the value's, in the file; of a figure that is no result: what it is.
    """

    figure: str
    file: str
    expression: str


@dataclass
class Block:
    """A part of a page.

    Attributes:
        line: its first line, from 1.
        text: what a reader sees, as far as it may hold figures: code, targets of links and
            comments are blanked out. Of fenced text all of it, of fenced code nothing.
        fenced: whether it is fenced text.
        sources: where its figures come from.
        output_of: the file whose text it quotes, or empty.
    """

    line: int
    text: str
    fenced: bool = False
    sources: list[Source] = field(default_factory=list)
    output_of: str = ""


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, without generated tables.

    Raises:
        CommentError: a comment about figures cannot be read; the message says which.
    """
    page = TABLE.sub(lambda match: "\n" * match[0].count("\n"), page)
    above = ""
    for line, language, raw in _pieces(page.split("\n")):
        if not language:
            block = Block(line, "" if _INDENTED.fullmatch(raw) else _seen(raw))
            _read(block, raw)
            if block.text.strip() or block.sources:
                yield block
        elif language == "text":
            block = Block(line, raw, fenced=True)
            _read(block, above)
            yield block
        above = raw if not language else ""


def _pieces(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield first line, language and text of each piece; a piece of prose has no language.

    Where an empty line ends a piece, an empty one follows it.
    """
    piece: list[str] = []
    start, fence, language = 1, "", ""
    for number, line in enumerate([*lines, ""], start=1):
        match = _FENCE.match(line)
        closes = bool(fence and match and match[1].startswith(fence) and not match[2])
        opens = bool(match and not fence)
        if not (closes or opens or (not fence and not line.strip() and not _open(piece))):
            piece.append(line)
            continue
        yield start, language, "\n".join(piece)
        if not closes and not opens:
            yield number, "", ""
        fence, language = (match[1], match[2] or "text") if match and opens else ("", "")
        piece, start = [], number + 1


def _open(piece: list[str]) -> bool:
    """Return whether a comment is still open at the end of a piece."""
    text = "\n".join(piece)
    return text.rfind("<!--") > text.rfind("-->")


def _seen(raw: str) -> str:
    """Blank out code, targets of links, comments and tags, but keep the lines."""
    for pattern in (_COMMENT, _CODE, _TARGET, _TAG):
        raw = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), raw)
    return raw


def _read(block: Block, raw: str) -> None:
    """Note what the comments of a piece say about figures."""
    for comment in _COMMENT.findall(raw):
        kind, _, rest = comment.strip().partition(" ")
        first = comment.split()[0] if comment.split() else ""
        if first == "figures":
            block.sources += _sources(comment.strip().removeprefix("figures"), block.line)
        elif kind == "output":
            if not rest.startswith("of "):
                raise CommentError(f"line {block.line}: a comment says 'output', but not of what")
            block.output_of = rest.removeprefix("of ").strip()


def _sources(words: str, line: int) -> Iterator[Source]:
    file = ""
    for entry in filter(None, (part.strip() for part in words.split("\n"))):
        if entry.startswith("from "):
            file = entry.removeprefix("from ").strip()
            continue
        figure, equals, expression = (part.strip() for part in entry.partition(" = "))
        if equals and not file:
            raise CommentError(f"line {line}: {entry!r} needs a line 'from FOLDER/FILE.json' above")
        if equals:
            yield Source(figure, file, expression)
            continue
        figure, colon, words = (part.strip() for part in entry.partition(":"))
        if not colon or not words:
            raise CommentError(
                f"line {line}: {entry!r} is neither 'from FOLDER/FILE.json' nor 'FIGURE = "
                "EXPRESSION' nor 'FIGURE: what it is'"
            )
        yield Source(figure, "", words)
