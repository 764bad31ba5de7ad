"""Two pictures of the results: speed over ``stream``, and predicted against measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from headrace.report.palette import LINES, LineStyle, marker_path
from headrace.report.svg_parts import FONT, INK, LINE, SOFT, number, text_at

from .figures import written
from .runs import Run, name_of

_OTHER = LineStyle("#7a8291", "#a0a8b5", "", "cross")
_WIDTH, _LEFT, _RIGHT, _TOP = 860, 190, 70, 64
_BAR, _BETWEEN = 15, 16
_SIDE, _EDGE = 420, 64


def speed_chart(runs: Sequence[Run], title: str) -> str:
    """Return bars of each run's speed over ``stream``."""
    shown = [run for run in runs if "stream" in run.steps and len(run.steps) > 1]
    ratios = [run.steps["stream"] / step_s for run in shown for step_s in run.steps.values()]
    scale = (_WIDTH - _LEFT - _RIGHT) / max([1.0, *ratios])
    parts, y = [], float(_TOP)
    for run in shown:
        parts.append(text_at(20, y + 11, run.name, weight=600))
        for name, step_s in run.steps.items():
            ratio = run.steps["stream"] / step_s
            style = LINES.get(name, _OTHER)
            parts += [
                text_at(_LEFT - 8, y + 27, name, fill=SOFT, anchor="end", size=11),
                f'<rect x="{_LEFT}" y="{number(y + 17)}" width="{number(ratio * scale)}" '
                f'height="{_BAR - 3}" fill="{style.light}"/>',
                text_at(_LEFT + ratio * scale + 6, y + 27, written(ratio, ".2 ×"), size=11),
            ]
            y += _BAR
        y += 16 + _BETWEEN
    at = number(_LEFT + scale)
    across = f'<path d="M{at} {_TOP - 6}V{number(y - _BETWEEN)}" stroke="{SOFT}" {_DASHED}/>'
    words = "How many times as fast as stream a step is, measured in the same run"
    return _picture(_WIDTH, y, title, words, [across, *parts])


_DASHED = 'stroke-width="1" stroke-dasharray="3 3"'


def prediction_chart(runs: Sequence[Run], title: str) -> str:
    """Return predicted against measured steps of all policies, both on log scales."""
    pairs = [
        (one["step_s"], one["predicted_step_s"], name_of(one))
        for run in runs
        for one in run.data["policies"]
    ]
    values = [value for pair in pairs for value in pair[:2]] or [0.1, 1.0]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    side = _SIDE / (high - low)

    def x(value: float) -> float:
        return _EDGE + (log10(value) - low) * side

    def y(value: float) -> float:
        return _TOP + _SIDE - (log10(value) - low) * side

    parts = []
    for power in range(low, high + 1):
        value = 10.0**power
        words = f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
        parts += [
            f'<path d="M{number(x(value))} {_TOP}v{_SIDE}M{_EDGE} {number(y(value))}h{_SIDE}" '
            f'stroke="{LINE}" stroke-width=".75"/>',
            text_at(x(value), _TOP + _SIDE + 16, words, fill=SOFT, anchor="middle", size=11),
            text_at(_EDGE - 6, y(value) + 4, words, fill=SOFT, anchor="end", size=11),
        ]
    least, most = 10.0**low, 10.0**high
    line = f"M{number(x(least))} {number(y(least))}L{number(x(most))} {number(y(most))}"
    parts.append(f'<path d="{line}" stroke="{INK}" {_DASHED}/>')
    for measured, predicted, name in pairs:
        style = LINES.get(name.split(",")[0], _OTHER)
        outline = marker_path(style.marker, x(measured), y(predicted), 4)
        parts.append(f'<path d="{outline}" fill="{style.light}" stroke="{style.light}"/>')
    for place, name in enumerate(dict.fromkeys(name for _, _, name in pairs)):
        style, row = LINES.get(name.split(",")[0], _OTHER), _TOP + 10 + 20 * place
        outline = marker_path(style.marker, _EDGE + _SIDE + 24, row, 4)
        parts.append(f'<path d="{outline}" fill="{style.light}" stroke="{style.light}"/>')
        parts.append(text_at(_EDGE + _SIDE + 38, row + 4, name))
    words = "A step, predicted (up) against measured (right); on the line both are the same"
    return _picture(_EDGE + _SIDE + 200, _TOP + _SIDE + 30, title, words, parts)


def _picture(width: float, height: float, title: str, words: str, parts: Sequence[str]) -> str:
    size = f"{number(width)} {number(height)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="{FONT}" '
        f'font-size="12" role="img"><title>{title}. {words}.</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f"{text_at(20, 26, title, size=15, weight=700)}"
        f"{text_at(20, 44, words, fill=SOFT)}{''.join(parts)}</svg>\n"
    )
