"""Partial attention and its merge, against plain softmax attention in float64."""

import itertools

import pytest
import torch

from headrace.runtime.attention import (
    Accumulator,
    EntryTable,
    Partial,
    Scoring,
    attend,
    attend_causal,
    concatenate,
    group_queries,
    merge,
    merge_entries,
    normalised,
    ungroup_output,
    visibility,
)

ROWS, HEADS, KV_HEADS, WIDTH = 3, 6, 2, 8


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(query, key, value, scoring, visible):
    """Return outputs ``[B, q, heads, D]`` in float64; 0 where nothing is visible."""
    group = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    weights = torch.nan_to_num(scores.softmax(-1))
    return (weights @ value).transpose(1, 2)


def tensors(q_len, keys):
    query = 3 * normal(ROWS, HEADS, q_len, WIDTH, seed=1)
    key, value = (normal(ROWS, KV_HEADS, keys, WIDTH, seed=seed) for seed in (2, 3))
    return query, key, value


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 7), (3, 10, 19)])
def test_attention_in_parts_is_attention(softcap, q_len, cuts):
    query, key, value = tensors(q_len, 20)
    scoring = Scoring(0.3, softcap)
    seen = normal(ROWS, 20, seed=4) > -0.5
    seen[1, :10] = False
    grouped = group_queries(query, KV_HEADS)
    accumulator = Accumulator(grouped)
    parts = []
    for start, stop in itertools.pairwise((0, *cuts, 20)):
        if start == stop:
            continue
        part = attend(
            grouped,
            key[:, :, start:stop],
            value[:, :, start:stop],
            scoring,
            seen[:, None, None, start:stop],
        )
        parts.append(part)
        accumulator.add(part)
    expected = reference(query, key, value, scoring, seen[:, None].expand(-1, q_len, -1))
    for made in (accumulator.output(torch.float64), normalised(merge(parts), torch.float64)):
        torch.testing.assert_close(ungroup_output(made, q_len), expected, rtol=1e-5, atol=1e-6)


def test_queries_are_grouped_by_their_key_head_and_put_back():
    query = normal(ROWS, HEADS, 5, WIDTH)
    grouped = group_queries(query, KV_HEADS)
    assert grouped.shape == (ROWS, KV_HEADS, 15, WIDTH)
    assert torch.equal(grouped[1, 1, 5 + 3], query[1, 3 + 1, 3])
    assert torch.equal(ungroup_output(grouped, 5), query.transpose(1, 2))


def test_where_nothing_is_visible_the_output_is_zero_and_never_nan():
    query, key, value = tensors(1, 4)
    grouped = group_queries(query, KV_HEADS)
    hidden = torch.zeros(ROWS, 1, 1, 4, dtype=torch.bool)
    nothing = attend(grouped, key, value, Scoring(1.0), hidden)
    assert torch.equal(nothing.maximum, torch.full_like(nothing.maximum, float("-inf")))
    assert not nothing.total.any()
    accumulator = Accumulator(grouped)
    assert not accumulator.output(torch.float32).any()
    accumulator.add(nothing)
    accumulator.add(nothing)
    assert not accumulator.output(torch.float32).any()
    something = attend(grouped, key, value, Scoring(1.0))
    for order in ([nothing, something], [something, nothing], [nothing, something, nothing]):
        merged = normalised(merge(order), torch.float32)
        torch.testing.assert_close(merged, normalised(something, torch.float32))


def test_scores_far_apart_neither_overflow_nor_vanish():
    query = torch.full((1, 1, 1, 4), 100.0)
    key = torch.stack([torch.full((4,), 100.0), torch.full((4,), -100.0)])[None, None]
    value = torch.tensor([[1.0], [2.0]]).expand(2, 4)[None, None]
    parts = [
        attend(query, key[:, :, i : i + 1], value[:, :, i : i + 1], Scoring(1.0)) for i in (1, 0)
    ]
    assert torch.equal(normalised(merge(parts), torch.float32), torch.ones(1, 1, 1, 4))


def test_parts_of_some_rows():
    query, key, value = tensors(1, 12)
    grouped = group_queries(query, KV_HEADS)
    scoring = Scoring(0.3)
    accumulator = Accumulator(grouped)
    accumulator.add(attend(grouped, key[:, :, :5], value[:, :, :5], scoring))
    rows = torch.tensor([0, 2])
    part = attend(grouped[rows], key[rows][:, :, 5:], value[rows][:, :, 5:], scoring)
    accumulator.add(part, rows)
    seen = torch.ones(ROWS, 1, 12, dtype=torch.bool)
    seen[1, :, 5:] = False
    made = ungroup_output(accumulator.output(torch.float64), 1)
    expected = reference(query, key, value, scoring, seen)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_entries_are_merged_row_by_row():
    """Row 0 has entries 0 and 3, row 1 has 1, row 2 has 2, 4 and 5."""
    query, key, value = tensors(1, 18)
    grouped = group_queries(query, KV_HEADS)
    scoring = Scoring(0.3)
    entry_row = [0, 1, 2, 0, 2, 2]
    parts = []
    for entry, row in enumerate(entry_row):
        chosen = slice(3 * entry, 3 * entry + 3)
        parts.append(
            attend(
                grouped[row : row + 1],
                key[row : row + 1, :, chosen],
                value[row : row + 1, :, chosen],
                scoring,
            )
        )
    table = EntryTable.of([[0, 3], [1], [2, 4, 5]], torch.device("cpu"))
    merged = merge_entries(concatenate(parts), table)
    seen = torch.zeros(ROWS, 1, 18, dtype=torch.bool)
    for entry, row in enumerate(entry_row):
        seen[row, :, 3 * entry : 3 * entry + 3] = True
    made = ungroup_output(normalised(merged, torch.float64), 1)
    torch.testing.assert_close(
        made, reference(query, key, value, scoring, seen), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("workspace", [1, 500, 3000, 1 << 30])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_causal_attention_in_any_workspace(workspace, window, softcap):
    query, key, value = tensors(7, 11)
    at = torch.tensor([[-1, -1, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11], [-1] * 7])
    numbers = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 10], [-1] * 11]
    )
    scoring = Scoring(0.3, softcap, window)
    part = attend_causal(
        group_queries(query, KV_HEADS), key, value, scoring, at, numbers, workspace
    )
    made = ungroup_output(normalised(part, torch.float64), 7)
    visible = visibility(at, numbers, window)
    torch.testing.assert_close(
        made, reference(query, key, value, scoring, visible), rtol=1e-5, atol=1e-6
    )
    assert torch.isfinite(made).all()


def test_a_window_counts_the_query_itself():
    numbers = torch.arange(6)[None]
    visible = visibility(torch.tensor([[5]]), numbers, 2)
    assert visible[0, 0].tolist() == [False, False, False, False, True, True]


def test_half_precision_is_attended_in_float32():
    query, key, value = (tensor.to(torch.bfloat16) for tensor in tensors(1, 40))
    part = attend(group_queries(query, KV_HEADS), key, value, Scoring(0.3))
    assert isinstance(part, Partial)
    assert {part.output.dtype, part.maximum.dtype, part.total.dtype} == {torch.float32}
    seen = torch.ones(ROWS, 1, 40, dtype=torch.bool)
    expected = reference(query, key, value, Scoring(0.3), seen)
    made = ungroup_output(normalised(part, torch.float64), 1)
    torch.testing.assert_close(made, expected, rtol=3e-2, atol=3e-2)
