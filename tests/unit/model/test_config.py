import pytest

from headrace.errors import UnsupportedModelError
from headrace.model.config import from_config
from headrace.model.published import published_shape
from headrace.model.shape import Experts

LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
OPT_6_7B = {
    "model_type": "opt", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "ffn_dim": 16384, "vocab_size": 50272, "max_position_embeddings": 2048,
    "word_embed_proj_dim": 4096, "torch_dtype": "float16",
}  # fmt: skip
QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936,
    "max_position_embeddings": 40960, "sliding_window": None, "use_sliding_window": False,
    "max_window_layers": 36, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA_2_9B = {
    "model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "intermediate_size": 14336, "vocab_size": 256000, "max_position_embeddings": 8192,
    "sliding_window": 4096, "dtype": "bfloat16",
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "vocab_size": 50257, "n_inner": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA_3_8B, "llama-3-8b"),
        (OPT_6_7B, "opt-6.7b"),
        (QWEN3_8B, "qwen3-8b"),
        (GEMMA_2_9B, "gemma-2-9b"),
    ],
)
def test_configurations_of_published_models(config, name):
    assert from_config(config, name) == published_shape(name)


def test_gpt2():
    shape = from_config(GPT2)
    assert (shape.name, shape.d_model, shape.head_dim, shape.num_kv_heads) == ("gpt2", 768, 64, 12)
    assert (shape.d_ff, shape.gated_ff, shape.tied_embeddings) == (3072, False, True)
    assert shape.dtype == "float32"


def test_gpt_neox():
    config = {**LLAMA_3_8B, "model_type": "gpt_neox", "num_key_value_heads": None}
    shape = from_config(config)
    assert (shape.num_kv_heads, shape.gated_ff) == (32, False)


def test_opt_350m_projects_its_embedding():
    config = {**OPT_6_7B, "hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 4096}
    shape = from_config({**config, "word_embed_proj_dim": 512})
    assert (shape.d_embed, shape.embedding_width) == (512, 512)
    assert from_config(OPT_6_7B).embedding_width == 4096


@pytest.mark.parametrize(
    ("change", "window", "windowed"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096, 32),
        ({"model_type": "mistral", "sliding_window": None}, None, 0),
        ({"model_type": "phi3", "sliding_window": 2047}, 2047, 32),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, None, 0),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 4096,
                "use_sliding_window": True,
                "max_window_layers": 28,
            },
            4096,
            4,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 9,
                "layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 2,
            },
            9,
            2,
        ),
        ({"sliding_window": 9, "layer_types": ["full_attention"] * 32}, None, 0),
        ({"model_type": "olmo3", "sliding_window": 9}, 9, 24),
        ({"model_type": "gemma3_text", "sliding_window": 9, "sliding_window_pattern": 4}, 9, 24),
    ],
)
def test_windows(change, window, windowed):
    shape = from_config({**LLAMA_3_8B, **change})
    assert (shape.sliding_window, shape.windowed_layers) == (window, windowed)


def test_text_config_counts():
    config = {"model_type": "gemma3", "torch_dtype": "float16", "text_config": LLAMA_3_8B}
    shape = from_config(config, "nested")
    assert (shape.d_model, shape.dtype) == (4096, "bfloat16")
    inner = {key: value for key, value in LLAMA_3_8B.items() if key != "torch_dtype"}
    assert from_config({**config, "text_config": inner}).dtype == "float16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "does not give hidden_size or n_embd"),
        ({"vocab_size": "many"}, "has vocab_size = 'many'"),
        ({"num_attention_heads": 0}, "has num_attention_heads = 0"),
        ({"num_attention_heads": 33}, "no multiple of 33 heads"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype float8_e4m3fn; allowed are float32"),
        ({"sliding_window": 9}, "does not say"),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            "layers of type linear_attention",
        ),
        ({"num_local_experts": 8}, r"mixture of experts \(num_local_experts\) of a type that"),
        ({"mamba_d_state": 16}, "state-space layers"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_what_is_not_served_is_said_in_one_line(change, message):
    with pytest.raises(UnsupportedModelError, match=message) as raised:
        from_config({**LLAMA_3_8B, **change}, "mine")
    assert "mine (model_type 'llama')" in str(raised.value)
    assert "\n" not in str(raised.value)


MIXTRAL_8X7B = {
    **LLAMA_3_8B, "model_type": "mixtral", "vocab_size": 32000, "max_position_embeddings": 32768,
    "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN3_30B_A3B = {
    **QWEN3_8B, "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"), [(MIXTRAL_8X7B, "mixtral-8x7b"), (QWEN3_30B_A3B, "qwen3-30b-a3b")]
)
def test_configurations_of_published_mixtures(config, name):
    assert from_config(config, name) == published_shape(name)


@pytest.mark.parametrize(
    ("change", "dense_layers"),
    [
        ({"mlp_only_layers": [0, 3]}, 2),
        ({"decoder_sparse_step": 2}, 24),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [0, 1]}, 25),
        ({"model_type": "glm4_moe", "first_k_dense_replace": 3}, 3),
        ({"mlp_layer_types": ["dense"] + ["sparse"] * 47}, 1),
        ({"mlp_layer_types": ["dense"] + ["sparse"] * 47, "num_hidden_layers": 1}, 1),
    ],
)
def test_layers_without_experts(change, dense_layers):
    shape = from_config({**QWEN3_30B_A3B, **change})
    assert shape.experts == Experts(128, 8, 768, 0, dense_layers)
    assert shape.d_ff == 6144


@pytest.mark.parametrize(
    ("change", "width"),
    [
        ({"shared_expert_intermediate_size": 5632}, 5632),
        ({"shared_expert_intermediate_size": 0}, 0),
        ({"n_shared_experts": 2}, 2 * 768),
        ({"num_shared_experts": 0}, 0),
    ],
)
def test_what_every_token_goes_through(change, width):
    assert from_config({**QWEN3_30B_A3B, **change}).experts.d_shared == width


@pytest.mark.parametrize("count", [0, 1, None])
def test_a_single_expert_is_no_mixture(count):
    shape = from_config({**LLAMA_3_8B, "num_local_experts": count})
    assert shape == from_config(LLAMA_3_8B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts_per_tok": None}, "does not give num_experts_per_tok or moe_k"),
        ({"num_experts_per_tok": 129}, "has 129 experts a token, and only 128 experts"),
        ({"moe_intermediate_size": 0}, "has moe_intermediate_size = 0"),
        ({"num_experts": "many"}, "has num_experts = 'many'"),
        ({"n_shared_experts": -1}, "has n_shared_experts = -1; allowed are whole numbers from 0"),
        ({"model_type": "gpt_oss"}, "has attention sinks"),
    ],
)
def test_experts_that_cannot_be(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        from_config({**QWEN3_30B_A3B, **change})
