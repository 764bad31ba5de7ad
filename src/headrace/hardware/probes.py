"""How a machine is measured: links, matrix products, memories and fixed latencies.

Every figure is warmed up, repeated, and kept with its spread. Buffers hold random bytes (zeros
would flatter a GPU's power budget) and are rotated, so that no cache serves them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from headrace.errors import ConfigurationError
from headrace.hardware.catalog import machine
from headrace.hardware.emulation import Pace
from headrace.hardware.identity import (
    host_memory_limit_bytes,
    local_identity,
)
from headrace.hardware.probe_bench import FULL, QUICK, Bench, Effort, Progress
from headrace.hardware.probe_device import open_device
from headrace.hardware.probe_figures import (
    KVProjection,
    Link,
    probe_gemm,
    probe_latency,
    probe_link,
    probe_memory,
    probe_together,
)
from headrace.hardware.profile import UNPACED, HardwareProfile, Measurement, RowsPoint
from headrace.hardware.spare_memory import release_spare_memory
from headrace.timeline import Origin
from headrace.units import format_flops, format_rate, format_ratio, format_seconds

EXTRA_FIELDS = (
    "attend_bytes_per_s",
    "attend_call_s",
    "h2d_while_attend_bytes_per_s",
    "host_attend_bytes_per_s",
    "host_attend_while_h2d_bytes_per_s",
    "host_page_s",
    "launch_host_s",
    "launch_layer_s",
    "launch_plain_layer_s",
    "launch_rebuild_s",
    "launch_step_s",
    "launch_stream_s",
    "launch_while_attend",
    "load_call_s",
    "mail_bytes_per_s",
    "mail_call_s",
    "rebuild_call_s",
    "rebuild_flops_per_s",
    "resident_attend_bytes_per_s",
)
"""Fields of a profile that ``extra_probes`` fill; other extra probes are kept as measurements."""

CURVES = ("dense_curve", "resident_curve")
"""Fields that they fill point by point: ``dense_curve[8]`` is the rate at eight rows."""

_OF_STEPS = (*CURVES, "launch_")
"""So the names of probes begin that take steps of a model, whose first ones do not count."""


ExtraProbes = Mapping[str, Callable[[HardwareProfile], float]]
"""What only a caller can measure, by name; see ``add_extra_probes``."""


@dataclass(frozen=True)
class Widths:
    """The widths of K/V projections, where there is no model's shape to take them from."""

    d_model: int
    d_kv: int
    dtype: str = "bfloat16"


DTYPES = ("bfloat16", "float16", "float32")

DEFAULT_WIDTHS = Widths(4096, 4096)
"""Those of a model of 7 billion parameters with multi-head attention."""


def profile_machine(
    device: str,
    shape: KVProjection | None = None,
    dtype: str | None = None,
    *,
    emulate: str | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    extra_probes: ExtraProbes | None = None,
    effort: Effort | None = None,
) -> HardwareProfile:
    """Measure the machine that this runs on.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        shape: the model whose K/V projections are measured; without one, ``DEFAULT_WIDTHS``.
        dtype: element type of the matrix products (float32 is always measured too); by default the
            shape's.
        emulate: a published machine whose link, and whose cores' rate of attending, the profile
            shall have, in proportion to the speed of matrix products; for a CPU only. The rates of
            the real copies and cores are then kept as ``measurements`` whose names begin with
            ``unpaced_``.
        quick: fewer sizes and repeats: under 10 s instead of under 60.
        progress: is called with a line of text for each figure.
        extra_probes: see ``add_extra_probes``.
        effort: how much is measured, instead of what ``quick`` chooses.

    Raises:
        ConfigurationError: there is no such device or element type, or a link is to be emulated
            on a GPU.
        ProfileError: ``emulate`` names no published machine, or one that cannot be emulated here.
    """
    opened = open_device(device)
    if emulate is not None and opened.name != "cpu":
        raise ConfigurationError(
            f"emulate is {emulate!r} on device {opened.name}; a link is emulated on a CPU only, "
            "so set the device to cpu, or leave emulate out"
        )
    widths = DEFAULT_WIDTHS if shape is None else shape
    dtype = dtype or widths.dtype
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}")
    named = None if emulate is None else machine(emulate)
    chosen = effort or (QUICK if quick else FULL)
    bench = Bench(opened, chosen, progress or (lambda _: None), emulated=named is not None)
    figures = _measure(bench, widths, dtype, named)

    identity = local_identity(opened.gpu)
    what = opened.gpu.name if opened.gpu else f"{identity.cpu_model}, {identity.cpu_cores} cores"
    profile = HardwareProfile(
        name=what if emulate is None else f"{what}, link of {emulate} emulated",
        origin=Origin.MEASURED if emulate is None else Origin.EMULATED,
        device=opened.name,
        device_memory_bytes=opened.memory_bytes,
        host_memory_bytes=host_memory_limit_bytes(),
        measurements=bench.measurements,
        emulates=emulate,
        host_attends=named is None or named.host_attends,
        identity=identity,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        **figures,
    )
    profile = add_extra_probes(profile, extra_probes or {}, chosen.repeats, progress)
    release_spare_memory()
    return profile


