"""The attention of a layer while it is put together: the memory that layers share."""

import torch

from headrace.runtime.layer_attention import Results


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
