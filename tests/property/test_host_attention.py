"""Host attention is attention, whatever the pages, rows, masks, queries, values and threads."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.host_attention_errors import assert_near
from tests.host_attention_support import (
    ADVERSARIES,
    CORES,
    DTYPES,
    VARIANTS,
    WIDTHS,
    Case,
    make_case,
)

from headrace.runtime.attention import Scoring, merge
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import RowEntries

MANY = int(os.environ.get("FUZZ_EXAMPLES", "1"))
"""How many times as many examples as usual are drawn."""


@pytest.fixture(scope="module", params=VARIANTS)
def pools(request):
    """One for each number of threads."""
    made = [HostAttention(threads, request.param) for threads in range(1, 2 * CORES + 1)]
    yield made
    for attention in made:
        attention.close()


def threads():
    return st.integers(0, 2 * CORES - 1)


@st.composite
def cases(draw):
    """Any pages, rows, queries and values."""
    q_len = draw(st.just(1) | st.integers(1, 16))
    most = draw(st.sampled_from([3, 70, 400, 400, 3000]))
    return make_case(
        draw(st.lists(st.integers(0, most), min_size=1, max_size=4)),
        heads=draw(st.integers(1, 3) | st.just(9)),
        grouped=q_len * draw(st.integers(1, 16)),
        width=draw(st.sampled_from(WIDTHS) | st.integers(1, 140)),
        dtype=draw(st.sampled_from(DTYPES)),
        page_tokens=draw(st.sampled_from([16, 32, 64]) | st.integers(1, 130)),
        extents=draw(st.integers(1, 4)),
        hidden=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 0.98, 1.0])),
        query_size=draw(st.sampled_from([0.0, 0.5, 1.0, 1.0])),
        adversary=draw(st.sampled_from(["none", "none", "none", *ADVERSARIES])),
        seed=draw(st.integers(0, 1 << 30)),
    )


@st.composite
def calls(draw):
    """A case with the usual scale, or any, up to 8 times that; and a soft cap, or none."""
    case = draw(cases())
    times = draw(st.just(1.0) | st.floats(-8, 8, width=32))
    softcap = draw(st.none() | st.floats(0.125, 100, width=32))
    return case, Scoring(times * case.scoring.scale, softcap)


@settings(max_examples=60 * MANY, deadline=None)
@given(call=calls(), thread=threads())
def test_it_is_attention(pools, call, thread):
    case, scoring = call
    assert_near(case, case.attend(pools[thread], scoring), scoring)


@settings(max_examples=30 * MANY, deadline=None)
@given(case=cases(), data=st.data(), thread=threads())
def test_parts_merge_to_the_whole(pools, case, data, thread):
    attention, entries = pools[thread], case.entries
    chosen = [data.draw(st.booleans()) for _ in entries.page[:50]]
    chosen += [False] * (entries.page.size - len(chosen))
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
    assert_near(case, merged)


@settings(max_examples=30 * MANY, deadline=None)
@given(case=cases(), thread=threads())
def test_a_result_does_not_depend_on_the_call(pools, case, thread):
    first, second = (case.attend(pools[thread]) for _ in range(2))
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.maximum, second.maximum)
    assert torch.equal(first.total, second.total)
