"""How the cache is cut: pages of a row's tokens, and granules of pages that are staged at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.errors import ConfigurationError
from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.model.shape import ModelShape
from headrace.plan.policies import Policy, Split

SMALLEST_BLOCK_TOKENS = 16
LARGEST_BLOCK_TOKENS = 256
USUAL_BLOCK_TOKENS = 64
USUAL_RING_SLOTS = 8
TIGHT_RING_SLOTS = 4
FEWEST_RING_SLOTS = 3
GRANULES_PER_STEP = 64
GRANULES_PER_SERIAL_LAYER = 8
SMALLEST_GRANULE_BYTES = 2**20
LARGEST_GRANULE_BYTES = 2**26
LARGEST_TAIL_SHARE = 1 / 16
MOST_GRANULES_UNDER_BUDGET = 64
MOST_RING_SLOTS = 64
STORE_SLOTS = 3
"""Buffers through which stores leave the device, each as large as a staging slot."""

MOST_PROMPT_GRANULE_BYTES = 2**24
"""Granules are at least so large, or hold as many tokens as a prompt's part, if there are parts."""

_GRANULE_PARTS = (1, 4, 16)
_MORE_GRANULE_PARTS = (1, 2, 4, 8, 16)
"""Of usual granules: the sizes among which is chosen, and those where their number counts."""

_REBUILT_LOADS = 4
"""For how many loads' time a granule of X may keep the device busy, where others are streamed."""

_REBUILD_COPIES = 3
"""What rebuilding takes at its peak, in units of the K/V that it makes: K/V, cosines and sines, the
keys times either, and their sum."""


