import pytest

from headrace.model import cost
from headrace.model.published import published_shape
from headrace.model.shape import ModelShape

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
        ("olmo-2-13b", 13.72),
    ],
)  # fmt: skip
def test_published_parameters(name, billions):
    assert cost.model_weight_count(published_shape(name)) / 1e9 == pytest.approx(billions, rel=3e-3)
