"""Host attention is attention, whatever the pages, rows, masks and queries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.host_attention_support import Case, errors_of, make_case, native_variants

from headrace.runtime.attention import Scoring, merge, normalised
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import RowEntries

VARIANTS = (*native_variants(), "off")


@pytest.fixture(scope="module", params=VARIANTS)
def attention(request):
    with HostAttention(threads=3, variant=request.param) as made:
        yield made


@st.composite
def cases(draw):
    """Any pages, rows and queries."""
    return make_case(
        draw(st.lists(st.integers(0, 400), min_size=1, max_size=4)),
        heads=draw(st.integers(1, 3) | st.just(9)),
        grouped=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 8).map(lambda steps: 16 * steps) | st.integers(1, 140)),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        page_tokens=draw(st.integers(1, 130)),
        extents=draw(st.integers(1, 4)),
        hidden=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 0.98, 1.0])),
        query_size=draw(st.sampled_from([0.0, 0.5, 1.0, 20.0])),
        seed=draw(st.integers(0, 1 << 30)),
    )


def scorings():
    return st.builds(
        Scoring, st.floats(-1, 1, width=32), st.none() | st.floats(0.125, 100, width=32)
    )


@settings(max_examples=60, deadline=None)
@given(case=cases(), scoring=scorings())
def test_it_is_attention(attention, case, scoring):
    errors = errors_of(case, case.attend(attention, scoring), scoring)
    assert errors.are_small, errors


@settings(max_examples=30, deadline=None)
@given(case=cases(), data=st.data())
def test_parts_merge_to_the_whole(attention, case, data):
    entries = case.entries
    chosen = [data.draw(st.booleans()) for _ in entries.page]
    parts = []
    for side in (False, True):
        places = [place for place, choice in enumerate(chosen) if choice is side]
        rows = [
            row
            for row in range(entries.rows)
            for _ in range(entries.row_entry[row], entries.row_entry[row + 1])
        ]
        some = RowEntries.of(
            entries.rows,
            [rows[place] for place in places],
            entries.page[places],
            (entries.token[1:] - entries.token[:-1])[places],
            None if entries.visible is None else entries.visible[places],
        )
        parts.append(Case(case.query, case.pages, some, [], []).attend(attention))
    whole, merged = case.attend(attention), merge(parts)
    assert torch.equal(merged.maximum == -math.inf, whole.maximum == -math.inf)
    close = {"rtol": 0.0, "atol": 2e-2 if case.query.dtype is torch.bfloat16 else 1e-4}
    made, expected = (normalised(part, torch.float32) for part in (merged, whole))
    torch.testing.assert_close(made, expected, **close)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_a_result_does_not_depend_on_the_call(attention, case):
    first, second = case.attend(attention), case.attend(attention)
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.maximum, second.maximum)
    assert torch.equal(first.total, second.total)
