"""The bars of a plan's page: how the cache is divided, where memory goes, what would help.

Bars are SVG whose widths are per cent, so they fill any column while their words keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.plan.whatif import Improvement
from headrace.report.palette import LOOKS, PATH_LOOKS, Look
from headrace.report.plan_words import PATH_WORDS, seconds, share, shares, size, speed, times
from headrace.report.svg_parts import fill_of, number, themed_patterns

_LEAST_LABEL = 0.13
"""Part of a bar that a label needs, and what it needs for each of its letters: on a narrow page."""

_OF_A_LETTER = 0.026
_SMALL = 0.015
_FORWARD = Look("", "", "#a7adb8", "#6c7484", "dots")
_SLOTS = Look("", "", "#8e7ca8", "#a594c4", "diagonal")
_NEWEST = Look("", "", "#86bfe2", "#a5d5f2", "cross")
_OTHER = Look("", "", "#a7adb8", "#6c7484")

_GPU_ITEMS = {
    "weights": ("weights", LOOKS["load_weights"]),
    "weight_slots": ("room for streamed weights", _SLOTS),
    "resident_kv": ("K/V that stay", LOOKS["attend"]),
    "windowed_kv": ("K/V of windowed layers", LOOKS["attend_new"]),
    "tail": ("K/V of the newest tokens", _NEWEST),
    "staging": ("staging: what comes through the link", LOOKS["load_kv"]),
    "store_ring": ("staging: what goes to the host", LOOKS["store_kv"]),
    "rebuild_workspace": ("K/V being rebuilt", LOOKS["rebuild"]),
    "forward": ("forward pass at its peak", _FORWARD),
    "logits": ("logits", LOOKS["dense"]),
}
_HOST_ITEMS = {
    "kv": ("K/V", LOOKS["load_kv"]),
    "activations": ("X", LOOKS["load_activations"]),
    "weights": ("streamed weights", LOOKS["load_weights"]),
    "embedding": ("input embedding", LOOKS["dense"]),
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: what it is, its length, its look, and what is written into it."""

    name: str
    value: float
    look: Look
    text: str


def fills() -> str:
    """Return the definitions of the fills of all bars, and of timelines."""
    used = [*LOOKS.values(), *PATH_LOOKS.values(), _FORWARD, _SLOTS, _NEWEST, _OTHER]
    void = (
        '<defs><pattern id="void" width="7" height="7" patternUnits="userSpaceOnUse">'
        '<path class="void-line" d="M-2 9L9 -2M-2 2L2 -2M5 9L9 5" fill="none"/></pattern></defs>'
    )
    return (
        f'<svg class="fills" width="0" height="0" aria-hidden="true">{themed_patterns(used)}'
        f"{void}</svg>"
    )


def bar(
    segments: Sequence[Segment], whole: float, label: str, *, limit: float | None = None
) -> str:
    """Return a stacked bar.

    Args:
        segments: its parts, from the left.
        whole: the length of the bar's track.
        label: the bar in words, for those who do not see it.
        limit: where a line is drawn across it.
    """
    parts, at = [], 0.0
    for segment in segments:
        wide = segment.value / whole
        if wide <= 0:
            continue
        parts.append(
            f"<g><title>{escape(segment.name)}: {escape(segment.text)}</title><rect "
            f'class="part" x="{_percent(at)}" width="{_percent(wide)}" height="100%" '
            f'fill="{fill_of(segment.look)}"/></g>'
        )
        if wide >= max(_LEAST_LABEL, _OF_A_LETTER * len(segment.text)):
            parts.append(
                f'<text class="bar" x="{_percent(at + wide / 2)}" y="50%" dy=".36em" '
                f'text-anchor="middle" fill="{segment.look.ink}">{escape(segment.text)}</text>'
            )
        at += wide
    if limit is not None:
        x = _percent(limit / whole)
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="-15%" y2="115%"/>')
    return f'<svg class="stack" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def split_rows(plans: Mapping[str, Plan], chosen: str) -> str:
    """Return a row for each plan: its name, its split as a bar, and its figures.

    Args:
        plans: plans by name, in order.
        chosen: the name of the one to look at.
    """
    rows = []
    for name, plan in plans.items():
        parts = asdict(plan.split)
        segments = [
            Segment(path, parts[path], PATH_LOOKS[path], words)
            for path, words in shares(parts).items()
        ]
        words = ", ".join(f"{one.name} {one.text}" for one in segments)
        more = []
        if plan.weights_streamed > 0:
            more.append(f"{share(plan.weights_streamed)} of weights streamed")
        if plan.workload.batches > 1:
            more.append(f"{plan.schedule.value}-by-{plan.schedule.value}")
        small = "".join(f"<small>{escape(words)}</small>" for words in more)
        kind = "policy chosen" if name == chosen else "policy"
        kind += "" if plan.feasible else " unfit"
        rows.append(
            f'<li class="{kind}"><div class="name"><b>{escape(name)}</b>{small}</div>'
            f'<div class="split">{bar(segments, 1.0, f"{name}: {words}")}</div>'
            f'<div class="figure">{_figure(plan)}</div></li>'
        )
    return f'<ul class="policies">{"".join(rows)}</ul>'


