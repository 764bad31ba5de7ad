"""How each kind of operation looks: a colour for light and dark, a hatching, and its name in words.

Hue says what the data is (amber: X, and what is rebuilt from it; blue: keys and values). Lightness
and hatching tell kinds of one row apart without any hue, for the colour-blind and on grey paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.timeline import Lane

Hatching = Literal["none", "diagonal", "back", "dots", "cross", "horizontal", "vertical"]


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of operation is drawn.

    Attributes:
        name: what it is, for the legend.
        short: what is written into a bar.
        light: colour on a light page.
        dark: colour on a dark page.
        hatching: lines over the colour.
    """

    name: str
    short: str
    light: str
    dark: str
    hatching: Hatching = "none"

    @property
    def ink(self) -> str:
        """Colour of text on ``light``, black or white, whichever reads better."""
        return "#ffffff" if _luminance(self.light) < 0.22 else "#1b1f27"


LOOKS = {
    "load_activations": Look("X to the GPU", "X", "#f0a830", "#f2b245"),
    "load_kv": Look("K/V to the GPU", "K/V", "#2c66ad", "#4a86d0"),
    "load_weights": Look("weights to the GPU", "weights", "#8e7ca8", "#a594c4", "horizontal"),
    "rebuild": Look("rebuild K/V from X", "rebuild", "#c4511f", "#e0723f", "diagonal"),
    "attend": Look("attend", "attend", "#86bfe2", "#a5d5f2"),
    "attend_new": Look("attend to the newest tokens", "new", "#86bfe2", "#a5d5f2", "dots"),
    "dense": Look("dense layers", "dense", "#4a5262", "#8791a3"),
    "merge": Look("merge partial results", "merge", "#8a4f7d", "#c58bb8", "cross"),
    "host_attend": Look("attend on the host", "host", "#2e8b63", "#52b98a", "vertical"),
    "store_kv": Look("K/V to the host", "K/V", "#2c66ad", "#4a86d0", "back"),
    "store_activations": Look("X to the host", "X", "#f0a830", "#f2b245", "back"),
}
"""The look of every known kind, in the order of the legend."""

_LANE_LOOKS = {
    Lane.LOAD_WEIGHTS: "load_weights",
    Lane.LOAD_ACTIVATIONS: "load_activations",
    Lane.LOAD_KV: "load_kv",
    Lane.STORE_KV: "store_kv",
    Lane.STORE_ACTIVATIONS: "store_activations",
    Lane.HOST_ATTEND: "host_attend",
}


def look_of(kind: str, lane: Lane) -> Look:
    """Return the look of a kind; one that is not in ``LOOKS`` gets its lane's, or a plain grey."""
    if kind in LOOKS:
        return LOOKS[kind]
    words = kind.replace("_", " ")
    if lane in _LANE_LOOKS:
        base = LOOKS[_LANE_LOOKS[lane]]
        return Look(words, base.short, base.light, base.dark, base.hatching)
    return Look(words, words, "#a7adb8", "#6c7484", "dots")


def _luminance(colour: str) -> float:
    """Return the relative luminance, 0 to 1, of ``#rrggbb`` (WCAG 2.2)."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


Marker = Literal["circle", "square", "diamond", "triangle", "down", "cross"]


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a curve is drawn.

    Attributes:
        light: colour on a light page.
        dark: colour on a dark page.
        dash: lengths of dashes and gaps, as in SVG; empty for a whole line.
        marker: what marks its points.
    """

    light: str
    dark: str
    dash: str
    marker: Marker


LINES = {
    "auto": LineStyle("#1b1f27", "#f2f4f7", "", "circle"),
    "resident": LineStyle("#3d93c6", "#9bd0f0", "", "square"),
    "stream": LineStyle("#2c66ad", "#5b97e0", "", "diamond"),
    "recompute": LineStyle("#c4511f", "#ec8350", "9 4", "triangle"),
    "kvpr": LineStyle("#a86a00", "#f2b245", "2 4", "down"),
    "host": LineStyle("#2e8b63", "#52b98a", "10 3 2 3", "square"),
}
"""The curve of every policy."""

PATH_LOOKS = {
    "resident": LOOKS["attend"],
    "stream": LOOKS["load_kv"],
    "recompute": LOOKS["rebuild"],
    "host": LOOKS["host_attend"],
}
"""How the share of each path is filled: as the operations that it consists of."""


def marker_path(marker: Marker, x: float, y: float, radius: float) -> str:
    """Return the outline of a marker around a point, as the data of an SVG path."""
    at, r = f"{x:.2f} {y:.2f}", radius
    match marker:
        case "circle":
            return f"M{at}m{-r:g} 0a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
        case "square":
            return f"M{at}m{-r:g} {-r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"
        case "diamond":
            d = 1.3 * r
            return f"M{at}m{-d:g} 0l{d:g} {-d:g}l{d:g} {d:g}l{-d:g} {d:g}z"
        case "triangle":
            return f"M{at}m{-1.2 * r:g} {r:g}h{2.4 * r:g}l{-1.2 * r:g} {-2.2 * r:g}z"
        case "down":
            return f"M{at}m{-1.2 * r:g} {-r:g}h{2.4 * r:g}l{-1.2 * r:g} {2.2 * r:g}z"
        case "cross":
            return f"M{at}m{-r:g} {-r:g}l{2 * r:g} {2 * r:g}m0 {-2 * r:g}l{-2 * r:g} {2 * r:g}"
