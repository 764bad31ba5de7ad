"""The granules of a layer: what is staged and attended at once, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry, granule_sizes
from headrace.plan.policies import Policy, Split

GranuleKind = Literal["activations", "kv", "resident"]


@dataclass(frozen=True, slots=True)
class GranuleSpec:
    """A run of pages of one kind that is attended at once.

    Attributes:
        kind: ``activations`` (X on the host), ``kv`` (K/V on the host) or ``resident`` (K/V on the
            device, which nothing loads).
        pages: how many pages.
        tokens: cached tokens in them, summed over rows.
        link_bytes: bytes to bring through the link; 0 for ``resident``.
    """

    kind: GranuleKind
    pages: int
    tokens: int
    link_bytes: int


def layer_granules(
    split: Split, geometry: Geometry, rows: int, context: int, shape: ModelShape
) -> list[GranuleSpec]:
    """Return the granules of one full layer, for planning: resident, then X, then K/V.

    What the host attends to is no granule: nothing of it is staged. The tail (less than a block of
    each row) is left out: it is on the device anyway. Where all tokens are resident there is no
    tail, and one granule is the whole.

    Args:
        split: how the pages of a row are divided.
        geometry: how the cache is cut.
        rows: sequences in the batch, all alike.
        context: cached tokens of a row.
        shape: the model.
    """
    if context == 0:
        return []
    if split.resident == 1:
        pages = -(-context // geometry.block_tokens)
        return [GranuleSpec("resident", rows * pages, rows * context, 0)]
    block = geometry.block_tokens
    counts = path_pages(split, rows, geometry.paged_tokens(context) // block)
    kinds: tuple[tuple[GranuleKind, int, int], ...] = (
        ("activations", counts.recompute, activation_bytes_per_token(shape)),
        ("kv", counts.stream, kv_bytes_per_token(shape)),
    )
    granules = [GranuleSpec("resident", counts.resident, counts.resident * block, 0)]
    for kind, pages, token_bytes in kinds:
        if kind == "activations":
            most = geometry.rebuilt_pages_per_granule(token_bytes)
        else:
            most = geometry.pages_per_granule(token_bytes)
        granules += [
            GranuleSpec(kind, size, size * block, size * block * token_bytes)
            for size in granule_sizes(pages, most)
        ]
    return granules if counts.resident else granules[1:]


@dataclass(frozen=True)
class PathPages:
    """Pages of one layer on each path, over all rows."""

    resident: int
    stream: int
    recompute: int
    host: int


def path_pages(split: Split, rows: int, pages: int) -> PathPages:
    """Divide the pages of equal rows over the paths, in whole pages.

    They are any rows': rows differ by a page, so that together they have the shares. Nothing is
    rounded up onto the device: what is left over is streamed.

    Args:
        split: how they are divided.
        rows: sequences.
        pages: pages of each row.
    """
    total = rows * pages
    recompute = round(split.recompute * total)
    resident = min(total - recompute, int(split.resident * total + 1e-6))
    host = min(total - recompute - resident, round(split.host * total))
    if split.stream == 0 and split.host > 0:
        host = total - recompute - resident
    elif split.stream == split.host == 0:
        # What rounding leaves over can only be where the split has something.
        if split.resident == 0:
            recompute = total
        elif recompute + resident < total and split.recompute > 0:
            recompute = total - resident
    return PathPages(resident, total - recompute - resident - host, recompute, host)


def order_granules(specs: Sequence[GranuleSpec], policy: Policy) -> list[GranuleSpec]:
    """Return a layer's granules in the order in which they are loaded and attended.

    Resident ones come first: they need no load. Then ``kvpr`` takes all X and then all K/V (the
    paper's order); every other policy interleaves X and K/V evenly, X first, so that link and
    device both always have work.
    """
    resident = [spec for spec in specs if spec.kind == "resident"]
    activations = [spec for spec in specs if spec.kind == "activations"]
    kv = [spec for spec in specs if spec.kind == "kv"]
    if policy is Policy.KVPR:
        return resident + activations + kv
    total = len(activations) + len(kv)
    ordered, taken = resident, 0
    for position in range(1, total + 1):
        # Bresenham: after this position, ceil(position · share of X) granules of X are out.
        if taken * total < position * len(activations):
            ordered.append(activations[taken])
            taken += 1
        else:
            ordered.append(kv[position - 1 - taken])
    return ordered
