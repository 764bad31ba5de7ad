"""What the pages have in common: what is around their bodies, lists of facts, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

_NUMERIC = tuple("0123456789+-−≥≤–")


def page_html(
    body: str, title: str, styles: Sequence[str], scripts: Sequence[str], **places: str
) -> str:
    """Return a page that needs nothing but a browser.

    Args:
        body: the file in ``assets/report`` with what is particular to the page; it may name
            ``$title``, too.
        title: the page's, as text.
        styles: files of style besides the one that all pages have.
        scripts: files that make one module together.
        places: HTML for the places of ``body``.
    """
    shown = escape(title)
    return Template(_asset("page.html")).substitute(
        title=shown,
        style="".join(map(_asset, ("base.css", *styles))),
        body=Template(_asset(body)).substitute(title=shown, **places).rstrip("\n"),
        script="\n".join(map(_asset, scripts)),
    )


def _asset(name: str) -> str:
    return files("headrace").joinpath("assets", "report", name).read_text("utf-8")


def facts_html(facts: Mapping[str, str]) -> str:
    """Return facts by name as a list; nothing if there are none."""
    if not facts:
        return ""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def table_html(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a table with the columns of all rows; nothing if there are none."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    numeric = {column for column in columns if all(_is_number(row.get(column)) for row in rows)}
    head = "".join(
        f'<th scope="col"{_align(column in numeric)}>{escape(str(column))}</th>'
        for column in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_align(column in numeric)}>{escape(_words(row.get(column)))}</td>"
            for column in columns
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _align(number: bool) -> str:
    return ' class="number"' if number else ""


def _is_number(value: object) -> bool:
    """Return whether a cell is a number, a text that starts with one, or empty."""
    return value is None or (not isinstance(value, bool) and _words(value)[:1] in _NUMERIC)


def _words(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
    return str(value)
