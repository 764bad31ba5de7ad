"""Kernels for attention over pages on a GPU, in Triton: one launch a granule, one launch a layer.

``attend_pages`` reads pages where they are, through the entries of a granule; no row's queries are
gathered and no page is copied. ``merge_parts`` brings all parts of a layer together. With torch's
own operations, the same takes a dozen launches and as many passes over memory.

This module needs Triton, which comes with torch's CUDA builds; ``gpu_kernels`` chooses.

Shape suffixes: E entries (a page as one row sees it), B rows, P pages, H key/value heads, G query
heads per key/value head times query tokens, T tokens of a page, D head width, N entries of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from headrace.runtime.attention import EntryTable, Partial, Rotation, Scoring
from headrace.runtime.triton_launcher import Launcher

_TOKENS_AT_ONCE = 64
_ROTATED_AT_ONCE = 16
_ENTRIES_AT_ONCE = 16
_MANY_ENTRIES = 64
"""From so many entries of a row on, so many are merged at once, by as many more warps: few rows of
many entries are a long loop of few programs, with the cores' result waiting at its end."""

_LEAST_DOT = 16
"""Tensor cores take no fewer rows."""

_WARPS = 2
"""Of a program; measured on an H100, where either kernel then reads at 2.7 to 2.9 TB/s."""

_ROTATION = ("cos", "sin", "positions")
_FRESH = ("fresh_key", "fresh_value", "fresh_place")
_RESULT = ("output", "maximum", "total")
_NEW = ("new_output", "new_maximum", "new_total")
_HOST = ("host_output", "host_maximum", "host_total")


# Sizes and strides are few, and known to the compiler; so the only arguments are pointers.
@triton.jit(
    do_not_specialize=["first"],
    do_not_specialize_on_alignment=[
        "entry_row",
        "entry_page",
        "visible",
        *_ROTATION,
        *_FRESH,
        *_RESULT,
    ],
)
def _attend_pages_kernel(
    query,
    key,
    value,
    entry_row,
    entry_page,
    visible,
    cos,
    sin,
    positions,
    fresh_key,
    fresh_value,
    fresh_place,
    output,
    maximum,
    total,
    first,
    scale: tl.constexpr,
    softcap: tl.constexpr,
    query_row: tl.constexpr,
    query_head: tl.constexpr,
    query_one: tl.constexpr,
    key_page: tl.constexpr,
    key_head: tl.constexpr,
    key_token: tl.constexpr,
    value_page: tl.constexpr,
    value_head: tl.constexpr,
    value_token: tl.constexpr,
    angle_row: tl.constexpr,
    rotated: tl.constexpr,
    fresh_key_page: tl.constexpr,
    fresh_key_head: tl.constexpr,
    fresh_value_page: tl.constexpr,
    fresh_value_head: tl.constexpr,
    heads: tl.constexpr,
    tokens: tl.constexpr,
    grouped: tl.constexpr,
    width: tl.constexpr,
    has_row: tl.constexpr,
    has_page: tl.constexpr,
    has_visible: tl.constexpr,
    has_fresh: tl.constexpr,
    block_g: tl.constexpr,
    block_t: tl.constexpr,
    block_d: tl.constexpr,
):
    """One program attends all queries of one key/value head to one entry.

    A page that is given a fresh token gets it in its memory, too; every head of it has one entry.
    """
    entry = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    row = tl.load(entry_row + entry) if has_row else entry
    page = tl.load(entry_page + entry) if has_page else entry
    ones = tl.arange(0, block_g)
    dims = tl.arange(0, block_d)
    is_query = (ones < grouped)[:, None] & (dims < width)[None, :]
    queries = query + row * query_row + head * query_head
    q = tl.load(queries + ones[:, None] * query_one + dims[None, :], mask=is_query, other=0.0)
    keys = key + page * key_page + head * key_head
    values = value + page * value_page + head * value_head

    largest = tl.full((block_g,), float("-inf"), tl.float32)
    sums = tl.zeros((block_g,), tl.float32)
    result = tl.zeros((block_g, block_d), tl.float32)
    for start in range(0, tokens, block_t):
        places = start + tl.arange(0, block_t)
        seen = places < tokens
        if has_visible:
            seen = seen & (tl.load(visible + entry * tokens + places, mask=seen, other=0) != 0)
        is_key = seen[:, None] & (dims < width)[None, :]
        k = tl.load(keys + places[:, None] * key_token + dims[None, :], mask=is_key, other=0.0)
        v = tl.load(values + places[:, None] * value_token + dims[None, :], mask=is_key, other=0.0)
        if rotated > 0:
            # The first half of a head's first numbers is rotated against the second.
            half: tl.constexpr = rotated // 2
            angle = tl.load(positions + page * tokens + places, mask=seen, other=0)
            angles = angle[:, None] * angle_row + (dims % half)[None, :]
            turns = is_key & (dims < rotated)[None, :]
            c = tl.load(cos + angles, mask=turns, other=1.0).to(tl.float32)
            s = tl.load(sin + angles, mask=turns, other=0.0).to(tl.float32)
            s = tl.where((dims < half)[None, :], -s, s)
            partner = tl.where(dims < half, dims + half, dims - half)
            others = keys + places[:, None] * key_token + partner[None, :]
            other = tl.load(others, mask=turns, other=0.0).to(tl.float32)
            turned = k.to(tl.float32) * c + other * s
            k = turned if block_g == 1 else turned.to(k.dtype)
        if has_fresh:
            fresh = tl.load(fresh_place + page)
            in_head = dims < width
            from_key = fresh_key + page * fresh_key_page + head * fresh_key_head
            from_value = fresh_value + page * fresh_value_page + head * fresh_value_head
            new_key = tl.load(from_key + dims, mask=in_head, other=0.0)
            new_value = tl.load(from_value + dims, mask=in_head, other=0.0)
            tl.store(keys + fresh * key_token + dims, new_key, mask=in_head)
            tl.store(values + fresh * value_token + dims, new_value, mask=in_head)
            # What is stored may not be there yet for all threads.
            is_fresh = (places == fresh)[:, None]
            k = tl.where(is_fresh, new_key[None, :], k)
            v = tl.where(is_fresh, new_value[None, :], v)
        if block_g == 1:
            scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1)[None, :]
        else:
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = scores * scale
        if softcap > 0:
            scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp(largest - base)
        weights = tl.exp(scores - base[:, None])
        sums = sums * kept + tl.sum(weights, axis=1)
        if block_g == 1:
            added = tl.sum(tl.trans(weights) * v.to(tl.float32), axis=0)[None, :]
        else:
            added = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        result = result * kept[:, None] + added
        largest = higher

    at = ((first + entry) * heads + head) * grouped + ones
    tl.store(maximum + at, largest, mask=ones < grouped)
    tl.store(total + at, sums, mask=ones < grouped)
    tl.store(output + at[:, None] * width + dims[None, :], result, mask=is_query)


