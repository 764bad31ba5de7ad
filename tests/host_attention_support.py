"""Calls of host attention: random pages, ragged rows, and values that may be hard."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.runtime.attention import Partial, Scoring, empty_partial
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.native.library import LOADER, NativeUnavailableError, runnable_variants


def native_variants() -> tuple[str, ...]:
    """Return the variants that run here; none without a compiler."""
    try:
        return runnable_variants(LOADER.load())
    except NativeUnavailableError:
        return ()


NATIVE = native_variants()
VARIANTS = (*NATIVE, "off")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (64, 80, 96, 128, 192, 256)
CORES = len(os.sched_getaffinity(0))

needs_native = pytest.mark.skipif(not NATIVE, reason="the native library cannot be built here")


@dataclass(repr=False)
class Case:
    """A call, and what each row sees.

    Attributes:
        query: ``[B, H, G, D]``.
        pages: keys and values; places that no row sees are NaN.
        entries: which row sees which pages.
        keys: by row, what it sees: ``[H, K, D]``.
        values: likewise.
        page_tokens: tokens of a page.
        expected: by scoring, what ``host_attention_errors`` has found out.
        recipe: what it was made of.
    """

    query: Tensor
    pages: LayerPages
    entries: RowEntries
    keys: list[Tensor]
    values: list[Tensor]
    page_tokens: int = 64
    expected: dict[Scoring, Any] = field(default_factory=dict)
    recipe: str = ""

    def __repr__(self) -> str:
        return f"Case({self.recipe})"

    def attend(self, attention: HostAttention, scoring: Scoring | None = None) -> Partial:
        """Attend into a result that is NaN before."""
        result = empty_partial(self.query.shape)
        for tensor in (result.output, result.maximum, result.total):
            tensor.fill_(math.nan)
        return attention.attend(
            self.query, self.pages, self.entries, scoring or self.scoring, result
        )

    @property
    def scoring(self) -> Scoring:
        """The usual scale."""
        return Scoring(self.query.shape[3] ** -0.5)


def _near_each_other(query: Tensor, key: Tensor, sign: int) -> None:
    """Give all scores a common part of 100, far more than what sets them apart."""
    common = 10.0 * query.shape[2] ** -0.25
    query += common
    key += sign * common


ADVERSARIES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "none": lambda query, key, value: None,
    "large scores": lambda query, key, value: query.mul_(30.0),
    "huge scores": lambda query, key, value: query.mul_(1000.0),
    "all scores high": lambda query, key, value: _near_each_other(query, key, 1),
    "all scores low": lambda query, key, value: _near_each_other(query, key, -1),
    "equal keys": lambda query, key, value: key.copy_(key[:, :1].expand_as(key).clone()),
    "equal values": lambda query, key, value: value.copy_(value[:, :1].expand_as(value).clone()),
    "tiny values": lambda query, key, value: value.mul_(2.0**-20),
    "large values": lambda query, key, value: value.mul_(1e4),
}
"""What may be hard: each changes a row's queries, keys and values, float32, in place."""


def make_case(
    lengths: Sequence[int],
    *,
    heads: int = 2,
    grouped: int = 1,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
    page_tokens: int = 64,
    extents: int = 2,
    hidden: float = 0.0,
    query_size: float = 1.0,
    adversary: str = "none",
    seed: int = 0,
) -> Case:
    """Return a case whose rows have these lengths, on pages in random order.

    Args:
        lengths: tokens of each row.
        heads: key/value heads.
        grouped: queries per key/value head.
        width: of a head.
        dtype: of all.
        page_tokens: tokens of a page.
        extents: of the pools.
        hidden: share of tokens that rows do not see.
        query_size: standard deviation of queries.
        adversary: one of ``ADVERSARIES``.
        seed: of the random numbers.
    """
    recipe = ", ".join(f"{name}={given}" for name, given in locals().items())
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    queries, keys, values, seen = [], [], [], []
    for length in lengths:
        query, key, value = (
            torch.randn(heads, count, width, generator=generator)
            for count in (grouped, length, length)
        )
        ADVERSARIES[adversary](query.mul_(query_size), key, value)
        queries.append(query.to(dtype))
        keys.append(key.to(dtype))
        values.append(value.to(dtype))
        seen.append(torch.from_numpy(random.random(length) >= hidden))
    filled = [
        (row, start, min(page_tokens, length - start))
        for row, length in enumerate(lengths)
        for start in range(0, length, page_tokens)
    ]
    count = len(filled) + 3
    numbers = random.permutation(count)[: len(filled)]
    key_pool = torch.full((count, heads, page_tokens, width), math.nan, dtype=dtype)
    value_pool = key_pool.clone()
    visible = np.zeros((len(filled), page_tokens), dtype=np.bool_)
    for entry, ((row, start, tokens), page) in enumerate(zip(filled, numbers, strict=True)):
        here = seen[row][start : start + tokens]
        visible[entry, :tokens] = here.numpy()
        for pool, source in ((key_pool, keys[row]), (value_pool, values[row])):
            pool[page][:, :tokens][:, here] = source[:, start : start + tokens][:, here]
    cuts = torch.tensor_split(torch.arange(count), extents)
    order = random.permutation(len(filled))
    return Case(
        query=torch.stack(queries),
        pages=LayerPages.of(
            [key_pool[cut].contiguous() for cut in cuts],
            [value_pool[cut].contiguous() for cut in cuts],
        ),
        entries=RowEntries.of(
            len(lengths),
            np.array([row for row, _, _ in filled], dtype=np.int64)[order],
            numbers[order],
            np.array([tokens for _, _, tokens in filled], dtype=np.int64)[order],
            visible[order] if hidden else None,
        ),
        keys=[key[:, here] for key, here in zip(keys, seen, strict=True)],
        values=[value[:, here] for value, here in zip(values, seen, strict=True)],
        page_tokens=page_tokens,
        recipe=recipe,
    )
