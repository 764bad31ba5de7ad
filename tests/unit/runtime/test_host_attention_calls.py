"""Calls of host attention: what is allowed, what is an error, and which variant attends."""

import numpy as np
import pytest
import torch
from tests.host_attention_support import CORES, NATIVE, VARIANTS, make_case, needs_native

from headrace.errors import ConfigurationError, HeadraceError
from headrace.runtime.attention import Scoring, empty_partial
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries


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
    with pytest.raises(
        ConfigurationError, match="variant is 'mmx'; allowed are amx_bf16, avx512_bf16"
    ):
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_closed_does_not_attend(variant):
    case = make_case((5,))
    attention = HostAttention(threads=2, variant=variant)
    with attention:
        case.attend(attention)
    attention.close()
    with pytest.raises(HeadraceError, match="was closed"):
        case.attend(attention)
