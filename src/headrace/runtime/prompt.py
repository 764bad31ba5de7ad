"""Attention of prompts, by torch's fused kernels, row by row without padding.

A prompt that has nothing cached before it is attended to at once. Of one that comes in parts, the
later ones attend to the pages of those before, and causally to themselves; both are merged.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, q inputs of the step, N
pages, T tokens of a page, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headrace.runtime.attention import Partial, Scoring, attend, concatenate
from headrace.runtime.fused import attend_all, is_fused
from headrace.runtime.gpu_kernels import MOST_QUERIES

_SCORE_BYTES = 4


def is_prompt(grouped: Tensor, q_len: int) -> bool:
    """Return whether queries ``[B, H, G, D]`` of so many inputs are a prompt's, and many."""
    return q_len > 1 and grouped.shape[2] > MOST_QUERIES


def is_fast(query: Tensor, scoring: Scoring) -> bool:
    """Return whether torch has a fused kernel for what such queries see all of."""
    return scoring.softcap is None and is_fused(query)


def attend_pages(
    query_1HGD: Tensor,
    key_NHTD: Tensor,
    value_NHTD: Tensor,
    scoring: Scoring,
    visible_NT: Tensor | None,
    workspace_bytes: int,
) -> Partial:
    """Attend a row's queries to the tokens of some pages, all of which are earlier.

    Args:
        query_1HGD: grouped queries of one row.
        key_NHTD: keys of the pages.
        value_NHTD: their values.
        scoring: scale and soft cap.
        visible_NT: bool; places that are seen; None: all.
        workspace_bytes: bound on the scores that exist at once, where they do at all.

    Returns:
        ``[1, H, G, ...]``.
    """
    keys, values = (
        part.transpose(0, 1).flatten(1, 2).unsqueeze(0) for part in (key_NHTD, value_NHTD)
    )
    if visible_NT is None and is_fast(query_1HGD, scoring):
        return Partial(*attend_all(query_1HGD, keys, values, scoring.scale))
    visible = None if visible_NT is None else visible_NT.reshape(1, 1, 1, -1)
    at_once = max(1, workspace_bytes // (keys.shape[1] * keys.shape[2] * _SCORE_BYTES))
    parts = [
        attend(query_1HGD[:, :, start : start + at_once], keys, values, scoring, visible)
        for start in range(0, query_1HGD.shape[2], at_once)
    ]
    return concatenate(parts, dim=2)


def attend_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    spans: dict[tuple[int, int], list[int]],
) -> Partial:
    """Attend each row's part of its prompt causally to itself; what came before is not looked at.

    Args:
        query: ``[B, heads, q, D]``.
        key: ``[B, H, q, D]``.
        value: ``[B, H, q, D]``.
        scale: factor on the products.
        spans: from ``row_spans``.

    Returns:
        ``[B, H, G, ...]``, G running over group, then q; 0 and ``-inf`` for padding.
    """
    grouped = (query.shape[0], key.shape[1], -1)
    if _is_whole(query, spans):
        output, maximum, total = _part_of(query, key, value, scale)
    else:
        output = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        total = torch.zeros(query.shape[:3], dtype=torch.float32, device=query.device)
        maximum = torch.full_like(total, float("-inf"))
        for (first, end), rows in spans.items():
            index = torch.tensor(rows, device=query.device)
            queries, keys, values = (part[index, :, first:end] for part in (query, key, value))
            found = _part_of(queries, keys, values, scale)
            for whole, some in zip((output, maximum, total), found, strict=True):
                whole[index, :, first:end] = some
    return Partial(
        output.reshape(*grouped, output.shape[3]), maximum.reshape(grouped), total.reshape(grouped)
    )


def _part_of(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    return attend_all(query, key, value, scale, is_causal=True)


def row_spans(new: Sequence[Sequence[int]]) -> dict[tuple[int, int], list[int]] | None:
    """Return rows by the span (first, end) of their inputs, or None if some are not contiguous."""
    spans: dict[tuple[int, int], list[int]] = {}
    for row, indices in enumerate(new):
        if not indices:
            continue
        first, end = indices[0], indices[-1] + 1
        if end - first != len(indices):
            return None
        spans.setdefault((first, end), []).append(row)
    return spans


def attend_prompt(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    spans: dict[tuple[int, int], list[int]],
) -> Tensor:
    """Attend each row's prompt causally to itself.

    Rows with the same span go together, so that no mask is needed and torch's fast kernels apply.

    Args:
        query: ``[B, heads, q, D]``.
        key: ``[B, H, q, D]``.
        value: ``[B, H, q, D]``.
        scale: factor on the products.
        spans: from ``row_spans``.

    Returns:
        The output ``[B, heads, q, D]``; 0 for padding.
    """
    if _is_whole(query, spans):
        return _attend_causally(query, key, value, scale)
    output = torch.zeros_like(query)
    for (first, end), rows in spans.items():
        index = torch.tensor(rows, device=query.device)
        queries, keys, values = (part[index, :, first:end] for part in (query, key, value))
        output[index, :, first:end] = _attend_causally(queries, keys, values, scale)
    return output


def _is_whole(query: Tensor, spans: dict[tuple[int, int], list[int]]) -> bool:
    """Return whether no row has padding."""
    whole = (0, query.shape[2])
    return list(spans) == [whole] and len(spans[whole]) == query.shape[0]


def _attend_causally(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    with fast_kernels(query):
        return F.scaled_dot_product_attention(
            query, key, value, scale=scale, is_causal=True, enable_gqa=grouped
        )


def fast_kernels(query: Tensor) -> AbstractContextManager[None]:
    """Let torch choose among its own kernels alone.

    Those of cuDNN take a millisecond of the host to set up for every new length.
    """
    return sdpa_kernel(_KERNELS) if query.is_cuda else nullcontext()


_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