@triton.jit(
    do_not_specialize=["entries", "rows", "places"],
    do_not_specialize_on_alignment=["index", "missing", *_RESULT, *_NEW, *_HOST],
)
def _merge_kernel(
    output,
    maximum,
    total,
    index,
    missing,
    new_output,
    new_maximum,
    new_total,
    host_output,
    host_maximum,
    host_total,
    merged,
    entries,
    rows,
    places,
    queries: tl.constexpr,
    width: tl.constexpr,
    has_missing: tl.constexpr,
    has_new: tl.constexpr,
    has_host: tl.constexpr,
    block_e: tl.constexpr,
    block_d: tl.constexpr,
):
    """One program merges and normalises the parts of one query of one row."""
    row = tl.program_id(0) // queries
    one = (tl.program_id(0) % queries).to(tl.int64)
    of_row = row * queries + one
    dims = tl.arange(0, block_d)
    in_head = dims < width

    largest = float("-inf")
    sums = 0.0
    result = tl.zeros((block_d,), tl.float32)
    if has_new:
        largest = tl.load(new_maximum + of_row)
        sums = tl.load(new_total + of_row)
        result = tl.load(new_output + of_row * width + dims, mask=in_head, other=0.0)
    for start in range(0, places, block_e):
        place = start + tl.arange(0, block_e)
        there = place < places
        entry = tl.load(index + place * rows + row, mask=there, other=entries)
        if has_missing:
            there = there & (tl.load(missing + place * rows + row, mask=there, other=1) == 0)
        # The table also names the newest tokens and the host's result, which come by themselves.
        there = there & (entry < entries)
        at = entry * queries + one
        maxima = tl.load(maximum + at, mask=there, other=float("-inf"))
        totals = tl.load(total + at, mask=there, other=0.0)
        parts = tl.load(
            output + at[:, None] * width + dims[None, :],
            mask=there[:, None] & in_head[None, :],
            other=0.0,
        )
        higher = tl.maximum(largest, tl.max(maxima, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp(largest - base)
        weights = tl.exp(maxima - base)
        sums = sums * kept + tl.sum(totals * weights, axis=0)
        result = result * kept + tl.sum(parts * weights[:, None], axis=0)
        largest = higher
    if has_host:
        host_largest = tl.load(host_maximum + of_row)
        higher = tl.maximum(largest, host_largest)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp(largest - base)
        weight = tl.exp(host_largest - base)
        sums = sums * kept + tl.load(host_total + of_row) * weight
        added = tl.load(host_output + of_row * width + dims, mask=in_head, other=0.0)
        result = result * kept + added * weight
    result = result / tl.where(sums > 0.0, sums, 1.0)
    tl.store(merged + of_row * width + dims, result.to(merged.dtype.element_ty), mask=in_head)


_attend_pages_launcher = Launcher(_attend_pages_kernel, _WARPS)
_merge_launcher = Launcher(_merge_kernel, _WARPS)
_merge_many_launcher = Launcher(_merge_kernel, _WARPS * _MANY_ENTRIES // _ENTRIES_AT_ONCE)


def attend_pages(
    query_BHGD: Tensor,
    key_PHTD: Tensor,
    value_PHTD: Tensor,
    scoring: Scoring,
    result: Partial,
    entry_row: Tensor | None = None,
    entry_page: Tensor | None = None,
    visible_ET: Tensor | None = None,
    *,
    entries: int | None = None,
    first: int = 0,
    rotation: Rotation | None = None,
    fresh: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Attend each entry's queries to its page.

    Args:
        query_BHGD: queries of all rows; D is contiguous.
        key_PHTD: keys; D is contiguous.
        value_PHTD: values; D is contiguous.
        scoring: scale and soft cap.
        result: float32, contiguous, is written: ``[R, H, G, D]``, ``[R, H, G]`` and ``[R, H, G]``.
        entry_row: int64 ``[E]``; the row of each entry, or None: entry e is of row e.
        entry_page: int64 ``[E]``; the page of each entry, or None: entry e is page e.
        visible_ET: bool, contiguous; places that are seen, or None: all.
        entries: E, or None: R.
        first: the result of entry e goes to ``first + e``.
        rotation: how the keys are rotated first, or None: they are already.
        fresh: a token for each page that is put into it first, or None: its keys ``[P, H, 1, D]``
            and values, D being contiguous, and the place within the page, int64, P elements,
            contiguous. Each page has one entry.
    """
    results, heads, grouped, width = result.output.shape
    tokens = key_PHTD.shape[2]
    none = query_BHGD
    cos, sin, positions = (none, none, none) if rotation is None else rotation
    new_key, new_value, place = (none, none, none) if fresh is None else fresh
    _attend_pages_launcher(
        ((results if entries is None else entries) * heads,),
        (
            query_BHGD,
            key_PHTD,
            value_PHTD,
            none if entry_row is None else entry_row,
            none if entry_page is None else entry_page,
            none if visible_ET is None else visible_ET,
            cos,
            sin,
            positions,
            new_key,
            new_value,
            place,
            result.output,
            result.maximum,
            result.total,
        ),
        (first,),
        (
            scoring.scale,
            scoring.softcap or 0.0,
            *query_BHGD.stride()[:3],
            *key_PHTD.stride()[:3],
            *value_PHTD.stride()[:3],
            *((0, 0) if rotation is None else (cos.stride(0), cos.shape[1])),
            *((0, 0, 0, 0) if fresh is None else (*new_key.stride()[:2], *new_value.stride()[:2])),
            heads,
            tokens,
            grouped,
            width,
            entry_row is not None,
            entry_page is not None,
            visible_ET is not None,
            fresh is not None,
            1 if grouped == 1 else _tile(grouped),
            min(_TOKENS_AT_ONCE if rotation is None else _ROTATED_AT_ONCE, _tile(tokens)),
            _tile(width),
        ),
        3,
    )


def _tile(size: int) -> int:
    """Return the least power of two that a kernel may take for a size."""
    return max(_LEAST_DOT, 1 << (size - 1).bit_length())


def _contiguous(part: Partial) -> Partial:
    return Partial(part.output.contiguous(), part.maximum.contiguous(), part.total.contiguous())


def merge_parts(
    parts: Partial | None,
    table: EntryTable,
    new: Partial | None,
    host: Partial | None,
    merged: Tensor,
    *,
    entries: int | None = None,
) -> None:
    """Merge and normalise everything that the rows of a layer have attended to.

    Args:
        parts: of entries, float32, contiguous; None: of none.
        table: each row's entries; those from E on are passed over.
        new: of each row ``[B, H, G, D]``, float32, or None.
        host: of each row likewise, contiguous, or None.
        merged: contiguous, is written: ``[B, H, G, D]``; 0 where nothing was visible.
        entries: E, or None: all that ``parts`` has room for.
    """
    rows, heads, grouped, width = merged.shape
    places = table.index_NB.shape[0]
    fresh = None if new is None else _contiguous(new)
    some = next(part for part in (parts, fresh, host) if part is not None)
    if parts is None:
        entries = 0
    parts, fresh, hosted = parts or some, fresh or some, host or some
    many = places >= _MANY_ENTRIES
    (_merge_many_launcher if many else _merge_launcher)(
        (rows * heads * grouped,),
        (
            parts.output,
            parts.maximum,
            parts.total,
            table.index_NB,
            parts.total if table.missing_NB is None else table.missing_NB,
            fresh.output,
            fresh.maximum,
            fresh.total,
            hosted.output,
            hosted.maximum,
            hosted.total,
            merged,
        ),
        (parts.output.shape[0] if entries is None else entries, rows, places),
        (
            heads * grouped,
            width,
            table.missing_NB is not None,
            new is not None,
            host is not None,
            _MANY_ENTRIES if many else _ENTRIES_AT_ONCE,
            _tile(width),
        ),
    )
