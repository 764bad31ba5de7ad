"""Partial attention over disjoint sets of keys, and its exact merge.

Shape suffixes: B rows, E entries (a page as one row sees it), H key/value heads, G query heads per
key/value head times query tokens (``group * q_len``), T tokens of a page, K keys, D head width.

For keys in disjoint sets i, softmax attention is recovered exactly from each set's maximum m_i, sum
s_i of exponentials and unnormalised output o_i (float32): with m = max m_i,
``o = sum(exp(m_i - m) o_i) / sum(exp(m_i - m) s_i)``. This is the merge of online softmax
(Milakov and Gimelshein, arXiv 1805.02867) that FlashAttention and flash-decoding use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.runtime.fused import attend_all, is_fused


@dataclass(frozen=True)
class Scoring:
    """How a layer turns query-key products into weights.

    Attributes:
        scale: factor on the products.
        softcap: soft limit of the scaled products (Gemma-2), or None.
        window: a query sees only keys less than this many tokens behind it, or None.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class Partial:
    """Attention over some of the keys, not yet normalised; all tensors float32.

    Attributes:
        output: sum of exponential-weighted values, ``[N, H, G, D]``.
        maximum: largest score, ``[N, H, G]`` (``-inf`` where no key is visible).
        total: sum of ``exp(score - maximum)``, ``[N, H, G]``.
    """

    output: Tensor
    maximum: Tensor
    total: Tensor


class Rotation(NamedTuple):
    """How keys of pages are yet to be rotated: halves of heads, by ``model.rotary.rotate_halves``.

    Attributes:
        cos: cosines by position, ``[positions, W]``; of each head the first W numbers are rotated.
        sin: sines likewise.
        positions_PT: int64, contiguous; position of each token of each page.
    """

    cos: Tensor
    sin: Tensor
    positions_PT: Tensor


def empty_partial(shape: Sequence[int], device: torch.device | str = "cpu") -> Partial:
    """Return a result to be written, of queries of a shape ``[N, H, G, D]``."""
    return Partial(
        torch.empty(tuple(shape), dtype=torch.float32, device=device),
        torch.empty(tuple(shape[:3]), dtype=torch.float32, device=device),
        torch.empty(tuple(shape[:3]), dtype=torch.float32, device=device),
    )


