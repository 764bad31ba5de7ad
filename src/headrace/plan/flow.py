"""A step as a flow: how long layers take if the link can be ahead of the device by so much."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_TURNS = 8
"""Layers after which it is known how far the link is ahead when a step begins."""


@dataclass(frozen=True)
class LayerFlow:
    """Seconds of a layer that attends to the whole context, with one batch or all of them.

    Attributes:
        pause: the device's other work since the last such layer, P.
        kept: attention to what stays on the device, R.
        staged: work on what is staged, A.
        loads: of the link, L.
        host: of the host's cores alone, H.
    """

    pause: float
    kept: float
    staged: float
    loads: float
    host: float


@dataclass(frozen=True)
class StepFlow:
    """A step, or a batch's pass of it, layer by layer.

    Attributes:
        layers: the layers.
        link_share: of its rate at which the link goes on while the cores are at work, a.
        cores_share: of their rate at which the cores do while the link is at work, b.
    """

    layers: tuple[LayerFlow, ...]
    link_share: float
    cores_share: float

    def seconds(self, most_ahead_s: float) -> float:
        """Return the seconds of all layers, if the link can be ahead by so many seconds of its."""
        lead_s = total_s = 0.0
        same: tuple[LayerFlow | None, float] = (None, 0.0)
        layer_s = after_s = 0.0
        # The first turns tell how far the link is ahead when a step begins.
        for turn, layer in enumerate((*self.layers[-_FIRST_TURNS:], *self.layers)):
            if same[0] is not layer or same[1] != lead_s:
                same = layer, lead_s
                ahead_s = min(most_ahead_s, lead_s + layer.pause)
                attend_s, loaded_s = self._attend(layer, ahead_s, most_ahead_s)
                layer_s = layer.pause + attend_s
                after_s = min(most_ahead_s, ahead_s + loaded_s - layer.loads)
            lead_s = after_s
            if turn >= min(_FIRST_TURNS, len(self.layers)):
                total_s += layer_s
        return total_s

    def _attend(self, layer: LayerFlow, lead_s: float, most_ahead_s: float) -> tuple[float, float]:
        """Return the seconds of a layer's attention, and those of loads that are done in them."""
        at_most_s = max(0.0, layer.loads - lead_s + most_ahead_s)
        both_s = min(at_most_s / self.link_share, layer.host / self.cores_share)
        host_s = layer.host + both_s * (1 - self.cores_share)
        # No slot is read while the device attends to what stays there: only the ring fills up.
        kept_loads_s = min(self._loaded(layer.kept, both_s), max(0.0, most_ahead_s - lead_s))
        missing_s = max(0.0, layer.loads - lead_s - kept_loads_s)
        there_s = missing_s / self.link_share
        if layer.kept + there_s > both_s:
            there_s = missing_s + max(0.0, both_s - layer.kept) * (1 - self.link_share)
        attend_s = max(layer.kept + max(layer.staged, there_s), host_s)
        loaded_s = kept_loads_s + self._loaded(attend_s, both_s) - self._loaded(layer.kept, both_s)
        return attend_s, min(at_most_s, max(loaded_s, kept_loads_s + missing_s))

    def _loaded(self, seconds: float, both_s: float) -> float:
        """Return what the link loads in so many seconds, in the first of which the cores work."""
        return seconds - min(seconds, both_s) * (1 - self.link_share)
