"""From granules to a program: which operations a step has, in which order, what waits for what."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.hardware.profile import MEASURED_PAGE_TOKENS
from headrace.model.shape import ModelShape
from headrace.plan.batches import BatchWork, StepOrder, Stores
from headrace.plan.builder import StepBuilder
from headrace.plan.granules import GranuleKind, GranuleSpec, layer_granules, order_granules
from headrace.plan.operations import Program
from headrace.plan.policies import Policy
from headrace.plan.step_work import Schedule
from headrace.plan.weights import weight_slots

__all__ = [
    "BatchWork",
    "GranuleKind",
    "GranuleSpec",
    "StepOrder",
    "build_program",
    "build_step",
    "layer_granules",
    "order_granules",
]


def build_program(
    shape: ModelShape,
    layers: Sequence[Sequence[GranuleSpec]],
    rows: int,
    q_len: int,
    ring_slots: int,
    policy: Policy,
    stores: Sequence[Stores] | None = None,
    *,
    device_tokens: Sequence[int] | None = None,
    host_tokens: Sequence[int] = (),
    page_tokens: int = MEASURED_PAGE_TOKENS,
    layer_weights: tuple[int, ...] = (),
) -> Program:
    """Return the program of one step of one batch.

    Args:
        shape: the model.
        layers: the granules of each layer, ordered; empty where a layer has none (windowed).
        rows: sequences in the batch.
        q_len: new tokens of each row; 1 when decoding.
        ring_slots: staging slots.
        policy: decides what waits for what.
        stores: kind and bytes of each layer's stores.
        device_tokens: for each layer, the tokens that ``ATTEND_NEW`` attends to, summed over rows;
            by default the step's own.
        host_tokens: for each layer, those that the host's cores attend to; empty for none.
        page_tokens: tokens of a page.
        layer_weights: bytes of each layer's weights that are brought in; empty for none.
    """
    if len(layers) != shape.num_layers:
        raise ValueError(f"{len(layers)} lists of granules for {shape.num_layers} layers")
    none: Sequence[Stores] = [()] * shape.num_layers
    own = [rows * q_len] * shape.num_layers
    work = BatchWork(
        rows,
        layers,
        none if stores is None else stores,
        own if device_tokens is None else device_tokens,
        host_tokens,
        page_tokens,
    )
    order = StepOrder(policy, ring_slots, layer_weights=layer_weights)
    return build_step(shape, [work], q_len, order)


def build_step(
    shape: ModelShape, batches: Sequence[BatchWork], q_len: int, order: StepOrder
) -> Program:
    """Return the program of one step.

    Each layer has its loads in granule order, among which the next layers' weights come, where they
    are streamed; its dense work; the attention to what is on the device anyway; for each granule a
    rebuild (X only) and an attend; the merge; its stores. Dense work waits for its weights, and a
    rebuild, or an attend to K/V, for its load; the host attends once the dense work has made the
    queries, and the merge waits for it; stores wait for the layer's ``ATTEND_NEW``, which comes
    after the layer's own K/V are made. The head comes last. Row-by-row, a batch goes through all of
    that before the next one. Column-by-column, all batches go through a layer before the next
    layer: its weights come once, its dense work is one operation over all rows, and its merges come
    after the attention of all batches.

    The paper's schedule (``kvpr``) has no look-ahead: a layer's loads wait for the merge of the
    layer above, all its rebuilds for its last load of X, and the new tokens' attention comes last.
    If the ring is shorter than the X granules of the layer, they wait for the last one that fits
    the ring with them. Column-by-column it brings in the next batch's cache while it works on this
    one's.

    Args:
        shape: the model.
        batches: the work of each batch.
        q_len: new tokens of each row; 1 when decoding.
        order: what runs when.
    """
    column = order.schedule is Schedule.COLUMN and len(batches) > 1
    layers = list(range(shape.num_layers))
    turns: list[tuple[int, Sequence[BatchWork]]] = [(layer, batches) for layer in layers]
    if not column:
        turns = [(layer, [batch]) for batch in batches for layer in layers]
    lookahead = order.policy is not Policy.KVPR
    return Program(
        StepBuilder(shape, q_len, order, turns).build(),
        shape.num_layers,
        order.ring_slots,
        lookahead,
        weight_slots(shape),
    )
