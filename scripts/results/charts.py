"""Pictures of the results: steps, speed over ``stream``, and predicted against measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from headrace.report.palette import LINES, LineStyle, marker_path
from headrace.report.svg_parts import FONT, INK, LINE, SOFT, number, text_at

from .figures import written
from .runs import name_of
from .works import Work

_OTHER = LineStyle("#7a8291", "#a0a8b5", "", "cross")
_WIDTH, _LEFT, _RIGHT, _TOP = 860, 190, 130, 64
_BAR, _BETWEEN = 15, 16
_SIDE, _EDGE = 420, 64


@dataclass(frozen=True)
class _Bar:
    """A policy or a rival: how long its bar is, what is written behind it, and what marks it has.

    Attributes:
        mark: where a mark across the bar is.
        span: from where to where a thin line goes.
    """

    name: str
    value: float
    words: str
    mark: float | None = None
    span: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        """How far it reaches with its marks."""
        return max(self.value, self.mark or 0.0, *(self.span or ()))


def step_chart(works: Sequence[Work], title: str) -> str:
    """Return bars of the steps of typical visits, with a mark at the least that the rates allow."""
    groups = [
        (
            work.name,
            [
                _Bar(name_of(one), one["step_s"], _step_words(one), one.get("bound_s"))
                for one in work.typical.every
            ],
        )
        for work in works
    ]
    words = "A step; the mark is its bound: the least that the rates allow for that policy's work"
    return _bars(groups, title, words)


def _step_words(one: dict[str, Any]) -> str:
    beyond = ", beyond the memory budget" if one.get("within_budget") is False else ""
    return written(one["step_s"], ".1 ms") + beyond


def speed_chart(works: Sequence[Work], title: str) -> str:
    """Return bars of each policy's speed over ``stream``, and from which to which visit it went."""
    groups = []
    for work in works:
        policies = [name_of(one) for one in work.typical.data["policies"]]
        others = [name for name in policies if name != "stream"]
        if "stream" in policies and others:
            groups.append((work.name, [_speed_bar(work, name) for name in others]))
    words = (
        "How many times as fast as stream a step is, measured in the same run; the thin line is "
        "from the slowest visit to the best"
    )
    return _bars(groups, title, words, line=1.0)


def _speed_bar(work: Work, name: str) -> _Bar:
    ratios = [run.steps["stream"] / run.steps[name] for run in work.runs if name in run.steps]
    typical = work.typical.steps["stream"] / work.typical.steps[name]
    words = written(typical, ".2 ×")
    if len(ratios) == 1:
        return _Bar(name, typical, words)
    ends = min(ratios), max(ratios)
    words += f" ({written(ends[0], '.2')} to {written(ends[1], '.2')})"
    return _Bar(name, typical, words, span=ends)


def _bars(
    groups: Sequence[tuple[str, Sequence[_Bar]]], title: str, words: str, line: float | None = None
) -> str:
    """Return bars in groups, all to one scale, with a line through all of them or none."""
    values = [bar.end for _, bars in groups for bar in bars]
    scale = (_WIDTH - _LEFT - _RIGHT) / (max([line or 0.0, *values]) or 1.0)
    parts, y = [], float(_TOP)
    for name, bars in groups:
        parts.append(text_at(20, y + 11, name, weight=600))
        for bar in bars:
            style, end = LINES.get(bar.name.split(",")[0], _OTHER), bar.value * scale
            parts += [
                text_at(_LEFT - 8, y + 27, bar.name, fill=SOFT, anchor="end", size=11),
                f'<rect x="{_LEFT}" y="{number(y + 17)}" width="{number(end)}" '
                f'height="{_BAR - 3}" fill="{style.light}"/>',
            ]
            if bar.mark is not None:
                at = f"M{number(_LEFT + bar.mark * scale)} {number(y + 16)}v{_BAR - 1}"
                parts.append(f'<path d="{at}" stroke="#fff" stroke-width="4"/>')
                parts.append(f'<path d="{at}" stroke="{INK}" stroke-width="2"/>')
            if bar.span is not None:
                low, high = (number(_LEFT + end * scale) for end in bar.span)
                ends = "".join(f"M{end} {number(y + 20)}v6" for end in (low, high))
                at = f"M{low} {number(y + 23)}H{high}{ends}"
                parts.append(f'<path d="{at}" stroke="#fff" stroke-width="3.5"/>')
                parts.append(f'<path d="{at}" stroke="{SOFT}" stroke-width="1.5"/>')
            parts.append(text_at(_LEFT + bar.end * scale + 6, y + 27, bar.words, size=11))
            y += _BAR
        y += 16 + _BETWEEN
    if line is not None:
        at = number(_LEFT + line * scale)
        across = f'<path d="M{at} {_TOP - 6}V{number(y - _BETWEEN)}" stroke="{SOFT}" {_DASHED}/>'
        parts.insert(0, across)
    return _picture(_WIDTH, y, title, words, parts)


_DASHED = 'stroke-width="1" stroke-dasharray="3 3"'


def prediction_chart(works: Sequence[Work], title: str) -> str:
    """Return predicted against measured steps of all policies in all visits, on log scales."""
    pairs = [
        (one["step_s"], one["predicted_step_s"], name_of(one))
        for run in (run for work in works for run in work.runs)
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
