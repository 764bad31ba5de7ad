"""Finds stop strings in text that grows."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until the first stop string, across the pieces that the text comes in.

    Args:
        stops: strings that are not empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        """Whether a stop string was found; what it took is not given out."""

    def take(self, text: str, *, counts: bool = True) -> str:
        """Add text; return what may be shown of it and of the text held back before.

        The longest end that may yet become a stop string is held back.

        Args:
            text: what is new; nothing more is taken once a stop string was found.
            counts: whether a stop string that ends in the new text counts.
        """
        if self.found:
            return ""
        before, text = len(self._held), self._held + text
        if counts and (place := self._first(text, before)) is not None:
            self.found, self._held = True, ""
            return text[:place]
        split = len(text) - self._promising(text)
        self._held = text[split:]
        return text[:split]

    def finish(self) -> str:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str, before: int) -> int | None:
        """Return where the first stop string begins that ends after ``before`` characters."""
        places = (text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops)
        return min((place for place in places if place >= 0), default=None)

    def _promising(self, text: str) -> int:
        """Return how many of the last characters begin a stop string, at most."""
        most = min(len(text), max(map(len, self._stops), default=1) - 1)
        for count in range(most, 0, -1):
            end = text[-count:]
            if any(len(stop) > count and stop.startswith(end) for stop in self._stops):
                return count
        return 0
