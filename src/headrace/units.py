"""Sizes and rates: read what a person writes, write what a person reads.

Memory is counted in powers of 1024 (GiB), rates in powers of 1000 (GB/s), as datasheets do.
"""

import math
import re
from fractions import Fraction

from headrace.errors import ConfigurationError

_BYTES_IN = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BYTES_IN_FOLDED = {unit.casefold(): count for unit, count in _BYTES_IN.items()}

# The digits are limited so that no text makes a number of unreasonable length.
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def parse_bytes(size: str | int | float, *, setting: str = "size") -> int:
    """Return a size in bytes, to the nearest whole one.

    Args:
        size: A count of bytes, or text such as ``"16GiB"``, ``"8 GB"`` or ``"4096"``. KiB, MiB,
            GiB and TiB are powers of 1024, KB, MB, GB and TB powers of 1000; upper and lower
            case are the same; without a unit the count is of bytes.
        setting: What the size is for, as the error message shall name it.

    Raises:
        ConfigurationError: ``size`` is negative, not finite, or not a size at all.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip())
        unit_bytes = _BYTES_IN_FOLDED.get(match[2].casefold() or "b") if match else None
        if match and unit_bytes:
            return round(Fraction(match[1]) * unit_bytes)
    elif not isinstance(size, bool) and math.isfinite(size) and size >= 0:
        return round(size)
    raise ConfigurationError(
        f"{setting} is {size!r}, which is not a size; give a count of bytes that is not negative, "
        f"or a number and one of the units {', '.join(_BYTES_IN)}, "
        f'for example "16GiB", "8 GB" or 17179869184'
    )


def format_bytes(size_bytes: float) -> str:
    """Return a size in powers of 1024, such as ``16.0 GiB``; below 1 KiB it is ``512 B``."""
    if math.isfinite(size_bytes):
        size_bytes = round(size_bytes)
        if abs(size_bytes) < 1024:
            return f"{size_bytes} B"
    return _scaled(size_bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"])


def format_rate(bytes_per_s: float) -> str:
    """Return a transfer rate in powers of 1000, such as ``25.3 GB/s``."""
    return _scaled(bytes_per_s, 1000, ["B/s", "KB/s", "MB/s", "GB/s", "TB/s"])


def format_flops(flops_per_s: float) -> str:
    """Return an arithmetic rate, such as ``312.0 TFLOP/s``."""
    units = ["FLOP/s", "KFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"]
    return _scaled(flops_per_s, 1000, units)


def format_seconds(duration_s: float) -> str:
    """Return a duration, such as ``12.3 ms``; the units are ns, µs, ms and s."""
    if duration_s == 0 or not math.isfinite(duration_s):
        return f"{duration_s:g} s"
    return _scaled(duration_s * 1e9, 1000, ["ns", "µs", "ms", "s"])


def format_ratio(ratio: float) -> str:
    """Return how many times as much something is: ``1.85 ×``."""
    return f"{ratio:.2f} ×"


def format_count(count: float) -> str:
    """Return a count: ``131,072`` in full below a million, then such as ``6.7 billion``."""
    if not math.isfinite(count) or round(abs(count)) < 10**6:
        return f"{count:,.0f}"
    return _scaled(count / 10**6, 1000, ["million", "billion", "trillion"])


def _scaled(value: float, step: int, units: list[str]) -> str:
    """Write a value in the first unit that keeps it, rounded, under ``step``, or in the last."""
    *smaller, largest = units
    for unit in smaller:
        if round(abs(value), 1) < step or not math.isfinite(value):
            return f"{value:.1f} {unit}"
        value /= step
    return f"{value:.1f} {largest}"
