"""What a step has to do for each batch of rows, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.hardware.profile import MEASURED_PAGE_TOKENS
from headrace.plan.granules import GranuleSpec
from headrace.plan.operations import Kind
from headrace.plan.policies import Policy
from headrace.plan.step_work import Schedule

Stores = Sequence[tuple[Kind, int]]


@dataclass(frozen=True)
class BatchWork:
    """What a step has to do for one batch of rows.

    Attributes:
        rows: sequences.
        granules: of each layer, ordered; empty where a layer has none (windowed).
        stores: kind and bytes of each layer's stores.
        device_tokens: for each layer, the tokens that ``ATTEND_NEW`` attends to, summed over rows.
        host_tokens: for each layer, those that the host's cores attend to; empty for none.
        page_tokens: tokens of a page.
    """

    rows: int
    granules: Sequence[Sequence[GranuleSpec]]
    stores: Sequence[Stores]
    device_tokens: Sequence[int]
    host_tokens: Sequence[int] = ()
    page_tokens: int = MEASURED_PAGE_TOKENS


@dataclass(frozen=True)
class StepOrder:
    """In which order a step's operations run, and what they wait for.

    Attributes:
        policy: the paper's schedule (``kvpr``) has no look-ahead.
        ring_slots: staging slots.
        schedule: the order, where there are several batches.
        weights_streamed: share of each layer's weights that is brought in for the layer.
        layer_weights: bytes that are brought in for each layer instead, where they are known.
        communication_s: seconds of each layer's exchange of results with other devices, for all
            rows together.
        weights_ahead: whether weights come before they are needed, spread evenly over the loads of
            the cache. That is better where layers wait for the device or the host's cores; where
            they wait for the link, what is needed first comes first.
    """

    policy: Policy
    ring_slots: int
    schedule: Schedule = Schedule.ROW
    weights_streamed: float = 0.0
    communication_s: float = 0.0
    weights_ahead: bool = False
    layer_weights: tuple[int, ...] = ()

    def weight_bytes(self, layer: int, of_layer: int) -> int:
        """Return the bytes of a layer's weights that are brought in, given all that it has."""
        if self.layer_weights:
            return self.layer_weights[layer]
        return round(self.weights_streamed * of_layer)
