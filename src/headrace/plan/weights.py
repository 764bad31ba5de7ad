"""Streamed weights: the slots on the device that they go through, and what that spares."""

from __future__ import annotations

from functools import lru_cache

from headrace.model.cost import all_layers_weight_bytes, layer_weight_bytes
from headrace.model.shape import ModelShape

_SLOTS = 2
"""A layer's weights are in use while the next layer's come."""


@lru_cache(maxsize=64)
def weight_slots(shape: ModelShape) -> int:
    """Return the slots that streamed weights go through.

    Two suffice where layers take equally long. Windowed layers are quick, and come in runs between
    layers that attend to the whole context: all of a run's weights have to come during one of
    those, so there is a slot more for each layer of the longest run.
    """
    if shape.full_layers == 0:
        return _SLOTS
    longest = run = 0
    # The run that ends a step goes on at the beginning of the next one.
    for layer in 2 * list(range(shape.num_layers)):
        run = run + 1 if layer in shape.windowed_indices else 0
        longest = max(longest, run)
    return _SLOTS + longest


def streamed_device_bytes(shape: ModelShape) -> int:
    """Return what streaming all layers' weights adds on the device: slots, less the weights."""
    largest = max(layer_weight_bytes(group.shape) for group in shape.all_groups)
    return min(0, weight_slots(shape) * largest - all_layers_weight_bytes(shape))
