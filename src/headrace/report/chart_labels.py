"""Where the words on a chart stand: beside what they name, and clear of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

LINE_HEIGHT = 15.0
_LETTER = 0.585
_GAP = 8.0
_SMALL = 11.0
_SPARE = 6.0
"""Widths of words are rather too large, so labels may overlap by this."""


@dataclass(frozen=True, slots=True)
class Label:
    """Words beside a point.

    Attributes:
        text: the words.
        note: a second line in small letters, or nothing.
        x: the point they name.
        y: the same.
        left: whether they stand on the left of the point.
        moved: how far down they were moved to be clear of others.
    """

    text: str
    note: str
    x: float
    y: float
    left: bool = False
    moved: float = 0.0

    @property
    def width(self) -> float:
        """Pixels that the words take, at most."""
        return max(text_width(self.text), text_width(self.note, _SMALL))

    @property
    def below(self) -> float:
        """Pixels that the words take below the middle of their first line."""
        return (1.4 if self.note else 0.5) * LINE_HEIGHT

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last pixel of the words."""
        if self.left:
            return self.x - _GAP - self.width, self.x - _GAP
        return self.x + _GAP, self.x + _GAP + self.width


@dataclass(frozen=True, slots=True)
class Room:
    """Where words may stand.

    Attributes:
        left: the first pixel.
        right: the last one.
        top: the first pixel in which the middle of a line may be.
        bottom: the last pixel that a line may reach.
        crossed: how much of what is drawn lies in a box: its left, top, right and bottom.
    """

    left: float
    right: float
    top: float
    bottom: float
    crossed: Callable[[float, float, float, float], int]


def text_width(text: str, size: float = 12.0) -> float:
    """Return about how wide a text is: rather too much than too little."""
    return len(text) * size * _LETTER


def rows_of(words: Sequence[tuple[str, float]], width: float) -> list[tuple[float, int]]:
    """Return where words over vertical lines have their middle, and in which row they stand.

    Args:
        words: words and the pixel that they belong to.
        width: of the picture.
    """
    placed: list[tuple[float, float, int]] = []
    found = []
    for text, x in words:
        half = text_width(text) / 2
        middle = min(max(x, half + 2), width - half - 2)
        low, high = middle - half - 4, middle + half + 4
        taken = {row for first, last, row in placed if low < last and first < high}
        row = next(row for row in range(len(words)) if row not in taken)
        placed.append((low, high, row))
        found.append((middle, row))
    return found


def free_place(text: str, x: float, y: float, room: Room) -> tuple[float, float]:
    """Return where words near a point run into the least of what is drawn: left, and base line."""
    wide = text_width(text)
    left = min(max(x - wide / 2, room.left), room.right - wide)
    places = [
        (left, y - 15),
        (left, y + 25),
        (min(x + 14, room.right - wide), y + 28),
        (max(x - wide - 14, room.left), y - 18),
        (left, y - 34),
        (left, y + 44),
        (left, y + 63),
    ]
    inside = [place for place in places if room.top + 12 < place[1] < room.bottom - 4]
    return min(
        inside or places,
        key=lambda at: room.crossed(at[0] - 4, at[1] - 14, at[0] + wide + 4, at[1] + 5),
    )


def arrange(labels: Sequence[Label], room: Room) -> list[Label]:
    """Return labels that do not run into each other, nor out of the picture; in the order given.

    Each stands on the right of its point, or on the left where it has no room or runs into more of
    what is drawn. Then labels are moved down by as little as they have to be, and up again from the
    bottom.

    Args:
        labels: the labels, each beside its point.
        room: where they may stand.
    """
    sided = [_better_side(label, room) for label in labels]
    order = sorted(range(len(sided)), key=lambda index: sided[index].y)
    middles = {n: max(sided[n].y, room.top) for n in order}
    for _ in order:
        for place, lower in enumerate(order):
            for upper in order[:place]:
                if _meet(sided[upper], sided[lower]):
                    least = middles[upper] + sided[upper].below + LINE_HEIGHT / 2
                    middles[lower] = max(middles[lower], least)
        for place, upper in reversed(list(enumerate(order))):
            limit = room.bottom - sided[upper].below
            for lower in order[place + 1 :]:
                if _meet(sided[upper], sided[lower]):
                    most = middles[lower] - LINE_HEIGHT / 2 - sided[upper].below
                    limit = min(limit, most)
            middles[upper] = min(middles[upper], limit)
    return [replace(label, moved=middles[n] - label.y) for n, label in enumerate(sided)]


def _better_side(label: Label, room: Room) -> Label:
    """Return the label on the side where it has room, and runs into less of what is drawn."""
    other = replace(label, left=True)
    if label.span[1] > room.right:
        return other
    if other.span[0] < room.left:
        return label
    return other if _crossed(other, room) < _crossed(label, room) else label


def _crossed(label: Label, room: Room) -> int:
    low, high = label.span
    return room.crossed(low, label.y - LINE_HEIGHT / 2, high, label.y + label.below)


def _meet(one: Label, other: Label) -> bool:
    """Return whether two labels have a column of pixels in common."""
    return one.span[0] + _SPARE < other.span[1] and other.span[0] + _SPARE < one.span[1]
