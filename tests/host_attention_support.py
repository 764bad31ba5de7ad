"""Random pages, ragged rows, and plain attention in float64 to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.runtime.attention import Partial, Scoring, empty_partial
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.native.library import LOADER, NativeUnavailableError, runnable_variants

FLOAT32_EPSILON = 2.0**-23


def native_variants() -> tuple[str, ...]:
    """Return the variants that run here; none without a compiler."""
    try:
        return runnable_variants(LOADER.load())
    except NativeUnavailableError:
        return ()


needs_native = pytest.mark.skipif(
    not native_variants(), reason="the native library cannot be built here"
)


@dataclass
class Case:
    """A call, and what each row sees.

    Attributes:
        query: ``[B, H, G, D]``.
        pages: keys and values; places that no row sees are NaN.
        entries: which row sees which pages.
        keys: by row, what it sees: ``[H, K, D]``.
        values: likewise.
    """

    query: Tensor
    pages: LayerPages
    entries: RowEntries
    keys: list[Tensor]
    values: list[Tensor]

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
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query = (query_size * normal(len(lengths), heads, grouped, width).float()).to(dtype)
    filled = [
        (row, min(page_tokens, length - start))
        for row, length in enumerate(lengths)
        for start in range(0, length, page_tokens)
    ]
    count = len(filled) + 3
    numbers = random.permutation(count)[: len(filled)]
    shape = (count, heads, page_tokens, width)
    key_pool = torch.full(shape, math.nan, dtype=dtype)
    value_pool = torch.full(shape, math.nan, dtype=dtype)
    visible = np.zeros((len(filled), page_tokens), dtype=np.bool_)
    keys: list[list[Tensor]] = [[normal(heads, 0, width)] for _ in lengths]
    values: list[list[Tensor]] = [[normal(heads, 0, width)] for _ in lengths]
    for entry, ((row, tokens), page) in enumerate(zip(filled, numbers, strict=True)):
        seen = torch.from_numpy(random.random(tokens) >= hidden)
        visible[entry, :tokens] = seen.numpy()
        for pool, parts in ((key_pool, keys), (value_pool, values)):
            made = normal(heads, tokens, width)[:, seen]
            pool[page][:, :tokens][:, seen] = made
            parts[row].append(made)
    cuts = torch.tensor_split(torch.arange(count), extents)
    order = random.permutation(len(filled))
    return Case(
        query=query,
        pages=LayerPages.of(
            [key_pool[cut].contiguous() for cut in cuts],
            [value_pool[cut].contiguous() for cut in cuts],
        ),
        entries=RowEntries.of(
            len(lengths),
            np.array([row for row, _ in filled], dtype=np.int64)[order],
            numbers[order],
            np.array([tokens for _, tokens in filled], dtype=np.int64)[order],
            visible[order] if hidden else None,
        ),
        keys=[torch.cat(parts, dim=1) for parts in keys],
        values=[torch.cat(parts, dim=1) for parts in values],
    )


def plain_attention(
    query_HGD: Tensor, key_HKD: Tensor, value_HKD: Tensor, scoring: Scoring
) -> Tensor:
    """Return attention in the tensors' dtype, operation by operation; 0 without keys."""
    if key_HKD.shape[1] == 0:
        return torch.zeros_like(query_HGD)
    scores = query_HGD @ key_HKD.transpose(1, 2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    return scores.softmax(-1) @ value_HKD


def torch_attention(
    query_HGD: Tensor, key_HKD: Tensor, value_HKD: Tensor, scoring: Scoring
) -> Tensor:
    """Return torch's own attention in the tensors' dtype."""
    if scoring.softcap is not None or key_HKD.shape[1] == 0:
        return plain_attention(query_HGD, key_HKD, value_HKD, scoring)
    made: Tensor = torch.nn.functional.scaled_dot_product_attention(
        query_HGD[None], key_HKD[None], value_HKD[None], scale=scoring.scale
    )
    return made[0]


@dataclass(frozen=True)
class Errors:
    """Largest errors against float64 over all rows.

    Attributes:
        ours: of the output in float32.
        rounded: of the output in the case's dtype.
        torchs: of torch's own attention in that dtype.
        floor: what rounding to float32 alone may make of such values.
    """

    ours: float
    rounded: float
    torchs: float
    floor: float

    @property
    def are_small(self) -> bool:
        """Whether ours are within twice torch's."""
        return max(self.ours, self.rounded) <= 2 * self.torchs + self.floor


def errors_of(case: Case, part: Partial, scoring: Scoring | None = None) -> Errors:
    """Compare a result with attention in float64."""
    scoring = scoring or case.scoring
    ours, rounded, torchs, largest = [0.0], [0.0], [0.0], [0.0]
    for row, (key, value) in enumerate(zip(case.keys, case.values, strict=True)):
        query = case.query[row]
        expected = plain_attention(query.double(), key.double(), value.double(), scoring)
        total = part.total[row].clamp_min(torch.finfo(torch.float32).tiny)
        made = part.output[row] / total[..., None]
        ours.append(_largest(made - expected))
        rounded.append(_largest(made.to(query.dtype) - expected))
        torchs.append(_largest(torch_attention(query, key, value, scoring) - expected))
        largest.append(_largest(value))
        check_partial(case, part, row, scoring)
    return Errors(_worst(ours), _worst(rounded), _worst(torchs), 4 * FLOAT32_EPSILON * max(largest))


def check_partial(case: Case, part: Partial, row: int, scoring: Scoring) -> None:
    """Fail unless maximum and total of a row are those of its scores."""
    maximum, total = part.maximum[row], part.total[row]
    if case.keys[row].shape[1] == 0:
        assert torch.equal(maximum, torch.full_like(maximum, -math.inf))
        assert not total.any()
        assert not part.output[row].any()
        return
    scores = case.query[row].double() @ case.keys[row].double().transpose(1, 2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    size = scores.abs().amax().item() + 1
    close = {"rtol": 0.0, "atol": 1e-5 * size}
    torch.testing.assert_close(maximum.double(), scores.amax(-1), **close)
    expected = torch.exp(scores - maximum[..., None]).sum(-1)
    torch.testing.assert_close(total.double(), expected, rtol=5e-3, atol=0.0)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().amax().item() if tensor.numel() else 0.0


def _worst(values: list[float]) -> float:
    """Return the largest, or NaN if any is."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
