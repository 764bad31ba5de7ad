import pytest
import torch
from tests.support import make_batch, make_model

from headrace.bench.comparison import Comparison, allowed_error
from headrace.engine.agreement import FLOAT32_TOLERANCE, HALF_FLOOR

PLAIN = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 1.0]])


def test_all_are_fed_what_the_first_one_chose():
    comparison = Comparison(0.01)
    assert comparison.follow("plain", PLAIN).tolist() == [1, 0]
    swapped = PLAIN.flip(0)
    assert swapped.argmax(dim=-1).tolist() == [0, 1]
    assert comparison.follow("other", swapped).tolist() == [1, 0]
    assert comparison.agreement("plain") is None
    found = comparison.agreement("other")
    assert (found.compared_with, found.steps) == ("plain", 1)
    assert not found.tokens_identical
    assert not found.passed
    assert found.max_logit_error == pytest.approx(2.0)


def test_small_differences_pass_and_near_ties_count_as_such():
    comparison = Comparison(0.01)
    tie = torch.tensor([[0.0, 1.0, 0.999]])
    comparison.follow("plain", tie)
    comparison.follow("other", torch.tensor([[0.0, 1.0, 1.001]]))
    found = comparison.agreement("other")
    assert found.max_logit_error == pytest.approx(0.002, rel=1e-2)
    assert not found.tokens_identical
    assert found.passed


def test_in_float32_a_token_may_not_differ():
    comparison = Comparison(FLOAT32_TOLERANCE)
    comparison.follow("plain", torch.tensor([[0.0, 1.0, 0.99999]]))
    comparison.follow("other", torch.tensor([[0.0, 1.0, 1.00001]]))
    found = comparison.agreement("other")
    assert found.max_logit_error <= FLOAT32_TOLERANCE
    assert not found.passed


def test_the_worst_of_all_steps_counts_and_what_is_not_a_number_never_passes():
    comparison = Comparison(0.01)
    for name, last in (("plain", PLAIN), ("good", PLAIN), ("bad", PLAIN * float("nan"))):
        comparison.follow(name, PLAIN)
        comparison.follow(name, last)
    assert comparison.agreement("good").passed
    assert comparison.agreement("good").steps == 2
    assert not comparison.agreement("bad").passed


def test_further_steps_than_were_kept_are_not_compared():
    comparison = Comparison(0.01)
    comparison.follow("plain", PLAIN)
    comparison.follow("other", PLAIN)
    assert comparison.follow("other", PLAIN.flip(0)).tolist() == [0, 1]
    assert comparison.agreement("other").steps == 1


def test_where_the_first_one_fails_the_next_takes_over():
    comparison = Comparison(0.01)
    comparison.follow("plain", PLAIN.flip(0))
    comparison.forget("plain")
    comparison.follow("stream", PLAIN)
    comparison.follow("host", PLAIN)
    assert comparison.agreement("host").compared_with == "stream"
    assert comparison.agreement("host").passed
    comparison.forget("host")
    assert comparison.agreement("host") is None


def test_what_is_allowed_in_half_precision_is_what_the_plain_model_differs_by():
    batch = make_batch((40, 23))
    single = allowed_error(make_model("llama"), batch.input_ids, batch.attention_mask)
    assert single == FLOAT32_TOLERANCE
    model = make_model("llama", dtype=torch.bfloat16)
    half = allowed_error(model, batch.input_ids, batch.attention_mask)
    assert HALF_FLOOR <= half < 0.2
    assert model.config._attn_implementation == "sdpa"
