"""Attention of a prompt that has nothing cached before it, row by row without padding.

Shape suffixes: B rows, q inputs of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


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
    whole = (0, query.shape[2])
    if list(spans) == [whole] and len(spans[whole]) == query.shape[0]:
        return _attend_causally(query, key, value, scale)
    output = torch.zeros_like(query)
    for (first, end), rows in spans.items():
        index = torch.tensor(rows, device=query.device)
        queries, keys, values = (part[index, :, first:end] for part in (query, key, value))
        output[index, :, first:end] = _attend_causally(queries, keys, values, scale)
    return output


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
