"""Figures in a text: where they are, and whether they are what a value rounds to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBER = r"(?<![\w.,-])[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+−-]?\d+)?"
_UNITS = {
    "×": 1.0,
    "times": 1.0,
    "%": 1e2,
    "s": 1.0,
    "ms": 1e3,
    "µs": 1e6,
    "ns": 1e9,
    "tokens/s": 1.0,
    "J": 1.0,
    "W": 1.0,
}
_UNITS |= {
    f"{prefix}{unit}": 1 / 1000**power
    for unit in ("B", "B/s", "FLOP/s")
    for power, prefix in enumerate("KMGTP", start=1)
}
_UNITS |= {f"{prefix}iB": 1 / 1024**power for power, prefix in enumerate("KMGT", start=1)}
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_FIGURE = re.compile(rf"(?P<number>{_NUMBER})(?:\s?(?P<unit>{_UNIT})(?![\w/]))?")
_PRODUCT = re.compile(r"×\s*\d")
_NAMES = re.compile(r"\b(?:PCIe|torch|transformers|Python|CUDA|arXiv|headrace)\s\[?\d[\d.]*")


@dataclass(frozen=True)
class Figure:
    """A figure in a text.

    Attributes:
        text: as it is written, with its unit.
        start: where it begins.
    """

    text: str
    start: int


def figures_in(text: str) -> Iterator[Figure]:
    """Yield what looks like a measurement: a number with a unit, or with a decimal point.

    A factor of a product (``64 × 1,024``), versions (``PCIe 4.0``) and names (``OPT-6.7B``) do not.
    """
    names = [match.span() for match in _NAMES.finditer(text)]
    for match in _FIGURE.finditer(text):
        number, unit = match["number"], match["unit"]
        if any(start <= match.start() < end for start, end in names):
            continue
        if unit == "×" and _PRODUCT.match(text, match.start("unit")):
            unit = None
        if unit is None and "." not in number and "e" not in number:
            continue
        end = match.end("unit") if unit else match.end("number")
        yield Figure(" ".join(text[match.start() : end].split()), match.start())


def agrees(figure: str, value: float) -> bool:
    """Return whether a value in SI units, rounded to the digits of a figure, is that figure.

    Args:
        figure: such as ``235.3 ms``, ``2.57 ×``, ``3.2e-07``; without a unit the bare value.
        value: seconds, bytes, shares from 0 to 1 (for ``%``) and so on.

    Raises:
        ValueError: it is no figure.
    """
    quoted, unit, step = _parts(figure)
    return abs(value * _UNITS.get(unit, 1.0) - quoted) <= step * (0.5 + 1e-6)


def in_unit_of(figure: str, value: float) -> str:
    """Return a value with the unit of a figure, a digit more than it has."""
    _, unit, _ = _parts(figure)
    return f"{value * _UNITS.get(unit, 1.0):.6g} {unit}".strip()


def written(value: float, form: str) -> str:
    """Return a value in a form such as ``.1 ms``: digits after the point, and a unit."""
    digits, _, unit = form.partition(" ")
    if not re.fullmatch(r"\.\d(?:e)?", digits) or (unit and unit not in _UNITS):
        raise ValueError(f"{form!r} is no form; such are '.1 ms', '.0 %', '.2 ×', '.1e'")
    kind = digits if digits.endswith("e") else f",{digits}f"
    return f"{value * _UNITS.get(unit, 1.0):{kind}} {unit}".strip()


def _parts(figure: str) -> tuple[float, str, float]:
    """Return the number of a figure, its unit, and what its last digit counts."""
    match = _FIGURE.fullmatch(figure)
    if match is None:
        raise ValueError(f"{figure!r} is no figure")
    plain = match["number"].replace(",", "").replace("−", "-")
    mantissa, _, exponent = plain.partition("e")
    digits = len(mantissa.partition(".")[2])
    return float(plain), match["unit"] or "", 10.0 ** (int(exponent or 0) - digits)