def group_queries(query: Tensor, num_kv_heads: int) -> Tensor:
    """Return queries ``[B, heads, q, D]`` as ``[B, H, G, D]``, G running over group, then q."""
    rows, heads, q_len, width = query.shape
    return query.reshape(rows, num_kv_heads, heads // num_kv_heads * q_len, width)


def ungroup_output(output: Tensor, q_len: int) -> Tensor:
    """Return outputs ``[B, H, G, D]`` as ``[B, q, heads, D]``, as `transformers` expects them."""
    rows, kv_heads, grouped, width = output.shape
    heads = kv_heads * grouped // q_len
    return output.reshape(rows, heads, q_len, width).transpose(1, 2)


def attend(
    query_NHGD: Tensor,
    key_NHKD: Tensor,
    value_NHKD: Tensor,
    scoring: Scoring,
    visible: Tensor | None = None,
) -> Partial:
    """Attend each of N groups of queries to its own keys.

    Args:
        query_NHGD: queries, in the cache's dtype.
        key_NHKD: keys; those that are not contiguous are copied.
        value_NHKD: values.
        scoring: scale, soft cap. (A window must be part of ``visible``.)
        visible: bool, broadcastable to ``[N, H, G, K]``; None when every key is visible.
    """
    # On a CPU the fused kernel is made for many queries, and these may be few.
    fused = query_NHGD.is_cuda and is_fused(query_NHGD)
    if scoring.softcap is None and visible is None and fused:
        return Partial(*attend_all(query_NHGD, key_NHKD, value_NHKD, scoring.scale))
    groups, heads, grouped, width = query_NHGD.shape
    keys = key_NHKD.shape[2]
    scores = _bmm_float32(
        query_NHGD.reshape(groups * heads, grouped, width),
        key_NHKD.reshape(groups * heads, keys, width).transpose(1, 2),
    )
    scores = scores.view(groups, heads, grouped, keys).mul_(scoring.scale)
    if scoring.softcap is not None:
        scores = torch.tanh(scores.div_(scoring.softcap)).mul_(scoring.softcap)
    if visible is not None:
        scores = scores.masked_fill_(~visible, float("-inf"))
    maximum = scores.amax(dim=-1)
    finite = maximum if visible is None else maximum.masked_fill(maximum == float("-inf"), 0.0)
    weights = scores.sub_(finite.unsqueeze(-1)).exp_()
    total = weights.sum(dim=-1)
    output = _bmm_float32(
        weights.to(value_NHKD.dtype).view(groups * heads, grouped, keys),
        value_NHKD.reshape(groups * heads, keys, value_NHKD.shape[3]),
    )
    return Partial(output.view(groups, heads, grouped, -1), maximum, total)


def _bmm_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return a batched matrix product in float32, whatever the operands' dtype."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right).float()


class Accumulator:
    """Merges partial attentions of the same queries over disjoint keys.

    Args:
        query: the grouped queries ``[B, H, G, D]``.
    """

    def __init__(self, query: Tensor) -> None:
        shape, device = query.shape[:3], query.device
        self._output = torch.zeros(query.shape, dtype=torch.float32, device=device)
        self._maximum = torch.full(shape, float("-inf"), dtype=torch.float32, device=device)
        self._total = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, part: Partial, rows: Tensor | None = None) -> None:
        """Add attention over further keys.

        Args:
            part: of all rows ``[B, ...]``, or of some.
            rows: int64; which rows ``part`` is of, if not of all.
        """
        if rows is None or rows.numel() == self._total.shape[0]:
            _merge_into(self.result(), part)
            return
        old = Partial(self._output[rows], self._maximum[rows], self._total[rows])
        merged = merge([old, part])
        self._output[rows] = merged.output
        self._maximum[rows] = merged.maximum
        self._total[rows] = merged.total

    def add_to_row(self, part: Partial, row: int) -> None:
        """Add attention of one row ``[1, ...]`` over further keys."""
        some = slice(row, row + 1)
        _merge_into(Partial(self._output[some], self._maximum[some], self._total[some]), part)

    def result(self) -> Partial:
        """Return the merged, still unnormalised attention."""
        return Partial(self._output, self._maximum, self._total)

    def output(self, dtype: torch.dtype) -> Tensor:
        """Return the normalised output ``[B, H, G, D]`` (0 where nothing was visible)."""
        return normalised(self.result(), dtype)


def _merge_into(sums: Partial, part: Partial) -> None:
    """Merge in place: of many queries, nothing may exist more often than it must."""
    maximum = torch.maximum(sums.maximum, part.maximum)
    finite = maximum.masked_fill(maximum == float("-inf"), 0.0)
    kept, added = (torch.exp(one - finite) for one in (sums.maximum, part.maximum))
    sums.output.mul_(kept.unsqueeze(-1)).addcmul_(part.output, added.unsqueeze(-1))
    sums.total.mul_(kept).addcmul_(part.total, added)
    sums.maximum.copy_(maximum)


def merge(parts: list[Partial]) -> Partial:
    """Merge partial attentions of the same queries over disjoint keys."""
    if len(parts) == 1:
        return parts[0]
    maximum = torch.stack([part.maximum for part in parts])
    return _reduce(
        torch.stack([part.output for part in parts]),
        maximum,
        torch.stack([part.total for part in parts]),
    )


def _reduce(output: Tensor, maximum: Tensor, total: Tensor) -> Partial:
    """Merge along dimension 0."""
    overall = maximum.amax(dim=0)
    weight = torch.exp(maximum - overall.masked_fill(overall == float("-inf"), 0.0))
    return Partial(
        (output * weight.unsqueeze(-1)).sum(dim=0),
        overall,
        (total * weight).sum(dim=0),
    )


@dataclass(frozen=True)
class EntryTable:
    """Which entries belong to each row.

    Attributes:
        index_NB: int64; the entries of each row, any where a row has fewer than N.
        missing_NB: bool; places past a row's last entry, or None if all rows have N.
    """

    index_NB: Tensor
    missing_NB: Tensor | None

    @classmethod
    def of(cls, entries: list[list[int]], device: torch.device) -> EntryTable:
        """Return the table of each row's entries."""
        longest = max((len(row) for row in entries), default=0)
        index = torch.tensor([row + [-1] * (longest - len(row)) for row in entries]).t()
        missing = index < 0
        return cls(
            index.clamp_min(0).contiguous().to(device, non_blocking=True),
            missing.contiguous().to(device, non_blocking=True) if bool(missing.any()) else None,
        )


