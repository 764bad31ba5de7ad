"""Mixtures of experts: output is the plain model's; what is planned of a type is its weights."""

import functools
from typing import Any

import pytest
from tests.support import (
    PAD,
    VOCABULARY,
    assert_same,
    generate,
    host_cache,
    make_batch,
    plain_cache,
    randomise,
)
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from headrace.engine.loading import dummy_model
from headrace.hf.machine import shape_of
from headrace.hf.weights import PlacedWeights
from headrace.model.config_experts import KNOWN
from headrace.model.cost import model_weight_count
from headrace.model.published import published_shape
from headrace.runtime.cpu_lanes import CpuBackend

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
_LOCAL, _ROUTED = {"num_local_experts": 5}, {"n_routed_experts": 5, "moe_intermediate_size": 32}
_WINDOW = {"sliding_window": 24, "layer_types": ["full_attention", "sliding_attention"] * 2}

MIXTURES: dict[str, dict[str, Any]] = {
    "dots1": {**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5_moe": {
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
    },
    "flex_olmo": {"num_experts": 5},
    "glm4_moe": {**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 12},
    "granitemoe": _LOCAL,
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 40},
    "hy_v3": {
        "num_experts": 5,
        "moe_intermediate_size": 32,
        "num_shared_experts": 1,
        "head_dim": 12,
    },
    "mellum": {
        **_LOCAL,
        **_WINDOW,
        "num_hidden_layers": 4,
        "moe_intermediate_size": 32,
        "head_dim": 12,
    },
    "minimax_m2": {**_LOCAL, "head_dim": 12},
    "mixtral": _LOCAL,
    "olmoe": {"num_experts": 5, "num_key_value_heads": 4},
    "phimoe": _LOCAL,
    "qwen2_moe": {
        "num_experts": 5,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
    },
    "qwen3_moe": {
        "num_experts": 5,
        "moe_intermediate_size": 32,
        "head_dim": 12,
        "mlp_only_layers": [1],
    },
    "solar_open": {**_ROUTED, "n_shared_experts": 1, "head_dim": 12},
}
"""Settings of a tiny model of each type that can be planned."""

POLICIES = (("resident", None), ("stream", None), ("recompute", 0.37), ("auto", None))


def make_mixture(kind):
    config = CONFIG_MAPPING[kind](**{**_SIZES, **MIXTURES[kind]})
    return randomise(AutoModelForCausalLM.from_config(config), seed=0)


@functools.cache
def shared_mixture(kind):
    return make_mixture(kind)


@functools.cache
def alone(kind):
    model = shared_mixture(kind)
    return generate(model, make_batch(), plain_cache(model))


def matrices(model):
    """Return the elements of a model's matrices, which is what counts as its weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def test_every_type_is_tested():
    assert set(MIXTURES) == KNOWN


@pytest.mark.parametrize(("policy", "fraction"), POLICIES)
@pytest.mark.parametrize("kind", MIXTURES)
def test_greedy_tokens_are_those_of_the_plain_model(kind, policy, fraction):
    with host_cache(shared_mixture(kind), policy, fraction) as cache:
        made = generate(shared_mixture(kind), make_batch(), cache)
        cache.paged.layout.check_integrity()
    assert_same(alone(kind), made)


@pytest.mark.parametrize("kind", MIXTURES)
def test_host_attention(kind):
    with host_cache(shared_mixture(kind), "host", None) as cache:
        made = generate(shared_mixture(kind), make_batch(), cache)
    assert_same(alone(kind), made)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("kind", MIXTURES)
def test_streamed_weights_of_unlike_layers(kind, share):
    model = make_mixture(kind)
    weights = PlacedWeights(model, CpuBackend(), share, poison=True)
    try:
        with host_cache(model, "recompute", 0.37) as cache:
            made = generate(model, make_batch(), cache)
    finally:
        weights.release()
        weights.backend.close()
    assert_same(alone(kind), made)


@pytest.mark.parametrize("kind", MIXTURES)
def test_its_weights_are_those_that_are_planned(kind):
    shape = shape_of(shared_mixture(kind))
    assert shape.experts is not None
    assert (shape.experts.count, shape.experts.per_token) == (5, 2)
    assert model_weight_count(shape) == pytest.approx(matrices(shared_mixture(kind)), rel=2e-3)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "mixtral-8x7b"])
def test_made_up_weights_of_a_published_mixture(name):
    made = dummy_model(name, layers=2, device="cpu", dtype="float32", narrow=4)
    found, expected = shape_of(made.model), published_shape(name).narrowed(4)
    assert found.experts == expected.experts
    assert (found.d_model, found.d_kv, found.d_ff) == (
        expected.d_model,
        expected.d_kv,
        expected.d_ff,
    )
