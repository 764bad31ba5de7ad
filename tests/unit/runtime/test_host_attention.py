"""Host attention against float64, with every variant that this machine runs, and with torch."""

import itertools
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from tests.host_attention_support import Case, errors_of, make_case, native_variants, needs_native

from headrace.errors import ConfigurationError, HeadraceError
from headrace.runtime.attention import Scoring, empty_partial, merge, normalised
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries

NATIVE = native_variants()
ALL = (*NATIVE, "off")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (64, 80, 96, 128, 192, 256)
CORES = len(os.sched_getaffinity(0))
RAGGED = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000)


@pytest.fixture(scope="module")
def attentions():
    """One of each variant, with two threads."""
    made = {variant: HostAttention(threads=2, variant=variant) for variant in ALL}
    yield made
    for attention in made.values():
        attention.close()


@pytest.fixture(params=ALL)
def attention(request, attentions):
    return attentions[request.param]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_width_and_group_is_as_exact_as_torch(attention, dtype, width):
    for grouped in range(1, 17):
        case = make_case((83, 130), grouped=grouped, width=width, dtype=dtype, seed=grouped)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (grouped, errors)


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 100, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_rows(attention, dtype, page_tokens):
    for grouped in (1, 5):
        case = make_case(RAGGED, grouped=grouped, dtype=dtype, page_tokens=page_tokens)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (grouped, errors)


@pytest.mark.parametrize("width", [1, 2, 7, 16, 33, 48, 100])
def test_any_width(attention, width):
    for dtype, grouped in itertools.product(DTYPES, (1, 4, 8)):
        case = make_case((70,), grouped=grouped, width=width, dtype=dtype)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (dtype, grouped, errors)


