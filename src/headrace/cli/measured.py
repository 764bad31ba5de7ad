"""Measured policies side by side: the table, the JSON, the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli import output
from headrace.units import format_bytes, format_rate, format_seconds

if TYPE_CHECKING:
    from headrace.bench.measurement import PolicyMeasurement
    from headrace.hardware.profile import HardwareProfile

_COLUMNS = (
    "policy",
    "resident",
    "rebuilt",
    "step",
    "predicted",
    "error",
    "bound",
    "link bytes",
    "link busy",
    "device busy",
    "speed",
)


def comparison_table(measured: list[PolicyMeasurement]) -> str:
    """Return a table of policies; ``speed`` is how many times as fast as ``stream``."""
    rows = [
        (
            _name(one),
            f"{one.resident_fraction:.0%}",
            f"{one.recompute_fraction:.0%}",
            _milliseconds(one.step_s),
            _milliseconds(one.predicted_step_s),
            f"{one.prediction_error:+.1%}",
            _milliseconds(one.bound_s),
            format_bytes(one.link_bytes),
            f"{one.link_busy:.0%}",
            f"{one.device_busy:.0%}",
            _speed(one, measured),
        )
        for one in measured
    ]
    return output.table(_COLUMNS, rows)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def comparison_words(measured: list[PolicyMeasurement]) -> list[str]:
    """Return in words how the fastest policy with a cache on the host compares with the others."""
    on_host = [one for one in measured if one.resident_fraction < 1]
    if len(on_host) < 2:
        return []
    best = min(on_host, key=lambda one: one.step_s)
    ratios = ", ".join(
        f"{one.step_s / best.step_s:.2f} times as fast as {_name(one)}"
        for one in on_host
        if one is not best
    )
    worst = max(abs(one.prediction_error) for one in on_host)
    return [
        f"{_name(best)} is {ratios}. Its busier lane is busy {best.binding_busy:.1%} of the time.",
        f"The predictions are off by {worst:.1%} at most.",
    ]


def _name(one: PolicyMeasurement) -> str:
    return one.policy if one.batches == 1 else f"{one.policy}, {one.batches} batches"


def _speed(one: PolicyMeasurement, measured: list[PolicyMeasurement]) -> str:
    stream = _stream_step_s(measured)
    return "" if stream is None else f"{stream / one.step_s:.2f} ×"


def _stream_step_s(measured: list[PolicyMeasurement]) -> float | None:
    return next((one.step_s for one in measured if one.policy == "stream"), None)


def comparison_json(measured: list[PolicyMeasurement]) -> dict[str, Any]:
    """Return the figures as JSON has them."""
    from headrace.bench.figures import policy_json

    stream = _stream_step_s(measured)
    return {"policies": [policy_json(one, stream) for one in measured]}


def machine_words(profile: HardwareProfile) -> str:
    """Return which machine this is, and whether link and cores are slowed down on purpose."""
    rates = (
        f"link {format_rate(profile.h2d_bytes_per_s)} to the device, "
        f"{format_rate(profile.d2h_bytes_per_s)} back"
    )
    if profile.emulates is None:
        return f"{profile.name}: {rates} (measured)"
    cores, compared = "", "rebuilding and link"
    if profile.host_attend_bytes_per_s is not None and profile.host_attends:
        rate = format_rate(profile.host_attend_bytes_per_s)
        cores, compared = f" and the host's cores to {rate}", "rebuilding, link and cores"
    return (
        f"{profile.name}: the device is this CPU, and the link is slowed down on purpose to "
        f"{format_rate(profile.h2d_bytes_per_s)}{cores}, so that {compared} compare as on "
        f"{profile.emulates}. Times are measured on that emulated link, not on a GPU."
    )


def write_page(
    path: Path, measured: list[PolicyMeasurement], profile: HardwareProfile, title: str
) -> None:
    """Write the timelines of all policies, predicted over measured."""
    from headrace.report.timeline_page import write_timeline_page

    write_timeline_page(
        path,
        [timeline for one in measured for timeline in (one.predicted, one.measured)],
        title=title,
        facts={"Machine": machine_words(profile)},
        table=[
            {
                "policy": one.policy,
                "batches": one.batches,
                "step, measured": format_seconds(one.step_s),
                "step, predicted": format_seconds(one.predicted_step_s),
                "link bytes a step": format_bytes(one.link_bytes),
                "speed": _speed(one, measured),
            }
            for one in measured
        ],
    )
