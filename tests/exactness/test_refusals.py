"""Models that are not served are refused in one clear line, and left as they were."""

import pytest
import torch
from tests.support import (
    Generated,
    assert_same,
    generate,
    host_cache,
    make_batch,
    make_model,
    plain_cache,
    randomise,
)
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    GptOssConfig,
    JambaConfig,
    MambaConfig,
    MptConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from headrace.errors import UnsupportedModelError
from headrace.hf.cache import HostCache
from headrace.model import projection

_SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
_ATTENTION = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}

REFUSED = {
    "mamba": (MambaConfig(**_SIZES, state_size=8), "K/V cache"),
    "recurrent-gemma": (
        RecurrentGemmaConfig(
            **{**_ATTENTION, "num_hidden_layers": 3}, lru_width=32, attention_window_size=16
        ),
        "layers",
    ),
    "jamba": (
        JambaConfig(
            **_ATTENTION,
            **_EXPERTS,
            mamba_d_state=8,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
        ),
        "layers",
    ),
    "qwen3-next": (
        Qwen3NextConfig(
            **{**_ATTENTION, "num_hidden_layers": 4},
            **_EXPERTS,
            head_dim=8,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "layers of type linear_attention",
    ),
    "gpt-oss": (
        GptOssConfig(
            **{**_ATTENTION, "num_hidden_layers": 2}, **_EXPERTS, head_dim=8, sliding_window=16
        ),
        "attention sinks",
    ),
    "bloom": (BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "."),
    "falcon-alibi": (FalconConfig(**_ATTENTION, alibi=True), "."),
    "mpt": (MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4), "."),
    "deepseek": (
        DeepseekV3Config(
            **{**_ATTENTION, "num_key_value_heads": 4},
            first_k_dense_replace=2,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        "keys of width 12 and values of width 8",
    ),
}


def tiny(name: str):
    config, _ = REFUSED[name]
    return randomise(AutoModelForCausalLM.from_config(config), seed=0)


def hooks_of(model) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_served_is_refused_in_one_line(name):
    model = tiny(name)
    ids = make_batch((20,)).input_ids
    with torch.no_grad():
        before = model(ids).logits
    implementation, hooks = model.config._attn_implementation, hooks_of(model)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name][1]) as refusal:
        HostCache(model, policy="stream")
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 300
    assert type(model).__name__ in message or "Attention" in message
    assert model.config._attn_implementation == implementation
    assert hooks_of(model) == hooks
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_an_encoder_decoder_model_is_refused():
    config = T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        HostCache(T5ForConditionalGeneration(config))


def generated_with(model, policy: str, fraction: float) -> tuple[Generated, HostCache]:
    with host_cache(model, policy, fraction) as cache:
        return generate(model, make_batch(), cache), cache


@pytest.mark.parametrize("policy", ["recompute", "kvpr"])
def test_a_wrong_recipe_is_refused_and_streamed_with_a_warning(monkeypatch, policy):
    model = make_model("llama-gqa")
    monkeypatch.setattr(projection, "rotary_candidates", lambda *args: iter([None]))
    reason = "layer 0 cannot be rebuilt: keys and values rebuilt from the input of LlamaAttention"
    with host_cache(model, policy, 0.5) as cache:
        with pytest.warns(
            UserWarning, match=f"policy '{policy}' is replaced by 'stream': {reason}"
        ):
            made = generate(model, make_batch(), cache)
        assert reason in cache.notes[0]
        assert cache.policy == "stream"
        assert cache.recompute_fraction == 0.0
    assert_same(generate(model, make_batch(), plain_cache(model)), made)


def test_a_model_without_known_weights_is_streamed_with_a_warning(monkeypatch):
    model = make_model("llama-gqa")
    monkeypatch.setattr(projection, "kv_sources", lambda *args: iter(()))
    with (
        pytest.warns(UserWarning, match="no key and value weights were found in LlamaAttention"),
        host_cache(model, "recompute", 0.5) as cache,
    ):
        made = generate(model, make_batch(), cache)
    assert_same(generate(model, make_batch(), plain_cache(model)), made)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotation_that_depends_on_the_context_is_not_rebuilt(rope):
    parameters = {
        "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        "longrope": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 6,
            "long_factor": [4.0] * 6,
            "original_max_position_embeddings": 64,
            "factor": 8.0,
        },
    }[rope]
    model = make_model("llama-gqa", rope_parameters=parameters)
    with (
        pytest.warns(UserWarning, match="policy 'recompute' is replaced by 'stream'"),
        host_cache(model, "recompute", 0.5) as cache,
    ):
        made = generate(model, make_batch(), cache)
    assert_same(generate(model, make_batch(), plain_cache(model)), made)


def test_attention_dropout_is_refused():
    model = make_model("llama-gqa", attention_dropout=0.1)
    with host_cache(model, "stream", None) as cache:
        model.train()
        with pytest.raises(UnsupportedModelError, match=r"model\.eval"):
            model(**make_batch().inputs, past_key_values=cache)
