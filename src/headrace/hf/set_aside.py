"""What of a budget of device memory is not for the planner to give away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from headrace.hf.attachment import Attachment, attached
from headrace.hf.replay import replay_bytes
from headrace.hf.shape import model_shape
from headrace.hf.weights import device_bytes, placed_weights
from headrace.model.shape import ModelShape
from headrace.plan.memory import weight_items
from headrace.plan.workload import Workload

LIBRARY_BYTES = 96 << 20
"""Device memory that CUDA's libraries take for themselves through torch: cuBLAS 32 MiB for each
stream that it is called on, and some for reductions."""

INDEX_BYTES = 40
"""For each token that is cached: what is kept of its place and its position."""

_MOST_RESULTS = 1 << 28
"""Bytes of partial results of attention that exist at once; those of decode steps are planned."""

_MOST_SCORES = 1 << 26
"""Bytes of attention scores that exist at once, under a budget: few steps need any."""

_SCORES_SHARE = 64
"""Both take at most one part in so many of a budget."""

_SCORE_COPIES = 2
"""Scores, and what is made from them before they are let go of."""


def scores_bytes(budget_bytes: int | None) -> int:
    """Return the most bytes of attention scores that may exist at once."""
    if budget_bytes is None:
        return _MOST_RESULTS
    return max(1, min(_MOST_SCORES, budget_bytes // _SCORES_SHARE))


def results_bytes(budget_bytes: int | None) -> int:
    """Return the most bytes of a layer's partial results that may exist at once."""
    if budget_bytes is None:
        return _MOST_RESULTS
    return max(1, min(_MOST_RESULTS, budget_bytes // _SCORES_SHARE))


def scratch_bytes(budget_bytes: int) -> int:
    """Return what is set aside of a budget for the scores of attention and their masks."""
    return _SCORE_COPIES * scores_bytes(budget_bytes)


@dataclass(frozen=True)
class SetAside:
    """What is taken from a budget before the planner sees it.

    Attributes:
        fixed_bytes: whatever the budget; room for scores comes on top, and grows with it.
    """

    fixed_bytes: int

    def left_of(self, budget_bytes: int | None) -> int | None:
        """Return what the planner may give away; None: all that the device has."""
        if budget_bytes is None:
            return None
        return max(1, budget_bytes - self.fixed_bytes - scratch_bytes(budget_bytes))

    def budget_for(self, planned_bytes: int) -> int:
        """Return the budget that leaves the planner so much."""
        without_scores = planned_bytes + self.fixed_bytes
        small = -(-without_scores * _SCORES_SHARE // (_SCORES_SHARE - _SCORE_COPIES))
        return min(small, without_scores + _SCORE_COPIES * _MOST_SCORES)


def set_aside(
    model: nn.Module,
    attachment: Attachment,
    shape: ModelShape,
    workload: Workload,
    device: torch.device,
) -> SetAside:
    """Return what a model and its cache take that the planner does not count.

    That is what a model has beside matrices (norms, biases, embeddings of positions), what is kept
    on the device because a parameter is streamed whole or not at all, the libraries' workspaces,
    recorded forwards, and tables whose size follows the tokens.

    Args:
        model: with its weights where they are to be.
        attachment: what is known of it.
        shape: its shape.
        workload: the batch.
        device: the model's.
    """
    streamed = 0.0 if attachment.placed is None else attachment.placed.share
    counted = sum(weight_items(shape, streamed).values())
    fixed = max(0, device_bytes(model, device) - counted)
    if device.type == "cuda":
        fixed += LIBRARY_BYTES
        fixed += 0 if attachment.placed else replay_bytes(shape, workload.rows)
    fixed += INDEX_BYTES * workload.rows * workload.max_context
    if attachment.why_not_rebuilt is None:
        fixed += _rotary_bytes(attachment, workload.max_context)
    return SetAside(fixed)


def set_aside_of(model: nn.Module, workload: Workload) -> SetAside:
    """Return the same of a model that no cache need be attached to."""
    placed = placed_weights(model)
    parameter = next(model.parameters())
    device = parameter.device if placed is None else placed.backend.device
    with attached(model) as attachment:
        shape = model_shape(model, attachment, parameter.dtype)
        return set_aside(model, attachment, shape, workload, device)


def _rotary_bytes(attachment: Attachment, positions: int) -> int:
    """Return the most that tables of cosines and sines take."""
    seen = attachment.layers[0].observation.key
    widest = max(layer.observation.key.shape[3] for layer in attachment.layers)
    return len(attachment.rotary_tables) * 2 * positions * widest * seen.element_size()
