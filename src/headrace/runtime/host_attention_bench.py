"""How fast host attention reads keys and values, beside the rate at which memory is read at all.

All ways take turns in one process, so that their ratios hold on a machine that others use too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.attention import Scoring, attend, empty_partial
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.large_pages import prefer_large_pages

CONTEXTS: tuple[int, ...] = (2048, 8192)
HEADS = ((32, 1), (8, 4), (8, 8))
"""Key/value heads, and query heads to each: multi-head and grouped-query attention."""

WIDTH = 128
"""Elements of a head."""

PAGE_TOKENS = 64
"""Tokens of a page."""

CACHE_BYTES = 1 << 28
"""Keys and values of a setting: more than the caches of most processors."""

_TORCHS_SHARE = 4
"""Torch's ways, which are slow, are measured in every so many rounds."""


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        context: tokens of each row, whole pages of them.
        heads: key/value heads.
        group: query heads per key/value head.
        cache_bytes: about how large all keys and values are: more than the processor's caches.
        dtype: of queries, keys and values.
        large_pages: whether they lie in large pages.
    """

    context: int
    heads: int
    group: int
    cache_bytes: int = CACHE_BYTES
    dtype: torch.dtype = torch.bfloat16
    large_pages: bool = False

    @property
    def row_bytes(self) -> int:
        """Keys and values of a row."""
        return 2 * self.context * self.heads * WIDTH * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Rows that make up the cache."""
        return max(1, self.cache_bytes // self.row_bytes)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of all rows: what each way reads."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Rates:
    """Median rates, in bytes of keys and values per second.

    Attributes:
        setting: what was measured.
        memory_bytes_per_s: reading memory from end to end, with the same threads.
        host_attention_bytes_per_s: ``HostAttention``.
        sdpa_bytes_per_s: torch's ``scaled_dot_product_attention``.
        products_bytes_per_s: two batched matrix products of torch over grouped heads.
        memory_share: host attention's rate over memory's, median over the rounds.
    """

    setting: Setting
    memory_bytes_per_s: float
    host_attention_bytes_per_s: float
    sdpa_bytes_per_s: float
    products_bytes_per_s: float
    memory_share: float


def measure(
    attention: HostAttention, setting: Setting, *, rounds: int = 8, sample_s: float = 0.1
) -> Rates:
    """Measure all ways in turns.

    Args:
        attention: must be native.
        setting: what to measure.
        rounds: turns of each way.
        sample_s: shortest time of a turn.

    Raises:
        HeadraceError: the native library is not had.
    """
    ways, size = _ways(attention, setting), setting.kv_bytes
    samples: dict[str, list[float]] = {name: [] for name in ways}
    with _torch_threads(attention.threads):
        for work in ways.values():
            work()
        for turn in range(rounds):
            for name, work in ways.items():
                if name in ("memory", "host") or turn % _TORCHS_SHARE == 0:
                    samples[name].append(size / _seconds(work, sample_s))
    median = {name: statistics.median(rates) for name, rates in samples.items()}
    shares = [
        host / memory for host, memory in zip(samples["host"], samples["memory"], strict=True)
    ]
    return Rates(
        setting=setting,
        memory_bytes_per_s=median["memory"],
        host_attention_bytes_per_s=median["host"],
        sdpa_bytes_per_s=median["sdpa"],
        products_bytes_per_s=median["products"],
        memory_share=statistics.median(shares),
    )


def _ways(attention: HostAttention, setting: Setting) -> dict[str, Callable[[], object]]:
    """Return what to time; each reads all keys and values once."""
    rows, heads, width = setting.rows, setting.heads, WIDTH
    of_row = setting.context // PAGE_TOKENS
    pages = rows * of_row
    scoring = Scoring(width**-0.5)
    query = torch.randn(rows, heads, setting.group, width).to(setting.dtype)
    pool_shape = (pages, heads, PAGE_TOKENS, width)
    key_pool, value_pool = (_filled(pool_shape, setting) for _ in range(2))
    # The same size, as torch's ways take them: a row's tokens side by side.
    row_shape = (rows, heads, setting.context, width)
    key, value = (_filled(row_shape, setting) for _ in range(2))
    layer = LayerPages.of([key_pool], [value_pool])
    entries = RowEntries.of(
        rows,
        np.repeat(np.arange(rows), of_row),
        np.random.default_rng(0).permutation(pages),
        np.full(pages, PAGE_TOKENS),
    )
    result = empty_partial(query.shape)
    heads_query = query.flatten(1, 2)[:, :, None]
    return {
        "memory": lambda: attention.stream_read(key_pool, value_pool),
        "host": lambda: attention.attend(query, layer, entries, scoring, result),
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(
            heads_query, key, value, scale=scoring.scale, enable_gqa=setting.group > 1
        ),
        "products": lambda: attend(query, key, value, scoring),
    }


def _filled(shape: Sequence[int], setting: Setting) -> Tensor:
    buffer = torch.empty(tuple(shape), dtype=setting.dtype)
    if setting.large_pages:
        prefer_large_pages(buffer)
    return buffer.normal_()


def _seconds(work: Callable[[], object], least_s: float) -> float:
    """Return how long ``work`` takes, over as many times as fill a while."""
    count, begin = 0, time.perf_counter()
    while True:
        work()
        count += 1
        passed = time.perf_counter() - begin
        if passed >= least_s:
            return passed / count


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
