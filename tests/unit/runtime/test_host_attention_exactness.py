"""Host attention's errors against float64 are within twice those of torch's own attention.

For every dtype, head width, group and length, with every variant that this machine runs.
"""

import itertools

import numpy as np
import pytest
import torch
from tests.host_attention_errors import assert_small, assert_torchs, errors_of
from tests.host_attention_support import DTYPES, NATIVE, WIDTHS, Case, make_case

from headrace.runtime.attention import Scoring, merge
from headrace.runtime.host_entries import LayerPages, RowEntries

RAGGED = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000)
LONG = (100_000, 1, 31_623, 2, 10_000, 3_162, 17, 1_000, 316, 100)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_width_and_group(attentions, dtype, width):
    for grouped in range(1, 17):
        heads = max(2, 16 // grouped)  # few numbers would leave much to chance
        case = make_case((183, 430), heads=heads, grouped=grouped, width=width, dtype=dtype)
        for attention in attentions.values():
            assert_torchs(case, case.attend(attention))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grouped", "width"), [(1, 64), (2, 96), (3, 192), (4, 128), (8, 80), (16, 256)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_to_100_000(attentions, dtype, grouped, width):
    """In one call; each row by itself is as exact."""
    heads = max(1, 256 // (width * grouped))
    case = make_case(LONG, heads=heads, grouped=grouped, width=width, dtype=dtype)
    for attention in attentions.values():
        part = case.attend(attention)
        assert_small(case, part)
        assert all(each.are_torchs for each in errors_of(case, part) if each.tokens >= 100)


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 100, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_rows(attentions, dtype, page_tokens):
    for grouped in (1, 5):
        case = make_case(RAGGED, grouped=grouped, dtype=dtype, page_tokens=page_tokens)
        for attention in attentions.values():
            assert_small(case, case.attend(attention))


@pytest.mark.parametrize("width", [1, 2, 7, 16, 33, 48, 100])
def test_any_width(attention, width):
    for dtype, grouped in itertools.product(DTYPES, (1, 4, 8)):
        case = make_case((70,), grouped=grouped, width=width, dtype=dtype)
        assert_small(case, case.attend(attention))


@pytest.mark.parametrize("q_len", range(1, 17))
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_query_tokens(attentions, dtype, q_len):
    for group in (1, 5, 16):
        case = make_case((250, 20), grouped=group * q_len, dtype=dtype)
        for attention in attentions.values():
            assert_small(case, case.attend(attention))


@pytest.mark.parametrize("hidden", [0.03, 0.5, 0.97])
def test_tokens_that_a_row_does_not_see_are_not_read(attention, hidden):
    """They are NaN."""
    for dtype, grouped in itertools.product(DTYPES, (1, 6)):
        case = make_case((300, 64, 1), grouped=grouped, dtype=dtype, hidden=hidden)
        assert_small(case, case.attend(attention))


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_soft_cap(attention, softcap):
    for dtype, grouped in itertools.product(DTYPES, (1, 8)):
        case = make_case((100,), grouped=grouped, dtype=dtype, query_size=6.0)
        scoring = Scoring(case.scoring.scale, softcap)
        assert_small(case, case.attend(attention, scoring), scoring)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(attention, scale):
    for dtype, grouped in itertools.product(DTYPES, (1, 3, 8)):
        case = make_case((100, 3), grouped=grouped, dtype=dtype)
        assert_small(case, case.attend(attention, Scoring(scale)), Scoring(scale))


@pytest.mark.parametrize("lengths", [(3000, 1000, 256), (700, 1, 0)])
def test_many_heads(attentions, lengths):
    for dtype, grouped in ((torch.float32, 1), (torch.bfloat16, 5), (torch.bfloat16, 40)):
        case = make_case(lengths, heads=9, grouped=grouped, dtype=dtype, hidden=0.1)
        for attention in attentions.values():
            assert_small(case, case.attend(attention))


def test_rows_may_share_pages(attention):
    key, value = torch.randn(3, 2, 32, 64), torch.randn(3, 2, 32, 64)
    pages = LayerPages.of([key], [value])
    entries = RowEntries.of(3, [2, 0, 1, 0, 2, 1], [1, 0, 1, 1, 0, 2], [32, 32, 7, 5, 32, 32])
    sees = [[(0, 32), (1, 5)], [(1, 7), (2, 32)], [(1, 32), (0, 32)]]

    def of(pool):
        return [torch.cat([pool[page][:, :tokens] for page, tokens in row], 1) for row in sees]

    case = Case(torch.randn(3, 2, 4, 64), pages, entries, of(key), of(value))
    assert_small(case, case.attend(attention))


def test_parts_merge_to_the_whole(attention):
    """Attention to some pages, and to the others, is attention to all."""
    case = make_case((400, 250), grouped=3)
    entries = case.entries
    rows = np.repeat(np.arange(2), np.diff(entries.row_entry))
    tokens = np.diff(entries.token)
    halves = []
    for half in (0, 1):
        chosen = np.arange(entries.page.size) % 2 == half
        some = RowEntries.of(2, rows[chosen], entries.page[chosen], tokens[chosen])
        part = Case(case.query, case.pages, some, case.keys, case.values).attend(attention)
        halves.append(part)
    assert_small(case, merge(halves))


def test_the_fallback_gives_the_same(attentions):
    for dtype, hidden in itertools.product(DTYPES, (0.0, 0.3)):
        case = make_case(RAGGED, grouped=2, dtype=dtype, hidden=hidden)
        expected = case.attend(attentions["off"])
        for variant in NATIVE:
            made = case.attend(attentions[variant])
            close = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(made.maximum, expected.maximum, **close)
            torch.testing.assert_close(made.total, expected.total, **close)
            torch.testing.assert_close(made.output, expected.output, rtol=1e-3, atol=1e-3)