def _measure(
    bench: Bench, widths: KVProjection, dtype: str, named: HardwareProfile | None
) -> dict[str, Any]:
    """Measure the fields of a profile, with the link of ``named`` emulated if there is one."""
    gemm_curve = probe_gemm(bench, widths, tuple(dict.fromkeys((dtype, "float32"))))
    gemm_rates = {point.dtype: point.flops_per_s for point in gemm_curve}
    points = [point for point in gemm_curve if point.dtype == dtype]
    link = Link(bench)
    h2d_curve, d2h_curve = probe_link(bench, link)
    pace = Pace.of(named, gemm_rates[dtype], h2d_curve[-1][1], d2h_curve[-1][1])
    return {
        "gemm_flops_per_s": gemm_rates,
        "gemm_curve": gemm_curve,
        "h2d_bytes_per_s": min(h2d_curve[-1][1], pace.h2d),
        "d2h_bytes_per_s": min(d2h_curve[-1][1], pace.d2h),
        "h2d_curve": tuple((size, min(rate, pace.h2d)) for size, rate in h2d_curve),
        "d2h_curve": tuple((size, min(rate, pace.d2h)) for size, rate in d2h_curve),
        **probe_together(bench, link, widths, points[len(points) // 2], pace),
        **probe_memory(bench, pace),
        **probe_latency(bench, link),
    }


def add_extra_probes(
    profile: HardwareProfile,
    extra_probes: ExtraProbes,
    repeats: int = 3,
    progress: Progress | None = None,
) -> HardwareProfile:
    """Return the profile with figures that only the caller can measure.

    In an emulated machine's profile the host's cores attend no faster than they read host memory
    while the link is busy, and the link brings no more than when it is alone: these are the paces
    that they are held to.

    Args:
        profile: what was measured so far.
        extra_probes: by name, a callable that is given ``profile``, measures once and returns
            bytes, or FLOPs, a second, or seconds, or a ratio. The names of ``EXTRA_FIELDS`` become
            fields of the profile, those of ``CURVES`` points of them. Each is called once more to
            warm up, but for those that take steps. All are kept in ``measurements``.
        repeats: how often each is measured.
        progress: is called with a line of text for each figure.
    """
    measured: dict[str, Measurement] = {}
    figures: dict[str, Any] = {}
    for name, samples in _in_turn(profile, extra_probes, repeats).items():
        found = Measurement.of(samples)
        pace = _pace_of(name, profile)
        key = name if pace is None else UNPACED + name
        measured[key] = found
        if name in EXTRA_FIELDS:
            figures[name] = found.median if pace is None else min(pace, found.median)
        for curve in CURVES:
            if name.startswith(f"{curve}["):
                known = figures.get(curve, getattr(profile, curve))
                figures[curve] = _with_point(known, int(name[len(curve) + 1 : -1]), found.median)
        if progress:
            progress(f"{key}: {_words(name, found.median)}")
    if not measured:
        return profile
    together = {**profile.measurements, **measured}
    return replace(profile, measurements=together, **figures)


def without_extra(profile: HardwareProfile) -> HardwareProfile:
    """Return the profile without the figures that extra probes add."""
    names = (*EXTRA_FIELDS, *CURVES)
    left = {
        name: figure
        for name, figure in profile.measurements.items()
        if not name.removeprefix(UNPACED).startswith(names)
    }
    fields: dict[str, Any] = dict.fromkeys(EXTRA_FIELDS) | dict.fromkeys(CURVES, ())
    return replace(profile, measurements=left, **fields)


def _in_turn(
    profile: HardwareProfile, extra_probes: ExtraProbes, repeats: int
) -> dict[str, list[float]]:
    """Return what probes measured, which took turns: what disturbs one repeat spares the others."""
    for name, probe in extra_probes.items():
        if not name.startswith(_OF_STEPS):
            probe(profile)
    found: dict[str, list[float]] = {name: [] for name in extra_probes}
    for _ in range(repeats):
        for name, probe in extra_probes.items():
            found[name].append(probe(profile))
    return found


def _with_point(curve: tuple[RowsPoint, ...], rows: int, rate: float) -> tuple[RowsPoint, ...]:
    """Return a curve with one point more, or another rate at one."""
    return tuple(sorted((dict(curve) | {rows: rate}).items()))


def _pace_of(name: str, profile: HardwareProfile) -> float | None:
    """Return the rate that an extra figure is held to in an emulation, or None."""
    if profile.emulates is None:
        return None
    if name == "h2d_while_attend_bytes_per_s":
        return profile.h2d_bytes_per_s
    return profile.host_while_h2d_bytes_per_s if name.startswith("host_attend_") else None


def _words(name: str, figure: float) -> str:
    """Return a figure as its name says: FLOPs or bytes a second, seconds, or a ratio."""
    if name.endswith("_flops_per_s"):
        return format_flops(figure)
    if name.endswith(("_per_s", "]")):
        return format_rate(figure)
    return format_seconds(figure) if name.endswith("_s") else format_ratio(figure)
