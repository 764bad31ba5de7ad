"""A hardware profile as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.output import table
from headrace.hardware.profile import UNPACED
from headrace.units import format_bytes, format_flops, format_rate, format_ratio, format_seconds

if TYPE_CHECKING:
    from headrace.hardware.profile import HardwareProfile, Measurement


@dataclass(frozen=True)
class _Figure:
    """A line of the table.

    Attributes:
        label: what was measured; empty for the figure above under other conditions.
        value: the figure.
        measured: its name among the profile's measurements.
        conditions: what else was going on.
        show: writes value and spread.
    """

    label: str
    value: float | None
    measured: str
    conditions: str
    show: Callable[[float], str] = format_rate


def profile_text(profile: HardwareProfile, kept: Path | None) -> str:
    """Return a profile with what it is of, its figures, and where it is kept.

    Args:
        profile: a measured or emulated one.
        kept: its file, or None if it could not be stored.
    """
    parts = [_head(profile)]
    if profile.emulates is not None:
        parts.append(
            f"EMULATED: on this CPU the link and the host's cores are slowed down so that both "
            f"compare with rebuilding as on {profile.emulates}; rates of the link, of host memory "
            "and of the host's attention are that machine's in proportion, not this one's."
        )
    figures = [figure for figure in _figures(profile) if figure.value is not None]
    rows = [_row(profile, figure) for figure in figures]
    parts.append(table(("figure", "value", "spread", "conditions"), rows))
    if profile.emulates is None:
        parts.append("\n".join(_curves(profile)))
    parts.append(
        "Not kept: the profile's folder cannot be written; see HEADRACE_CACHE."
        if kept is None
        else f"Kept at {kept}"
    )
    return "\n\n".join(parts)


def _head(profile: HardwareProfile) -> str:
    repeats = max((figure.repeats for figure in profile.measurements.values()), default=0)
    effort = f"measured {'quickly, ' if profile.quick else ''}{repeats} times each,"
    lines = [
        f"{profile.name} ({profile.device})",
        f"{effort} {profile.date}; memory: {format_bytes(profile.device_memory_bytes)} device, "
        f"{format_bytes(profile.host_memory_bytes)} host",
    ]
    identity = profile.identity
    if identity is not None:
        gpu = identity.gpu
        versions = [f"torch {identity.torch_version}", f"headrace {identity.headrace_version}"]
        if gpu is not None:
            versions += [f"CUDA {gpu.cuda_version}", f"driver {gpu.driver_version}"]
        lines.append(f"{identity.cpu_model}, {identity.cpu_cores} cores; {', '.join(versions)}")
    return "\n".join(lines)


def _figures(profile: HardwareProfile) -> Iterator[_Figure]:
    """Yield all figures that a profile may have, in the table's order."""
    to_device, to_host = (
        "while the link to the device is busy",
        "while the link to the host is busy",
    )
    h2d_size = profile.h2d_curve[-1][0] if profile.h2d_curve else 0
    d2h_size = profile.d2h_curve[-1][0] if profile.d2h_curve else 0

    def link(label: str, name: str, conditions: str, size: int = 0) -> _Figure:
        measured = f"{name}[{size}]" if size else name
        return _Figure(label, getattr(profile, name), measured, conditions)

    yield link("link to the device", "h2d_bytes_per_s", "alone", h2d_size)
    yield link("", "h2d_while_d2h_bytes_per_s", to_host)
    yield link("", "h2d_while_compute_bytes_per_s", "while the device computes")
    yield link("", "h2d_while_host_bytes_per_s", "while all cores read host memory")
    yield link("", "h2d_while_attend_bytes_per_s", "while the host's cores attend")
    yield link("link to the host", "d2h_bytes_per_s", "alone", d2h_size)
    yield link("", "d2h_while_h2d_bytes_per_s", to_device)
    busy = _Figure(
        "",
        profile.gemm_while_h2d_flops_per_s,
        "gemm_while_h2d_flops_per_s",
        to_device,
        format_flops,
    )
    # It was measured in the first element type.
    first, *others = _products(profile)
    yield from (first, busy, *others)
    yield link("device memory", "device_bytes_per_s", "alone, a copy, read and write counted")
    yield link("host memory", "host_bytes_per_s", "alone, read by all cores")
    yield link("", "host_while_h2d_bytes_per_s", to_device)
    yield link("device's attention", "attend_bytes_per_s", "alone, reading K/V")
    yield link("", "resident_attend_bytes_per_s", "of contiguous rows, all resident")
    yield _Figure(
        "rebuild K/V from X",
        profile.rebuild_flops_per_s,
        "rebuild_flops_per_s",
        "alone, layout included",
        format_flops,
    )
    yield link("decoding's weights", "dense_bytes_per_s", "alone, reading weights")
    yield from _of_rows(profile)
    yield link("host's attention", "host_attend_bytes_per_s", "alone, reading K/V")
    yield link("", "host_attend_while_h2d_bytes_per_s", to_device)
    yield _Figure(
        "a head's short page", profile.host_page_s, "host_page_s", to_device, format_seconds
    )
    yield link("its queries and results", "mail_bytes_per_s", to_device)
    yield _Figure("", profile.mail_call_s, "mail_call_s", "besides", format_seconds)
    for label, name in (
        ("a small copy", "copy_latency_s"),
        ("a small kernel", "launch_latency_s"),
        ("the least attention", "attend_call_s"),
        ("the least rebuild", "rebuild_call_s"),
        ("starting a load", "load_call_s"),
    ):
        yield _Figure(label, getattr(profile, name), name, "in a row of its like", format_seconds)
    for label, name in (
        ("launching a step", "launch_step_s"),
        ("and each layer", "launch_layer_s"),
        ("kernel by kernel", "launch_plain_layer_s"),
        ("and a granule of K/V", "launch_stream_s"),
        ("and one of X", "launch_rebuild_s"),
        ("and the host's attention", "launch_host_s"),
    ):
        yield _Figure(label, getattr(profile, name), name, "in a step", format_seconds)
    yield _Figure(
        "launching takes longer",
        profile.launch_while_attend,
        "launch_while_attend",
        "while the cores attend",
        format_ratio,
    )