def merge_entries(part: Partial, table: EntryTable) -> Partial:
    """Merge the entries of each row of a table."""
    index, shape = table.index_NB.flatten(), table.index_NB.shape
    # index_select costs the host much less than indexing by a tensor does.
    output, maximum, total = (
        tensor.index_select(0, index).unflatten(0, shape)
        for tensor in (part.output, part.maximum, part.total)
    )
    if table.missing_NB is not None:
        maximum.masked_fill_(table.missing_NB[..., None, None], float("-inf"))
    return _reduce(output, maximum, total)


def concatenate(parts: list[Partial], dim: int = 0) -> Partial:
    """Put entries of several parts side by side, or, along dimension 2, queries."""
    if len(parts) == 1:
        return parts[0]
    return Partial(
        torch.cat([part.output for part in parts], dim),
        torch.cat([part.maximum for part in parts], dim),
        torch.cat([part.total for part in parts], dim),
    )


def normalised(part: Partial, dtype: torch.dtype) -> Tensor:
    """Return the output ``[N, H, G, D]`` of all keys (0 where nothing was visible)."""
    tiny = torch.finfo(torch.float32).tiny
    return (part.output / part.total.clamp_min(tiny).unsqueeze(-1)).to(dtype)


def attend_causal(
    query_BHGD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    scoring: Scoring,
    query_index_Bq: Tensor,
    key_index_BK: Tensor,
    workspace_bytes: int,
) -> Partial:
    """Attend queries to keys that are not after them, in pieces that fit a workspace.

    Args:
        query_BHGD: queries, G running over group, then q.
        key_BHKD: keys.
        value_BHKD: values.
        scoring: scale, soft cap, window.
        query_index_Bq: int64, each query's token number in its row; -1 for padding.
        key_index_BK: int64, each key's token number in its row; -1 for keys that do not exist.
        workspace_bytes: scores that exist at once take at most about this much (one row at least).
    """
    rows, heads, grouped, _ = query_BHGD.shape
    q_len, keys = query_index_Bq.shape[1], key_index_BK.shape[1]
    group = grouped // q_len
    query = query_BHGD.view(rows, heads, group, q_len, -1)
    per_query = heads * group * keys * 4
    pieces: list[Partial] = []
    queries_at_once = max(1, min(q_len, workspace_bytes // per_query))
    rows_at_once = max(1, workspace_bytes // (per_query * q_len))
    for row in range(0, rows, rows_at_once):
        some = slice(row, min(row + rows_at_once, rows))
        parts = []
        for start in range(0, q_len, queries_at_once):
            part_of = slice(start, min(start + queries_at_once, q_len))
            visible = visibility(query_index_Bq[some, part_of], key_index_BK[some], scoring.window)
            width = part_of.stop - part_of.start
            parts.append(
                attend(
                    query[some, :, :, part_of].reshape(
                        some.stop - some.start, heads, group * width, -1
                    ),
                    key_BHKD[some],
                    value_BHKD[some],
                    scoring,
                    visible[:, None, None].expand(-1, 1, group, -1, -1).flatten(2, 3),
                )
            )
        pieces.append(_concatenate_queries(parts, group))
    return concatenate(pieces)


def visibility(query_index_Bq: Tensor, key_index_BK: Tensor, window: int | None) -> Tensor:
    """Return which keys each query sees, ``[B, q, K]``: existing, not later, inside the window."""
    query, key = query_index_Bq.unsqueeze(2), key_index_BK.unsqueeze(1)
    visible = (key >= 0) & (key <= query)
    return visible if window is None else visible & (query - key < window)


def _concatenate_queries(parts: list[Partial], group: int) -> Partial:
    """Put pieces of the query axis, which is the inner part of G, together again."""
    if len(parts) == 1:
        return parts[0]

    def join(tensors: list[Tensor]) -> Tensor:
        split = [tensor.unflatten(2, (group, -1)) for tensor in tensors]
        return torch.cat(split, dim=3).flatten(2, 3)

    return Partial(
        join([part.output for part in parts]),
        join([part.maximum for part in parts]),
        join([part.total for part in parts]),
    )
