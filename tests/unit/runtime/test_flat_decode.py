"""A decode step over contiguous rows, against plain attention in float64."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.host_attention_support import DTYPES, needs_native

from headrace.runtime.attention import Scoring, attend, normalised
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.flat import FlatCache
from headrace.runtime.flat_decode import DecodeStep, native_kernel
from headrace.runtime.flat_pieces import Pieces, as_pieces
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.store import LayerWidths

CPU = torch.device("cpu")
HEADS, GROUP, WIDTH, PLACES = 2, 3, 16, 50


class PagesByTorch:
    """What ``page_kernels`` does, in plain operations."""

    @staticmethod
    def attend_pages(query, key, value, scoring, result, entry_row, entry_page, visible):
        for entry, (row, page) in enumerate(
            zip(entry_row.tolist(), entry_page.tolist(), strict=True)
        ):
            places = [int(place) for place in visible[entry].nonzero()]
            keys, values = (
                torch.stack([_page(part, page, place) for place in places], dim=1)
                if places
                else query.new_zeros(query.shape[1], 0, query.shape[3])
                for part in (key, value)
            )
            part = attend(query[row : row + 1], keys[None], values[None], scoring)
            result.output[entry] = part.output[0]
            result.maximum[entry] = part.maximum[0]
            result.total[entry] = part.total[0]

    @staticmethod
    def merge_parts(parts, table, new, host, merged):
        assert new is None
        assert host is None
        for row in range(table.index_NB.shape[1]):
            chosen = [
                int(table.index_NB[place, row])
                for place in range(table.index_NB.shape[0])
                if table.missing_NB is None or not table.missing_NB[place, row]
            ]
            maximum = parts.maximum[chosen]
            weight = torch.exp(maximum - maximum.amax(dim=0))
            total = (parts.total[chosen] * weight).sum(dim=0)
            merged[row] = (parts.output[chosen] * weight[..., None]).sum(dim=0) / total[..., None]


def _page(part, page, place):
    """Read one token of a page as a kernel does: by strides alone, past the view's own end."""
    page_stride, head_stride, token_stride, _ = part.stride()
    memory = part.as_strided((part.untyped_storage().nbytes() // part.element_size(),), (1,), 0)
    begin = part.storage_offset() + page * page_stride + place * token_stride
    return torch.stack(
        [memory[begin + head * head_stride :][: part.shape[3]] for head in range(part.shape[1])]
    )


def exact(query, keys, values, seen, scoring):
    """Return the output of rows that see these places, in float64."""
    rows = []
    for row, places in enumerate(seen):
        part = attend(
            query[row : row + 1].double(),
            keys[row : row + 1, :, places].double(),
            values[row : row + 1, :, places].double(),
            scoring,
        )
        rows.append(normalised(part, torch.float64))
    return torch.cat(rows)


rows_of_tokens = st.lists(st.integers(1, PLACES - 1), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    ends=rows_of_tokens,
    first_row=st.integers(0, 2),
    hide=st.booleans(),
    softcap=st.sampled_from([None, 5.0]),
    workspace=st.sampled_from([1, 1 << 28]),
)
def test_all_ways_attend_to_what_each_row_sees(ends, first_row, hide, softcap, workspace):
    torch.manual_seed(0)
    rows, scoring = len(ends), Scoring(WIDTH**-0.5, softcap)
    keys, values = torch.randn(2, first_row + rows, HEADS, PLACES, WIDTH)
    query = torch.randn(rows, HEADS, GROUP, WIDTH)
    hidden = [set(range(0, end - 1, 3)) if hide else set() for end in ends]
    for buffer in (keys, values):
        for row, end in enumerate(ends):
            # What is past a row's end is of rows that have gone; nothing may come of it.
            buffer[first_row + row, :, end:] = 1e30
    seen = [
        [place for place in range(end) if place not in hidden[row]] for row, end in enumerate(ends)
    ]
    expected = exact(query, keys[first_row:], values[first_row:], seen, scoring)
    taking = range(first_row, first_row + rows)
    first = [end - 1 for end in ends]
    step = DecodeStep(taking, first, ends, hidden, PLACES, CPU, workspace)
    plain = step.attend(query, keys, values, scoring)
    pieces = step.attend_pieces(PagesByTorch, query, keys, values, scoring)
    assert (plain - expected).abs().max() < 1e-5
    assert (pieces - expected).abs().max() < 1e-5
    native = native_kernel(2)
    if native is not None:
        found = step.attend_native(native, query, keys, values, scoring)
        assert (found - expected).abs().max() < 1e-5


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ends", [[3000, 17, 2500], [30, 17, 20]], ids=["much", "little"])
def test_the_native_kernel_attends_where_there_is_much_to_read(dtype, ends, monkeypatch):
    torch.manual_seed(0)
    places, scoring, calls = 4096, Scoring(WIDTH**-0.5), []
    keys, values = torch.randn(2, 4, HEADS, places, WIDTH).to(dtype)
    query = torch.randn(3, HEADS, GROUP, WIDTH).to(dtype)
    attend_native = HostAttention.attend
    monkeypatch.setattr(
        HostAttention, "attend", lambda *given: calls.append(1) or attend_native(*given)
    )
    hidden, first = [set(), {3}, set(range(10))], [end - 1 for end in ends]
    step = DecodeStep(range(1, 4), first, ends, hidden, places, CPU, 1 << 28)
    found = step.attend(query, keys, values, scoring)
    assert len(calls) == (2 * sum(ends) * HEADS * WIDTH * dtype.itemsize >= 1 << 20)
    seen = [[at for at in range(end) if at not in hidden[row]] for row, end in enumerate(ends)]
    expected = exact(query, keys[1:], values[1:], seen, scoring)
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert (found - expected).abs().max() < bound


@pytest.mark.parametrize("tokens", [1, 7, 16, 50])
def test_pieces_cover_each_row_once(tokens):
    ends, hidden = [1, 7, 8, 33, 50], [set(), {2}, set(), {0, 31}, set()]
    pieces = Pieces.of(ends, hidden, tokens, CPU)
    found = [[] for _ in ends]
    for row, begin, visible in zip(
        pieces.rows_E.tolist(), pieces.begins_E.tolist(), pieces.visible_ET, strict=True
    ):
        found[row] += [begin + place for place, seen in enumerate(visible.tolist()) if seen]
    assert found == [
        [place for place in range(end) if place not in hidden[row]] for row, end in enumerate(ends)
    ]
    of_row = [
        [
            entry
            for place, entry in enumerate(pieces.table.index_NB[:, row].tolist())
            if pieces.table.missing_NB is None or not pieces.table.missing_NB[place, row]
        ]
        for row in range(len(ends))
    ]
    assert [entry for entries in of_row for entry in entries] == list(range(pieces.count))
    assert [pieces.rows_E[entries].tolist() for entries in of_row] == [
        [row] * len(entries) for row, entries in enumerate(of_row)
    ]


def test_results_of_pieces_keep_to_the_workspace():
    ends, size = [40_000, 10], (HEADS, GROUP, WIDTH)
    limit = 1 << 16
    step = DecodeStep(range(2), [39_999, 9], ends, [set(), set()], 40_960, CPU, limit)
    made = []

    class Noting(PagesByTorch):
        @staticmethod
        def attend_pages(query, key, value, scoring, result, *rest):
            made.append((key.shape[2], result.output.numel() * 4))

        @staticmethod
        def merge_parts(*parts):
            pass

    keys = torch.zeros(2, HEADS, 40_960, WIDTH)
    step.attend_pieces(Noting, torch.zeros(2, *size), keys, keys, Scoring(1.0))
    ((tokens, size_bytes),) = made
    assert tokens > 128
    assert size_bytes <= limit


def test_a_piece_begins_at_any_token():
    buffer = torch.arange(2.0 * HEADS * PLACES * WIDTH).view(2, HEADS, PLACES, WIDTH)
    view = as_pieces(buffer, 8)
    assert torch.equal(_page(view, HEADS * PLACES + 5, 2), buffer[1, :, 7])


@pytest.mark.parametrize("rows", [range(3), range(1, 3)])
@pytest.mark.parametrize("alike", [True, False])
def test_new_tokens_are_kept_and_seen(rows, alike):
    torch.manual_seed(0)
    cache = FlatCache(
        CpuBackend(), {0: LayerWidths(HEADS, WIDTH, 32)}, 3, 4, torch.float32, 1 << 28, 1 << 28
    )
    lengths, scoring = [0] * len(rows), Scoring(WIDTH**-0.5)
    kept = [[] for _ in rows]
    for step in range(6):
        # Without a new token a row stays as it is, and its place is written over by its next.
        new = [[0] if alike or (step + row) % 2 or step == 0 else [] for row in range(len(rows))]
        key, value = torch.randn(2, len(rows), HEADS, 1, WIDTH)
        query = torch.randn(len(rows), HEADS * GROUP, 1, WIDTH)
        cache.begin_decode(new, lengths, [set() for _ in rows], rows)
        output = cache.decode(0, query, key, value, scoring)
        for row, some in enumerate(new):
            if some:
                kept[row].append((key[row], value[row]))
        lengths = [length + len(some) for length, some in zip(lengths, new, strict=True)]
        for row, tokens in enumerate(kept):
            keys, values = (torch.cat([token[part] for token in tokens], dim=1) for part in (0, 1))
            part = attend(
                query[row].view(1, HEADS, GROUP, WIDTH).double(),
                keys[None].double(),
                values[None].double(),
                scoring,
            )
            expected = normalised(part, torch.float64).view(HEADS * GROUP, WIDTH)
            assert (output[row, 0] - expected).abs().max() < 1e-5
    assert cache.size_bytes > 0


def test_the_kernels_find_pieces():
    pytest.importorskip("triton", reason="Triton is not installed")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    from headrace.runtime import page_kernels

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends, hidden, scoring = [1, 20, 50, 33], [set(), {3}, set(), {0, 32}], Scoring(WIDTH**-0.5)
    keys, values = torch.randn(2, 5, HEADS, PLACES, WIDTH, device=device)
    query = torch.randn(4, HEADS, GROUP, WIDTH, device=device)
    step = DecodeStep(range(1, 5), [end - 1 for end in ends], ends, hidden, PLACES, device, 1 << 28)
    found = step.attend_pieces(page_kernels, query, keys, values, scoring)
    seen = [
        [place for place in range(end) if place not in hidden[row]] for row, end in enumerate(ends)
    ]
    expected = exact(query, keys[1:], values[1:], seen, scoring)
    assert (found - expected).abs().max() < 1e-5
