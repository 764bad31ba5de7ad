"""A prompt's later parts: attention to pages and to themselves, against float64."""

import pytest
import torch
from tests.unit.runtime.test_attention import reference

from headrace.runtime.attention import (
    Accumulator,
    Partial,
    Scoring,
    group_queries,
    normalised,
    ungroup_output,
)
from headrace.runtime.prompt import attend_pages, attend_part, row_spans

KV_HEADS, HEADS, WIDTH, PAGES, TOKENS = 2, 6, 16, 5, 8
Q_LEN = 30


def made(rows, tokens, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, heads, tokens, WIDTH), generator=generator)


def in_pages(keys):
    """``[1, H, N * T, D]`` as pages ``[N, H, T, D]``."""
    return keys[0].unflatten(1, (-1, TOKENS)).transpose(0, 1)


@pytest.mark.parametrize("workspace", [1, 5000, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("hides", [False, True])
def test_pages_are_attended_to_as_one_run_of_keys(hides, softcap, workspace):
    query = made(1, Q_LEN, HEADS, 1)
    key, value = (made(1, PAGES * TOKENS, KV_HEADS, seed) for seed in (2, 3))
    visible = None
    if hides:
        visible = torch.arange(PAGES * TOKENS).view(PAGES, TOKENS) % 7 != 3
    scoring = Scoring(0.4, softcap)
    part = attend_pages(
        group_queries(query, KV_HEADS), in_pages(key), in_pages(value), scoring, visible, workspace
    )
    seen = torch.ones(1, Q_LEN, PAGES * TOKENS, dtype=torch.bool)
    if visible is not None:
        seen &= visible.reshape(1, 1, -1)
    expected = reference(query, key, value, scoring, seen)
    found = ungroup_output(normalised(part, torch.float64), Q_LEN)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_pages_none_of_which_is_seen_leave_a_result_as_it_is():
    query = group_queries(made(1, Q_LEN, HEADS, 1), KV_HEADS)
    key, value = (in_pages(made(1, PAGES * TOKENS, KV_HEADS, seed)) for seed in (2, 3))
    some, none = (
        attend_pages(query, key, value, Scoring(0.4), torch.full((PAGES, TOKENS), seen), 1 << 20)
        for seen in (True, False)
    )
    for order in ((some, none), (none, some)):
        accumulator = Accumulator(query)
        for part in order:
            accumulator.add(part)
        torch.testing.assert_close(accumulator.output(torch.float32), normalised(some, query.dtype))


@pytest.mark.parametrize(
    "new",
    [
        [range(Q_LEN)] * 3,
        [range(4, Q_LEN), range(Q_LEN), range(4, Q_LEN)],
        [range(Q_LEN), range(0), range(29, 30)],
    ],
)
def test_a_part_sees_itself_causally_and_no_padding(new):
    query = made(3, Q_LEN, HEADS, 1)
    key, value = (made(3, Q_LEN, KV_HEADS, seed) for seed in (2, 3))
    part = attend_part(query, key, value, 0.4, row_spans(new))
    seen = torch.ones(Q_LEN, Q_LEN, dtype=torch.bool).tril().repeat(3, 1, 1)
    padding = torch.ones(3, Q_LEN, dtype=torch.bool)
    for row, indices in enumerate(new):
        padding[row, list(indices)] = False
    seen &= ~padding[:, None] & ~padding[:, :, None]
    found = ungroup_output(normalised(part, torch.float64), Q_LEN)
    expected = reference(query, key, value, Scoring(0.4), seen)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(found).all()


def test_heads_that_are_not_contiguous_are_attended_to_alike():
    """Some models' keys are: the fused kernels would take their strides for those of others."""
    query, key, value = (made(2, Q_LEN, HEADS, seed) for seed in (1, 2, 3))
    apart = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in (query, key, value)]
    spans = row_spans([range(Q_LEN)] * 2)
    expected, found = (attend_part(*parts, 0.4, spans) for parts in ((query, key, value), apart))
    found, expected = (normalised(part, torch.float64) for part in (found, expected))
    torch.testing.assert_close(found, expected)


def test_merging_in_place_is_merging():
    query = group_queries(made(2, Q_LEN, HEADS, 1), KV_HEADS)
    shape = query.shape[:3]
    parts = [
        Partial(
            torch.randn(query.shape, generator=torch.Generator().manual_seed(seed)),
            torch.randn(shape, generator=torch.Generator().manual_seed(seed + 10)),
            torch.rand(shape, generator=torch.Generator().manual_seed(seed + 20)) + 0.1,
        )
        for seed in range(4)
    ]
    whole, by_rows = Accumulator(query), Accumulator(query)
    for part in parts:
        whole.add(part)
        for row in range(2):
            some = slice(row, row + 1)
            of_row = Partial(part.output[some], part.maximum[some], part.total[some])
            by_rows.add_to_row(of_row, row)
    weights = [torch.exp(part.maximum.double()) for part in parts]
    output = sum(w[..., None] * part.output for w, part in zip(weights, parts, strict=True))
    total = sum(w * part.total for w, part in zip(weights, parts, strict=True))
    for accumulator in (whole, by_rows):
        found = accumulator.output(torch.float64)
        torch.testing.assert_close(found, output / total[..., None], rtol=1e-5, atol=1e-6)
