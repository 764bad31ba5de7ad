"""Host attention to values that are hard: large scores, one token, equal keys, infinities, NaN."""

import math

import pytest
import torch
from tests.host_attention_errors import (
    FLOAT32_EPSILON,
    assert_small,
    assert_torchs,
    errors_of,
)
from tests.host_attention_support import ADVERSARIES, DTYPES, WIDTHS, Case, make_case

from headrace.runtime.attention import normalised
from headrace.runtime.host_entries import LayerPages, RowEntries

GROUPS = (1, 2, 3, 4, 5, 8, 16)
STEADY = ("all scores high", "all scores low", "equal keys", "tiny values", "large values")


@pytest.mark.parametrize("adversary", [name for name in ADVERSARIES if name != "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_values(attentions, dtype, adversary):
    """At every width and many groups; one token of each is among the rows."""
    for width in WIDTHS:
        for grouped in GROUPS:
            case = make_case(
                (400, 1, 64, 2),
                heads=max(2, 8 // grouped),
                grouped=grouped,
                width=width,
                dtype=dtype,
                adversary=adversary,
            )
            for variant, attention in attentions.items():
                part = case.attend(attention)
                assert torch.isfinite(part.output).all()
                assert_small(case, part, by_torch=variant == "off")


@pytest.mark.parametrize("adversary", STEADY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_values_are_as_exact_on_average(attentions, dtype, adversary):
    """Where an error is no matter of which two scores happen to be close."""
    for width in WIDTHS:
        case = make_case(
            (500, 900), heads=8, grouped=4, width=width, dtype=dtype, adversary=adversary
        )
        for attention in attentions.values():
            assert_torchs(case, case.attend(attention))


@pytest.mark.slow
@pytest.mark.parametrize("adversary", ["huge scores", "all scores high", "equal keys"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_values_of_long_rows(attentions, dtype, adversary):
    lengths = (100_000, 1, 10_000)
    for grouped in (1, 8):
        case = make_case(lengths, heads=1, grouped=grouped, dtype=dtype, adversary=adversary)
        for attention in attentions.values():
            assert_small(case, case.attend(attention))


def filled(key, value, query):
    """Return a case of one row and head whose keys and values are given, ``[K, D]``."""
    tokens, width = key.shape
    pages = LayerPages.of([key.view(1, 1, tokens, width)], [value.view(1, 1, tokens, width)])
    entries = RowEntries.of(1, [0], [0], [tokens])
    grouped = query.view(1, 1, -1, width)
    return Case(grouped, pages, entries, [key[None]], [value[None]])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_gives_its_value(attention, dtype, width):
    for grouped in range(1, 17):
        value = torch.randn(1, width).to(dtype)
        key, query = torch.randn(1, width), 30 * torch.randn(grouped, width)
        case = filled(key.to(dtype), value, query.to(dtype))
        made = normalised(case.attend(attention), torch.float32)
        expected = value.float().expand(1, 1, grouped, width)
        torch.testing.assert_close(made, expected, rtol=FLOAT32_EPSILON, atol=0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_keys_give_the_mean_of_values(attention, dtype, width):
    for grouped in range(1, 17):
        value = torch.randn(500, width).to(dtype)
        key, query = torch.full((500, width), 3.0), torch.ones(grouped, width)
        part = filled(key.to(dtype), value, query.to(dtype)).attend(attention)
        every = torch.full_like(part.total, 500.0)
        torch.testing.assert_close(part.total, every, rtol=4e-6, atol=0)
        made = normalised(part, torch.float64)[0, 0]
        expected = value.double().mean(0).expand(grouped, width)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_scores_of_minus_infinity_count_for_nothing(attention):
    for dtype in DTYPES:
        for grouped in (1, 3, 8):
            key, value = torch.randn(100, 64).to(dtype), torch.randn(100, 64).to(dtype)
            key[7], key[64:70] = -math.inf, -math.inf
            query = (torch.rand(grouped, 64) + 0.1).to(dtype)
            kept = torch.isfinite(key[:, 0])
            expected = filled(key[kept], value[kept], query).attend(attention)
            part = filled(key, value, query).attend(attention)
            close = 5e-3 if dtype is torch.bfloat16 else 1e-5
            torch.testing.assert_close(part.maximum, expected.maximum, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part.total, expected.total, rtol=close, atol=0)
            made, wanted = (normalised(each, torch.float32) for each in (part, expected))
            torch.testing.assert_close(made, wanted, rtol=0, atol=close)


def test_all_scores_of_minus_infinity(attention):
    for dtype in DTYPES:
        for grouped in (1, 3, 8):
            key, value = torch.full((70, 64), -math.inf), torch.ones(70, 64)
            query = torch.ones(grouped, 64)
            part = filled(*(each.to(dtype) for each in (key, value, query))).attend(attention)
            assert not part.output.any()
            assert not part.total.any()
            assert torch.equal(part.maximum, torch.full_like(part.maximum, -math.inf))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_key_that_is_not_finite_is_not_hidden(attention, wrong):
    """A score of NaN, or an infinite one, makes the result NaN, as torch's."""
    for dtype in DTYPES:
        for grouped in (1, 2, 3, 5, 8):
            key = torch.randn(100, 64).to(dtype)
            key[70, 3] = wrong
            query = torch.rand(grouped, 64) + 0.1
            case = filled(key, torch.randn(100, 64).to(dtype), query.to(dtype))
            made = normalised(case.attend(attention), torch.float32)
            assert made.isnan().all(), (dtype, grouped)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_a_value_that_is_not_finite_spoils_no_other_element(attention, width, wrong):
    for dtype in DTYPES:
        for grouped in (1, 2, 3, 5, 8, 20):
            key, value = torch.randn(100, width).to(dtype), torch.randn(100, width).to(dtype)
            value[70, 3], value[99, width - 2] = wrong, wrong
            query = torch.randn(grouped, width).to(dtype)
            made = normalised(filled(key, value, query).attend(attention), torch.float32)
            spoilt = torch.zeros(width, dtype=torch.bool)
            spoilt[[3, width - 2]] = True
            assert not made[..., spoilt].isfinite().any()
            value[70, 3], value[99, width - 2] = 0, 0
            wanted = normalised(filled(key, value, query).attend(attention), torch.float32)
            torch.testing.assert_close(made[..., ~spoilt], wanted[..., ~spoilt], rtol=0, atol=1e-5)


def test_a_row_that_sees_nothing_gets_nothing(attention):
    for dtype in DTYPES:
        case = make_case((40, 0, 90), dtype=dtype, hidden=1.0)
        part = case.attend(attention)
        assert not part.output.any()
        assert not part.total.any()
        assert torch.equal(part.maximum, torch.full_like(part.maximum, -math.inf))
        assert not normalised(part, torch.float32).any()


def test_no_entries_at_all(attention):
    case = make_case((0, 0))
    errors_of(case, case.attend(attention))