def _figure(plan: Plan) -> str:
    """Return a plan's step and speed, or that it does not fit, and the memory that it takes."""
    memory = f"<small>GPU {size(plan.gpu_bytes)}, host {size(plan.host_bytes)}</small>"
    if not plan.feasible:
        return f"<strong>does not fit</strong>{memory}"
    faster = "" if plan.policy is Policy.STREAM else f" · {times(plan.speedup_over_stream)} stream"
    return (
        f"<strong>{seconds(plan.step_s)}</strong> <span>{speed(plan.tokens_per_s)} tokens/s"
        f"{escape(faster)}</span>{memory}"
    )


def path_legend() -> str:
    """Return what each path's fill means."""
    items = (
        f"<li>{swatch(look)}<b>{path}</b> {escape(PATH_WORDS[path])}</li>"
        for path, look in PATH_LOOKS.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def memory_bars(plan: Plan, budgets: Mapping[str, float]) -> str:
    """Return where device and host memory go: a bar each against its budget, and its items.

    Args:
        plan: the plan.
        budgets: the bytes that may be used, by ``device memory`` and ``host memory``.
    """
    used = {
        "device memory": (plan.gpu_items, _GPU_ITEMS),
        "host memory": (plan.host_items, _HOST_ITEMS),
    }
    return "".join(
        _memory_bar(name, *used[name], budget_bytes) for name, budget_bytes in budgets.items()
    )


def _memory_bar(
    name: str,
    items: Mapping[str, int],
    known: Mapping[str, tuple[str, Look]],
    budget_bytes: float,
) -> str:
    total = sum(items.values())
    whole = max(total, budget_bytes) * (1.0 if total <= budget_bytes else 1.02)
    order = [
        *(item for item in known if item in items),
        *(item for item in items if item not in known),
    ]
    segments = []
    for item in order:
        words, look = known.get(item, (item.replace("_", " "), _OTHER))
        segments.append(Segment(words, items[item], look, size(items[item])))
    over = total > budget_bytes
    words = f"{size(total)} of {size(budget_bytes)}"
    verdict = (
        f"{size(total - budget_bytes)} too much" if over else f"{size(budget_bytes - total)} free"
    )
    title = name[0].upper() + name[1:]
    drawn = bar(segments, whole, f"{title}: {words}", limit=budget_bytes if over else None)
    return (
        f'<div class="memory{" over" if over else ""}"><p class="head"><b>{title}</b> '
        f"<span>{words}, <em>{verdict}</em></span></p>{drawn}{_items(segments, total)}</div>"
    )


def _items(segments: Sequence[Segment], total: float) -> str:
    """Return the legend of a memory bar: what is large enough to see, and the rest together."""
    large = [one for one in segments if one.value >= _SMALL * total and one.value > 0]
    small = [one for one in segments if 0 < one.value < _SMALL * total]
    entries = [f"<li>{swatch(one.look)}{escape(one.name)} <b>{one.text}</b></li>" for one in large]
    if small:
        names = ", ".join(one.name for one in small)
        together = size(sum(one.value for one in small))
        entries.append(f'<li class="rest">{escape(names)}: <b>{together}</b> together</li>')
    if not entries:
        entries.append("<li>nothing</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def improvement_bars(improvements: Sequence[Improvement]) -> str:
    """Return what would help, the best first, with bars of how many times as fast it is."""
    if not improvements:
        return "<p>Nothing that was tried makes a step more than 2 % faster.</p>"
    most = max(improvement.gain for improvement in improvements)
    rows = "".join(
        f'<li><span class="what">{escape(one.what)}</span>'
        f'<svg class="gain" aria-hidden="true"><rect class="now" width="{_percent(1 / most)}" '
        f'height="100%"/><rect class="more" x="{_percent(1 / most)}" '
        f'width="{_percent((one.gain - 1) / most)}" height="100%"/></svg>'
        f"<strong>{times(one.gain)}</strong></li>"
        for one in improvements
    )
    return f'<ol class="gains">{rows}</ol>'


def swatch(look: Look) -> str:
    """Return a small patch of a fill."""
    return (
        f'<svg class="swatch" width="16" height="12" aria-hidden="true"><rect width="16" '
        f'height="12" rx="2" fill="{fill_of(look)}"/></svg>'
    )


def _percent(part: float) -> str:
    return f"{number(100 * part)}%"