def _of_rows(profile: HardwareProfile) -> Iterator[_Figure]:
    """Yield the rates at which decoding reads the weights, by the number of rows."""
    for name, label in (
        ("dense_curve", "decoding's weights"),
        ("resident_curve", "with all on the device"),
    ):
        for rows, rate in getattr(profile, name):
            when = f"alone, {rows} row{'s' if rows > 1 else ''}"
            yield _Figure(label, rate, f"{name}[{rows}]", when, format_rate)
            label = ""


def _products(profile: HardwareProfile) -> Iterator[_Figure]:
    """Yield the matrix products' rates: of each element type that of most tokens."""
    for point in {point.dtype: point for point in profile.gemm_curve}.values():
        label = f"matrix products, {point.dtype}"
        measured = f"gemm_flops_per_s[{point.dtype},{point.tokens}]"
        conditions = f"alone, {point.tokens} × {point.d_model} by {point.width}"
        yield _Figure(label, point.flops_per_s, measured, conditions, format_flops)


def _row(profile: HardwareProfile, figure: _Figure) -> tuple[str, str, str, str]:
    assert figure.value is not None
    conditions, spread = figure.conditions, ""
    measured = profile.measurements.get(figure.measured)
    copies = profile.measurements.get(UNPACED + figure.measured)
    if measured is not None:
        spread = _spread(measured, figure.show)
    elif copies is not None:
        conditions += f" (emulated; here {figure.show(copies.median)})"
    return figure.label, figure.show(figure.value), spread, conditions


def _spread(measured: Measurement, show: Callable[[float], str]) -> str:
    return f"{show(measured.minimum)} to {show(measured.maximum)}"


def _curves(profile: HardwareProfile) -> Iterator[str]:
    """Yield the link's rates by transfer size, a line for each direction."""
    for label, curve in (("device", profile.h2d_curve), ("host", profile.d2h_curve)):
        if curve:
            points = ", ".join(f"{format_rate(rate)} at {_size(size)}" for size, rate in curve)
            yield f"to the {label}, by size of a transfer: {points}"


def _size(size_bytes: int) -> str:
    return format_bytes(size_bytes).replace(".0 ", " ")
