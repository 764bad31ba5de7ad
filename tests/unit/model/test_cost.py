from dataclasses import replace
from itertools import combinations
from statistics import mean

import pytest

from headrace.model import cost
from headrace.model.published import published_shape
from headrace.model.shape import Experts, ModelShape

TINY = ModelShape("tiny", 3, 8, 4, 2, 3, 10, True, 100, False, 64, dtype="float32")


def test_cached_token():
    assert cost.kv_bytes_per_token(TINY) == 2 * 4 * 6
    assert cost.activation_bytes_per_token(TINY) == 4 * 8
    assert cost.rebuild_flops_per_token(TINY) == 4 * 8 * 6
    assert cost.activation_ratio(TINY) == pytest.approx(8 / 12)
    assert cost.rebuild_weight_bytes(TINY) == 4 * 2 * 8 * 6


def test_dense_work():
    matrices = 8 * 12 + 12 * 8 + 2 * 8 * 6 + 3 * 8 * 10
    assert cost.layer_weight_count(TINY) == matrices
    assert cost.layer_weight_bytes(TINY) == 4 * matrices
    assert cost.layer_dense_flops(TINY, 5) == 2 * 5 * matrices
    assert cost.head_weight_bytes(TINY) == 4 * 800
    assert cost.head_dense_flops(TINY, 5) == 2 * 5 * 800
    assert cost.model_weight_bytes(TINY) == 4 * (3 * matrices + 2 * 800)


def test_attention():
    assert cost.attention_flops(TINY, 2, 7) == 4 * 12 * 14
    token_by_token = sum(cost.attention_flops(TINY, 1, 10 + i) for i in range(1, 6))
    assert cost.prefill_attention_flops(TINY, 5, context=10) == token_by_token


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("opt-6.7b", 0.5), ("llama-2-7b", 0.5), ("olmo-2-13b", 0.5), ("qwen3-0.6b", 0.5),
        ("gemma-2-9b", 0.875), ("llama-3-8b", 2.0), ("qwen3-8b", 2.0),
    ],
)  # fmt: skip
def test_ratios_of_the_design(name, ratio):
    assert cost.activation_ratio(published_shape(name)) == ratio


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("opt-6.7b", 6.66), ("opt-13b", 12.85), ("opt-30b", 29.97), ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02), ("llama-3-8b", 8.03), ("llama-3-70b", 70.55),
        ("qwen3-0.6b", 0.596), ("qwen3-8b", 8.19), ("qwen3-14b", 14.77), ("gemma-2-9b", 9.24),
        ("olmo-2-13b", 13.72), ("qwen3-30b-a3b", 30.53), ("mixtral-8x7b", 46.70),
    ],
)  # fmt: skip
def test_published_parameters(name, billions):
    assert cost.model_weight_count(published_shape(name)) / 1e9 == pytest.approx(billions, rel=3e-3)


ATTENTION = 2 * 8 * 12 + 2 * 8 * 6
ROUTER = 8 * 5
MIXTURE = replace(TINY, experts=Experts(count=5, per_token=2, d_ff=7, d_shared=3))


def block(width):
    """Return the matrix elements of a feed-forward block of a width."""
    return 3 * 8 * width


def test_a_mixture_has_all_of_its_experts():
    assert cost.layer_weight_count(MIXTURE) == ATTENTION + ROUTER + block(5 * 7 + 3)
    partly = replace(MIXTURE, experts=replace(MIXTURE.experts, dense_layers=1))
    average = ATTENTION + (2 * (ROUTER + block(5 * 7 + 3)) + block(10)) / 3
    assert cost.layer_weight_count(partly) == round(average)
    slice_of_dense = replace(partly, num_layers=1)
    assert cost.layer_weight_count(slice_of_dense) == ATTENTION + block(10)


def test_a_token_reads_and_multiplies_the_experts_that_it_takes():
    taken = ATTENTION + ROUTER + block(2 * 7 + 3)
    assert cost.layer_read_count(MIXTURE, 1) == taken
    assert cost.layer_dense_flops(MIXTURE, 6) == 2 * 6 * taken


def test_two_tokens_read_as_many_experts_as_two_draws_hit():
    """Of all pairs of draws of two experts out of five, equally likely, the mean of their union."""
    draws = [set(pair) for pair in combinations(range(5), 2)]
    union = mean(len(one | other) for one in draws for other in draws)
    expected = ATTENTION + ROUTER + block(union * 7 + 3)
    assert cost.layer_read_count(MIXTURE, 2) == pytest.approx(expected, abs=0.5)


def test_many_tokens_read_all_experts_and_without_experts_one_reads_all():
    assert cost.layer_read_count(MIXTURE, 1000) == cost.layer_weight_count(MIXTURE)
    assert cost.layer_read_count(TINY, 1) == cost.layer_weight_count(TINY)
    counts = [cost.layer_read_count(MIXTURE, tokens) for tokens in (1, 1.5, 2, 4, 8, 16)]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(("name", "billions"), [("qwen3-30b-a3b", 3.3), ("mixtral-8x7b", 12.9)])
def test_published_parameters_of_a_token(name, billions):
    """What the papers call active, with embedding and head (rounded as they are)."""
    shape = published_shape(name)
    vocabulary = 2 * shape.vocab_size * shape.d_model
    active = shape.num_layers * cost.layer_read_count(shape, 1) + vocabulary
    assert active / 1e9 == pytest.approx(billions, abs=0.06)


def test_intermediate_results_of_a_mixture():
    assert cost.feed_forward_width(TINY) == 3 * 10
    assert cost.feed_forward_width(MIXTURE) == 2 * (2 * 8 + 3 * 7) + 3 * 3
    wide = replace(MIXTURE, d_ff=1000, experts=replace(MIXTURE.experts, dense_layers=1))
    assert cost.feed_forward_width(wide) == 3000


def test_more_experts_a_token_than_there_are():
    with pytest.raises(ValueError, match="6 experts a token of 5"):
        Experts(count=5, per_token=6, d_ff=7)