@pytest.mark.parametrize("q_len", [1, 2, 7, 16])
def test_several_query_tokens(attention, q_len):
    for dtype, group in itertools.product(DTYPES, (1, 8)):
        case = make_case((150, 20), grouped=group * q_len, dtype=dtype)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (dtype, group, errors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(attention, dtype):
    case = make_case((100_000, 7, 33_333), heads=1, grouped=4, dtype=dtype)
    errors = errors_of(case, case.attend(attention))
    assert errors.are_small, errors


@pytest.mark.parametrize("hidden", [0.03, 0.5, 0.97])
def test_tokens_that_a_row_does_not_see_are_not_read(attention, hidden):
    """They are NaN."""
    for dtype, grouped in itertools.product(DTYPES, (1, 6)):
        case = make_case((300, 64, 1), grouped=grouped, dtype=dtype, hidden=hidden)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (dtype, grouped, errors)


def test_a_row_that_sees_nothing_gets_nothing(attention):
    case = make_case((40, 0, 90), hidden=1.0)
    part = case.attend(attention)
    assert not part.output.any()
    assert not part.total.any()
    assert torch.equal(part.maximum, torch.full_like(part.maximum, -math.inf))
    assert not normalised(part, torch.float32).any()


def test_no_entries_at_all(attention):
    case = make_case((0, 0))
    errors_of(case, case.attend(attention))


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_soft_cap(attention, softcap):
    for dtype, grouped in itertools.product(DTYPES, (1, 8)):
        case = make_case((100,), grouped=grouped, dtype=dtype, query_size=6.0)
        scoring = Scoring(case.scoring.scale, softcap)
        errors = errors_of(case, case.attend(attention, scoring), scoring)
        assert errors.are_small, (dtype, grouped, errors)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(attention, scale):
    case = make_case((100, 3), grouped=3)
    errors = errors_of(case, case.attend(attention, Scoring(scale)), Scoring(scale))
    assert errors.are_small, errors


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_scores(attention, size):
    for dtype, grouped in itertools.product(DTYPES, (1, 8)):
        case = make_case((700, 64), grouped=grouped, dtype=dtype, query_size=size)
        part = case.attend(attention)
        assert torch.isfinite(part.output).all()
        errors = errors_of(case, part)
        assert errors.are_small, (dtype, grouped, errors)


def filled(key, value, query):
    """Return a case of one row and head whose keys and values are given, ``[K, D]``."""
    tokens, width = key.shape
    pages = LayerPages.of([key.view(1, 1, tokens, width)], [value.view(1, 1, tokens, width)])
    entries = RowEntries.of(1, [0], [0], [tokens])
    grouped = query.view(1, 1, -1, width)
    return Case(grouped, pages, entries, [key[None]], [value[None]])


def test_one_token_gives_its_value(attention):
    for dtype in DTYPES:
        value = torch.randn(1, 128).to(dtype)
        case = filled(torch.randn(1, 128).to(dtype), value, torch.randn(4, 128).to(dtype))
        made = normalised(case.attend(attention), torch.float32)
        assert torch.equal(made, value.float().expand(1, 1, 4, 128))


def test_equal_keys_give_the_mean_of_values(attention):
    for dtype in DTYPES:
        value = torch.randn(500, 64).to(dtype)
        case = filled(torch.full((500, 64), 3.0, dtype=dtype), value, torch.ones(6, 64).to(dtype))
        part = case.attend(attention)
        assert torch.equal(part.total, torch.full_like(part.total, 500.0))
        made = normalised(part, torch.float64)[0, 0]
        expected = value.double().mean(0).expand(6, 64)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_scores_of_minus_infinity_count_for_nothing(attention):
    for grouped in (1, 8):
        key, value = torch.randn(100, 64), torch.randn(100, 64)
        key[7], key[64:70] = -math.inf, -math.inf
        query = torch.rand(grouped, 64) + 0.1
        kept = torch.isfinite(key[:, 0])
        expected = filled(key[kept], value[kept], query).attend(attention)
        part = filled(key, value, query).attend(attention)
        torch.testing.assert_close(part.output, expected.output, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.total, expected.total, rtol=1e-5, atol=0)


def test_all_scores_of_minus_infinity(attention):
    part = filled(torch.full((70, 64), -math.inf), torch.ones(70, 64), torch.ones(2, 64)).attend(
        attention
    )
    assert not part.output.any()
    assert not part.total.any()
    assert torch.equal(part.maximum, torch.full_like(part.maximum, -math.inf))


def test_a_key_that_is_not_a_number_is_not_hidden(attention):
    for dtype in DTYPES:
        key = torch.randn(100, 64).to(dtype)
        key[70, 3] = math.nan
        case = filled(key, torch.randn(100, 64).to(dtype), torch.randn(5, 64).to(dtype))
        assert normalised(case.attend(attention), torch.float32).isnan().all()


def test_rows_may_share_pages(attention):
    key, value = torch.randn(3, 2, 32, 64), torch.randn(3, 2, 32, 64)
    pages = LayerPages.of([key], [value])
    entries = RowEntries.of(3, [2, 0, 1, 0, 2, 1], [1, 0, 1, 1, 0, 2], [32, 32, 7, 5, 32, 32])
    sees = [[(0, 32), (1, 5)], [(1, 7), (2, 32)], [(1, 32), (0, 32)]]

    def of(pool):
        return [torch.cat([pool[page][:, :tokens] for page, tokens in row], 1) for row in sees]

    case = Case(torch.randn(3, 2, 4, 64), pages, entries, of(key), of(value))
    errors = errors_of(case, case.attend(attention))
    assert errors.are_small, errors


@pytest.mark.parametrize("lengths", [(3000, 1000, 256), (700, 1, 0)])
def test_many_heads(attention, lengths):
    for dtype, grouped in ((torch.float32, 1), (torch.bfloat16, 5), (torch.bfloat16, 40)):
        case = make_case(lengths, heads=9, grouped=grouped, dtype=dtype, hidden=0.1)
        errors = errors_of(case, case.attend(attention))
        assert errors.are_small, (dtype, grouped, errors)


@needs_native
@pytest.mark.parametrize("threads", range(1, 2 * CORES + 1))
def test_any_number_of_threads(threads):
    case = make_case((5000, 3, 700), grouped=4, dtype=torch.bfloat16)
    with HostAttention(threads=threads) as attention:
        first = case.attend(attention)
        errors = errors_of(case, first)
        assert errors.are_small, errors
        for _ in range(20):
            again = case.attend(attention)
            assert torch.equal(again.output, first.output)
            assert torch.equal(again.total, first.total)


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
    errors = errors_of(case, merge(halves))
    assert errors.are_small, errors


def test_torch_gives_the_same(attentions):
    for dtype, hidden in itertools.product(DTYPES, (0.0, 0.3)):
        case = make_case(RAGGED, grouped=2, dtype=dtype, hidden=hidden)
        expected = case.attend(attentions["off"])
        for variant in NATIVE:
            made = case.attend(attentions[variant])
            close = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(made.maximum, expected.maximum, **close)
            torch.testing.assert_close(made.total, expected.total, **close)
            torch.testing.assert_close(made.output, expected.output, rtol=1e-3, atol=1e-3)


def test_callers_on_several_threads_take_turns(attention):
    cases = [make_case((300, 10), grouped=2, seed=seed) for seed in range(4)]
    expected = [case.attend(attention) for case in cases]
    wrong = []

    def call(index):
        for _ in range(20):
            part = cases[index].attend(attention)
            if not torch.equal(part.output, expected[index].output):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@needs_native
def test_pools_exist_side_by_side():
    case = make_case((2000,), grouped=2)
    with HostAttention(threads=2) as one, HostAttention(threads=3) as other:
        for _ in range(10):
            for attention in (one, other):
                errors = errors_of(case, case.attend(attention))
                assert errors.are_small


def test_the_result_is_the_callers(attention):
    case = make_case((50,))
    result = empty_partial(case.query.shape)
    addresses = [result.output.data_ptr(), result.maximum.data_ptr(), result.total.data_ptr()]
    made = attention.attend(case.query, case.pages, case.entries, case.scoring, result)
    assert made is result
    assert addresses == [made.output.data_ptr(), made.maximum.data_ptr(), made.total.data_ptr()]


def test_pages_may_change_between_calls(attention):
    case = make_case((50,))
    first = case.attend(attention)
    case.pages.values[0].mul_(2)
    case.pages.values[1].mul_(2)
    torch.testing.assert_close(case.attend(attention).output, 2 * first.output)


@needs_native
def test_memory_is_read():
    with HostAttention(threads=2) as attention:
        attention.stream_read(torch.ones(3_000_001, dtype=torch.uint8), torch.ones(5))


@needs_native
def test_a_forked_process_attends_too():
    """Its threads are not there; the caller does all the work."""
    script = """
import os, sys, torch
torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
from tests.host_attention_support import errors_of, make_case
from headrace.runtime.host_attention import HostAttention
case = make_case((3000,), grouped=2)
attention = HostAttention(threads=3)
case.attend(attention)
child = os.fork()
if child == 0:
    good = errors_of(case, case.attend(attention)).are_small
    attention.close()
    os._exit(0 if good else 1)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


def arguments(**changes):
    case = make_case((100, 30), grouped=2)
    usual = {
        "query": case.query,
        "pages": case.pages,
        "entries": case.entries,
        "scoring": case.scoring,
        "result": empty_partial(case.query.shape),
    }
    return usual | changes


WRONG_CALLS = {
    "dtype": ({"query": torch.zeros(2, 2, 2, 64).half()}, "query is torch.float16; expected torch"),
    "heads": ({"query": torch.zeros(2, 3, 2, 64)}, r"query has shape \[2, 3, 2, 64\]; expected"),
    "width": ({"query": torch.zeros(2, 2, 2, 32)}, r"query has shape .* expected \[2, 2, 2, 64\]"),
    "rows": ({"query": torch.zeros(3, 2, 2, 64)}, r"query has shape"),
    "dimensions": ({"query": torch.zeros(2, 64)}, r"query has shape \[2, 64\]; expected"),
    "no queries": ({"query": torch.zeros(2, 2, 0, 64)}, r"query has shape"),
    "strides": ({"query": torch.zeros(2, 2, 64, 2).mT}, "query has strides .* contiguous"),
    "device": ({"query": torch.zeros(2, 2, 2, 64, device="meta")}, "query is on meta; expected"),
    "result": ({"result": empty_partial((2, 2, 3, 64))}, r"result.output has shape"),
    "window": ({"scoring": Scoring(1.0, window=4)}, "scoring.window is 4; expected None"),
    "softcap": ({"scoring": Scoring(1.0, 0.0)}, "scoring.softcap is 0.0; expected None or above"),
    "page": ({"entries": RowEntries.of(2, [0], [99], [1])}, "page 99; pages has"),
    "tokens": ({"entries": RowEntries.of(2, [0], [0], [65])}, "65 tokens; pages holds 64"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls_name_the_argument(attention, name):
    changes, message = WRONG_CALLS[name]
    with pytest.raises(ValueError, match=message):
        attention.attend(**arguments(**changes))


WRONG_ENTRIES = {
    "row": (([2], [0], [1]), "entry_row names row 2; there are 2 rows"),
    "negative": (([0], [-1], [1]), "entry_page has -1; expected numbers of at least 0"),
    "lengths": (([0, 1], [0], [1]), r"entry_page has shape \[1\]; entry_row has \[2\]"),
    "floats": (([0.5], [0], [1]), "entry_row has shape .* expected integers"),
    "mask": (([0], [0], [1], np.ones((2, 4), np.bool_)), "visible has shape"),
    "mask dtype": (([0], [0], [1], np.ones((1, 4))), "visible has shape .* dtype float64"),
    "mask width": (([0], [0], [9], np.ones((1, 8), np.bool_)), "visible has 8 places"),
}


@pytest.mark.parametrize("name", WRONG_ENTRIES)
def test_wrong_entries_name_the_argument(name):
    given, message = WRONG_ENTRIES[name]
    with pytest.raises(ValueError, match=message):
        RowEntries.of(2, *given)


GOOD = torch.zeros(2, 2, 8, 16)
WRONG_PAGES = {
    "none": (([], []), "keys has 0 extents"),
    "missing": (([GOOD], []), "values has 0"),
    "dimensions": (([GOOD[0]], [GOOD[0]]), r"keys\[0\] has shape .* expected \[P, H, T, D\]"),
    "dtype": (([GOOD.double()], [GOOD.double()]), r"keys\[0\] is torch.float64; expected one of"),
    "values": (([GOOD], [GOOD[..., :8]]), r"values\[0\] has shape"),
    "mixed": (([GOOD, GOOD.half()], [GOOD, GOOD]), r"keys\[1\] is torch.float16; expected"),
    "strides": (([GOOD], [GOOD.transpose(2, 3).contiguous().transpose(2, 3)]), "has strides"),
}


@pytest.mark.parametrize("name", WRONG_PAGES)
def test_wrong_pages_name_the_argument(name):
    given, message = WRONG_PAGES[name]
    with pytest.raises(ValueError, match=message):
        LayerPages.of(*given)


def test_entries_and_pages_tell_their_sizes():
    case = make_case((100, 0, 64), page_tokens=32, extents=3)
    assert case.entries.tokens == 164
    assert case.entries.page_tokens_needed == 32
    assert case.entries.pages_needed <= case.pages.count
    assert (case.pages.heads, case.pages.page_tokens, case.pages.width) == (2, 32, 64)


def test_no_threads_is_an_error():
    with pytest.raises(ConfigurationError, match="threads is 0; it must be at least 1"):
        HostAttention(threads=0)


def test_an_unknown_variant_is_an_error(monkeypatch):
    with pytest.raises(ConfigurationError, match="variant is 'mmx'; allowed are avx512_bf16"):
        HostAttention(variant="mmx")
    monkeypatch.setenv("HEADRACE_NATIVE", "sse")
    with pytest.raises(ConfigurationError, match="HEADRACE_NATIVE is 'sse'; allowed are"):
        HostAttention()


@needs_native
def test_the_environment_forces_a_variant(monkeypatch):
    for variant in NATIVE:
        monkeypatch.setenv("HEADRACE_NATIVE", variant)
        with HostAttention() as attention:
            assert attention.variant == variant
            assert attention.reason is None
    monkeypatch.setenv("HEADRACE_NATIVE", "off")
    with HostAttention() as attention:
        assert attention.variant == "torch"
        assert attention.reason == "the native library is switched off"
        with pytest.raises(HeadraceError, match="switched off"):
            attention.stream_read(torch.ones(1))


@needs_native
def test_the_best_variant_is_usual(monkeypatch):
    monkeypatch.delenv("HEADRACE_NATIVE", raising=False)
    with HostAttention() as attention:
        assert attention.variant == NATIVE[0]
        assert attention.threads == CORES


@pytest.mark.parametrize("variant", ALL)
def test_what_was_closed_does_not_attend(variant):
    case = make_case((5,))
    attention = HostAttention(threads=2, variant=variant)
    with attention:
        case.attend(attention)
    attention.close()
    with pytest.raises(HeadraceError, match="was closed"):
        case.attend(attention)