@dataclass(frozen=True)
class Geometry:
    """How the cache is cut.

    Attributes:
        block_tokens: tokens of one row in a page; a power of two from 16 to 256.
        granule_bytes: size of a staging slot; a granule is a run of whole pages that fits.
        ring_slots: staging slots, filled round and round; at least 3.
        activation_bytes: most bytes of a granule of X, where that is less than a slot; None: a
            slot. Rebuilding a whole slot may take so long that all others are full meanwhile.

    Raises:
        ConfigurationError: a value is not allowed.
    """

    block_tokens: int
    granule_bytes: int
    ring_slots: int = USUAL_RING_SLOTS
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        tokens = self.block_tokens
        if not SMALLEST_BLOCK_TOKENS <= tokens <= LARGEST_BLOCK_TOKENS or tokens & (tokens - 1):
            raise ConfigurationError(
                f"block_tokens is {tokens}; allowed are powers of two from "
                f"{SMALLEST_BLOCK_TOKENS} to {LARGEST_BLOCK_TOKENS}"
            )
        if self.granule_bytes < 1:
            raise ConfigurationError(f"granule_bytes is {self.granule_bytes}; it must be above 0")
        if self.ring_slots < FEWEST_RING_SLOTS:
            raise ConfigurationError(
                f"ring_slots is {self.ring_slots}; at least {FEWEST_RING_SLOTS} are needed"
            )

    @property
    def ring_bytes(self) -> int:
        """Bytes of all staging slots."""
        return self.ring_slots * self.granule_bytes

    def pages_per_granule(self, bytes_per_token: int) -> int:
        """Return how many pages of tokens of the given size one granule holds (at least 1)."""
        return max(1, self.granule_bytes // (self.block_tokens * bytes_per_token))

    def rebuilt_pages_per_granule(self, bytes_per_token: int) -> int:
        """Return how many pages of X, of so many bytes a token, one granule holds (at least 1)."""
        most = self.granule_bytes if self.activation_bytes is None else self.activation_bytes
        return max(1, min(most, self.granule_bytes) // (self.block_tokens * bytes_per_token))

    def workspace_bytes(self, shape: ModelShape) -> int:
        """Return the bytes of K/V that are rebuilt from the largest granule of X.

        While keys are rotated, or brought into the order that their product wants, there is as much
        again, and more.
        """
        pages = self.rebuilt_pages_per_granule(activation_bytes_per_token(shape))
        return _REBUILD_COPIES * pages * self.block_tokens * kv_bytes_per_token(_widest(shape))

    def staging_bytes(self, shape: ModelShape) -> int:
        """Return the bytes of all buffers that cached tokens go through."""
        return self.ring_bytes + STORE_SLOTS * self.granule_bytes + self.workspace_bytes(shape)

    def tail_bytes(self, shape: ModelShape, rows: int) -> int:
        """Return the bytes of the newest tokens' K/V, up to a block a row, in all layers."""
        layers = sum(group.layers * kv_bytes_per_token(group.shape) for group in shape.groups)
        return rows * self.block_tokens * layers

    def paged_tokens(self, context: int) -> int:
        """Return the tokens of a row that are in pages: all whole blocks.

        The rest, less than a block, are in the tail on the device.
        """
        return context // self.block_tokens * self.block_tokens


def choose_geometry(
    shape: ModelShape,
    rows: int,
    context: int,
    split: Split,
    gpu_budget_bytes: float | None = None,
    *,
    policy: Policy | None = None,
    least_bytes: float = 0.0,
) -> Geometry:
    """Choose how to cut the cache: the first of ``geometries`` that fits, or else the smallest.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row.
        split: how they are divided over the paths (nothing travels where all is resident).
        gpu_budget_bytes: device memory for ring, workspace and tail together; None: no limit.
        policy: ``kvpr`` stages all X of a layer before it rebuilds, so its ring is longer.
        least_bytes: of a granule (see ``prompt_granule_bytes``).
    """
    chosen = None
    for chosen in geometries(shape, rows, context, split, policy=policy, least_bytes=least_bytes):
        if gpu_budget_bytes is None:
            break
        if _staged_bytes(shape, chosen, rows, split) <= gpu_budget_bytes:
            break
    assert chosen is not None
    return chosen


def geometries(
    shape: ModelShape,
    rows: int,
    context: int,
    split: Split,
    *,
    policy: Policy | None = None,
    pace: Pace | None = None,
    least_bytes: float = 0.0,
) -> Iterator[Geometry]:
    """Yield ways to cut the cache, the usual one first, each smaller than the one before.

    A page has 64 tokens, or fewer (16 at least) where the tail would be more than a sixteenth of
    the cached tokens. A granule is a 64th of what a step brings through the link, 1 to 64 MiB in
    whole pages, and at most a layer: smaller ones would only cost more launches, as loads run ahead
    over layers and steps. Where they do not (``kvpr``) it is an eighth of a layer. The ring has
    eight slots, to bridge what the host does between two steps. First the ring shrinks to four,
    then granules shrink (to 1 MiB, and to a 64th of the layer), then pages, then the ring to three.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row.
        split: how they are divided over the paths.
        policy: ``kvpr`` stages all X of a layer before it rebuilds, so its ring is longer.
        pace: what the machine asks for.
        least_bytes: of a granule (see ``prompt_granule_bytes``).
    """
    rebuild_loads = pace.rebuild_loads if pace else 0.0
    cut = _Cut(shape, rows, context, split, policy, rebuild_loads, least_bytes)
    wanted = cut.usual_bytes
    yield cut.of(wanted, USUAL_RING_SLOTS)
    yield cut.of(wanted, TIGHT_RING_SLOTS)
    least_bytes = max(
        SMALLEST_GRANULE_BYTES, cut.layer_bytes / MOST_GRANULES_UNDER_BUDGET, least_bytes
    )
    while wanted > least_bytes:
        wanted = max(wanted / 2, least_bytes)
        yield cut.of(wanted, TIGHT_RING_SLOTS)
    for block_tokens in _blocks_down_from(usual_block_tokens(context) // 2):
        yield cut.of(wanted, TIGHT_RING_SLOTS, block_tokens)
    yield cut.of(wanted, FEWEST_RING_SLOTS, SMALLEST_BLOCK_TOKENS)


@dataclass(frozen=True)
class Pace:
    """What the pace of link and device asks of staging.

    Attributes:
        ahead_bytes: what has to be loaded ahead in each layer while the device does other work, so
            that the link need not wait.
        rebuild_loads: for how many loads' time a granule of X keeps the device busy.
    """

    ahead_bytes: float = 0.0
    rebuild_loads: float = 0.0


def staging_choices(
    shape: ModelShape,
    rows: int,
    context: int,
    split: Split,
    *,
    policy: Policy | None = None,
    pace: Pace,
    launches_count: bool = False,
    least_bytes: float = 0.0,
) -> Iterator[Geometry]:
    """Yield ways to cut the cache among which memory and latencies decide, the largest first.

    Granules are those of ``geometries``, or a fourth, or a sixteenth of them; the ring has eight
    slots, or as many as the pace asks for. The last two are the smallest in usual pages, and the
    smallest.

    Args:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row.
        split: how they are divided over the paths.
        policy: ``kvpr`` stages all X of a layer before it rebuilds, so its ring is longer.
        pace: what the machine asks for.
        launches_count: whether it matters how many granules there are: there are then halves and
            eighths, too, rings of four slots, and shorter pages, all of which leave room for larger
            ones.
        least_bytes: of a granule (see ``prompt_granule_bytes``).
    """
    cut = _Cut(shape, rows, context, split, policy, pace.rebuild_loads, least_bytes)
    parts = _MORE_GRANULE_PARTS if launches_count else _GRANULE_PARTS
    if policy is Policy.KVPR:
        # It attends to K/V after all rebuilding, so that a layer's must all have come by then.
        usual = cut.of(cut.usual_bytes, USUAL_RING_SLOTS)
        slots = math.ceil(cut.layer_bytes / usual.granule_bytes)
        yield cut.of(cut.usual_bytes, min(max(slots, USUAL_RING_SLOTS), MOST_RING_SLOTS))
        yield usual
    for part in () if policy is Policy.KVPR else parts:
        least = max(least_bytes, min(SMALLEST_GRANULE_BYTES, cut.usual_bytes))
        size_bytes = max(cut.usual_bytes / part, least)
        ahead = math.ceil(pace.ahead_bytes / cut.of(size_bytes, FEWEST_RING_SLOTS).granule_bytes)
        # One slot is read, one is filled, and rebuilding is to be bridged as well.
        needed = 2 + ahead + math.ceil(min(pace.rebuild_loads, _REBUILT_LOADS))
        yield cut.of(size_bytes, min(max(needed, USUAL_RING_SLOTS), MOST_RING_SLOTS))
        yield cut.of(size_bytes, USUAL_RING_SLOTS)
        if launches_count:
            for block_tokens in _blocks_down_from(usual_block_tokens(context)):
                yield cut.of(size_bytes, TIGHT_RING_SLOTS, block_tokens)
    smaller = list(
        geometries(shape, rows, context, split, policy=policy, pace=pace, least_bytes=least_bytes)
    )
    yield [one for one in smaller if one.block_tokens == smaller[0].block_tokens][-1]
    yield smaller[-1]


@dataclass(frozen=True)
class _Cut:
    """Cuts one layer's cache.

    Attributes:
        shape: the model.
        rows: sequences in the batch.
        context: cached tokens of a row.
        split: how they are divided over the paths.
        policy: whose schedule.
        rebuild_loads: see ``Pace``.
        least_bytes: of a granule.
    """

    shape: ModelShape
    rows: int
    context: int
    split: Split
    policy: Policy | None
    rebuild_loads: float = 0.0
    least_bytes: float = 0.0

    @property
    def layer_bytes(self) -> float:
        """Bytes that the link brings for a layer."""
        return self.rows * self.context * _link_bytes_per_token(self.shape, self.split)

    @property
    def usual_bytes(self) -> float:
        """Bytes of a granule where memory does not ask for smaller ones."""
        layer_bytes = self.layer_bytes
        if self.policy is Policy.KVPR:
            wanted, most = layer_bytes / GRANULES_PER_SERIAL_LAYER, layer_bytes / 4
        else:
            wanted, most = layer_bytes * self.shape.full_layers / GRANULES_PER_STEP, layer_bytes
        usual = min(max(wanted, SMALLEST_GRANULE_BYTES), LARGEST_GRANULE_BYTES, most)
        least = min(self.least_bytes, most) if self.policy is Policy.KVPR else self.least_bytes
        return max(usual, least)

    def of(self, granule_bytes: float, slots: int, block_tokens: int | None = None) -> Geometry:
        """Return the geometry of granules of about a size."""
        block = usual_block_tokens(self.context) if block_tokens is None else block_tokens
        page_bytes = block * _largest_bytes_per_token(self.shape, self.split)
        whole = max(1, int(granule_bytes / page_bytes)) * page_bytes
        made = Geometry(block, whole, slots)
        if self.policy is Policy.KVPR and self.split.recompute > 0:
            x_granules = _x_granules(self.shape, made, self.rows, self.context, self.split)
            return replace(made, ring_slots=slots + x_granules)
        # While one slot is rebuilt and one is filled, the link needs others to go on.
        spare = min(slots - 2, _REBUILT_LOADS)
        if self.split.stream > 0 and self.rebuild_loads > spare:
            return replace(made, activation_bytes=int(whole * spare / self.rebuild_loads))
        return made


def prompt_granule_bytes(shape: ModelShape, part_tokens: int) -> int:
    """Return the least bytes of a granule where prompts come in parts.

    All that is cached of a prompt's earlier parts travels for each later one, whatever the path in
    decode steps, and every granule costs launches.

    Args:
        shape: the model.
        part_tokens: tokens of a part.
    """
    return min(MOST_PROMPT_GRANULE_BYTES, part_tokens * kv_bytes_per_token(_widest(shape)))


def usual_block_tokens(context: int) -> int:
    """Return the tokens of a page where memory does not ask for smaller ones."""
    block_tokens = USUAL_BLOCK_TOKENS
    while block_tokens > SMALLEST_BLOCK_TOKENS and block_tokens > LARGEST_TAIL_SHARE * context:
        block_tokens //= 2
    return block_tokens


def _blocks_down_from(block_tokens: int) -> Iterator[int]:
    """Yield a number of tokens of a page, and all smaller ones."""
    while block_tokens >= SMALLEST_BLOCK_TOKENS:
        yield block_tokens
        block_tokens //= 2


def granule_sizes(pages: int, most: int) -> list[int]:
    """Divide pages over as few granules of at most ``most`` pages as there can be, evenly."""
    if pages <= 0:
        return []
    granules = -(-pages // most)
    return [pages * (i + 1) // granules - pages * i // granules for i in range(granules)]


def _staged_bytes(shape: ModelShape, geometry: Geometry, rows: int, split: Split) -> int:
    workspace = geometry.workspace_bytes(shape) if split.recompute > 0 else 0
    return geometry.ring_bytes + workspace + geometry.tail_bytes(shape, rows)


def _x_granules(
    shape: ModelShape, geometry: Geometry, rows: int, context: int, split: Split
) -> int:
    pages = rows * round(split.recompute * geometry.paged_tokens(context) / geometry.block_tokens)
    return -(-pages // geometry.rebuilt_pages_per_granule(activation_bytes_per_token(shape)))


def _link_bytes_per_token(shape: ModelShape, split: Split) -> float:
    """Return κt + χx: the bytes that the link brings for each cached token of a layer."""
    kv_bytes = kv_bytes_per_token(_widest(shape)) * split.stream
    return kv_bytes + activation_bytes_per_token(shape) * split.recompute


def _largest_bytes_per_token(shape: ModelShape, split: Split) -> int:
    kv_bytes = kv_bytes_per_token(_widest(shape))
    return max(kv_bytes, activation_bytes_per_token(shape)) if split.recompute > 0 else kv_bytes


def _widest(shape: ModelShape) -> ModelShape:
    """Return the layer whose K/V are widest, for slots must hold those."""
    return max((group.shape for group in shape.groups), key=kv_bytes_per_token, default=shape)
