"""The attention of a layer while it is put together: the memory that layers share."""

from types import SimpleNamespace

import pytest
import torch

from headrace.runtime import layer_attention
from headrace.runtime.attention import Scoring
from headrace.runtime.granules import layer_table
from headrace.runtime.layer_attention import LayerAttention, Results


def query(heads: int, width: int = 8) -> torch.Tensor:
    return torch.zeros(3, heads, 1, width)


def test_layers_of_one_shape_share_their_memory():
    results = Results()
    first = results.of(5, query(2))
    assert first.output.shape == (5, 2, 1, 8)
    assert first.maximum.shape == first.total.shape == (5, 2, 1)
    assert results.of(5, query(2)) is first


def test_other_entries_have_memory_of_their_size():
    results = Results()
    assert results.of(5, query(2)) is not results.of(7, query(2))
    assert results.of(7, query(2)).output.shape[0] == 7


def test_layers_of_two_widths_keep_theirs_and_no_more_are_kept():
    results = Results()
    wide, narrow = results.of(5, query(2)), results.of(5, query(2, width=4))
    assert results.of(5, query(2)) is wide
    assert results.of(5, query(2, width=4)) is narrow
    results.of(5, query(1))
    assert results.of(5, query(2)) is not wide


def test_it_is_let_go_of_when_others_need_the_memory():
    results = Results()
    first = results.of(5, query(2))
    results.release()
    assert results.of(5, query(2)) is not first


@pytest.mark.parametrize("asked", [True, False])
def test_kernels_write_the_output_where_it_is_wanted(asked, monkeypatch):
    def merge_parts(parts, table, new, host, merged, *, entries):
        merged.copy_(torch.arange(merged.numel()).view(merged.shape))

    kernels = SimpleNamespace(merge_parts=merge_parts, attend_pages=lambda *_, **__: None)
    monkeypatch.setattr(layer_attention, "kernels_for", lambda _: kernels)
    queries = query(2)
    # What a replayed forward reads: [B, 1, heads, D], which is [B, H, G, D] for one input.
    output = torch.full((3, 1, 2, 8), torch.nan)
    attention = LayerAttention(
        queries,
        0,
        layer_table([], 3, torch.device("cpu")),
        Scoring(1.0),
        1 << 20,
        1 << 20,
        Results(),
        output.view(queries.shape) if asked else None,
    )
    tail, place, seen = query(2), torch.zeros(3, 1, 1, 1), torch.ones(3, 1, dtype=torch.bool)
    attention.attend_tail((tail, tail), tail, tail, place, seen)
    attention.merge()
    found = attention.output()
    assert torch.equal(found.flatten(), torch.arange(48.0))
    assert (found.data_ptr() == output.data_ptr()) is asked
    assert output.isnan().any() != asked
