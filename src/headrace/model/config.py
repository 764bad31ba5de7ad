"""A model's shape from its Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.model.config_experts import experts_of
from headrace.model.settings import Settings
from headrace.model.shape import DTYPE_BYTES, Experts, ModelShape

_D_MODEL = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_D_FF = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

_FOUR_TIMES_D_MODEL = frozenset(
    {"gpt2", "gpt_bigcode", "gptj", "gpt_neo", "codegen", "falcon", "bloom", "mpt"}
)
"""Model types whose feed-forward block is 4·d wide where the configuration does not say."""

_UNGATED = _FOUR_TIMES_D_MODEL | {"opt", "gpt_neox", "phi", "starcoder2", "nemotron", "arcee"}
"""Model types whose feed-forward block has two matrices; all others have a gate too."""

_TIED_BY_DEFAULT = frozenset(
    {
        "opt", "gpt2", "gpt_bigcode", "gpt_neo", "falcon", "bloom", "mpt", "gemma", "gemma2",
        "gemma3_text", "starcoder2", "smollm3", "cohere", "cohere2", "ernie4_5_moe",
    }
)  # fmt: skip
"""Model types that share embedding and head where the configuration does not say."""

_ALL_WINDOWED = frozenset({"mistral", "phi3", "starcoder2", "ministral"})
"""Model types whose layers are all windowed where there is a window and no layer types."""

_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "olmo3": 4}
"""Model types where only every n-th layer attends to the whole context, and n."""

_OTHER_CACHE = {
    "kv_lora_rank": "keeps a compressed cache (latent attention)",
    "num_kv_shared_layers": "shares K/V between layers",
    "mamba_d_state": "has state-space layers",
    "ssm_state_size": "has state-space layers",
    "state_size": "has state-space layers",
}
_SINKS = frozenset({"gpt_oss"})
"""Model types whose attention has sinks, which their configuration does not say."""


def from_config(config: Mapping[str, Any], name: str | None = None) -> ModelShape:
    """Return the shape that a Hugging Face configuration describes.

    Args:
        config: what ``config.json`` holds, or ``PreTrainedConfig.to_dict()``. Of a model of several
            modalities, ``text_config`` counts.
        name: what to call the model; by default what the configuration says.

    Raises:
        UnsupportedModelError: a width is missing or not a positive whole number, or the model's
            cache is of another kind than K/V per layer and token.
    """
    inner = config.get("text_config")
    merged = {**config, **{k: v for k, v in (inner or {}).items() if v is not None}}
    called = name or config.get("_name_or_path") or str(merged.get("model_type"))
    reader = _Reader(Settings(merged, called))
    reader.refuse_other_kinds()
    return reader.shape()


class _Reader:
    """Makes a shape of settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._type = settings.type

    def shape(self) -> ModelShape:
        """Return the shape."""
        d_model = self._settings.whole(_D_MODEL)
        num_heads = self._settings.whole(_HEADS)
        num_layers = self._settings.whole(_LAYERS)
        if self._settings.get("head_dim") is None and d_model % num_heads:
            raise self._settings.error(f"{d_model} (d_model) is no multiple of {num_heads} heads")
        window, windowed_layers = self._windows(num_layers)
        experts = experts_of(self._settings, num_layers)
        d_embed = self._settings.get("word_embed_proj_dim")
        tied = self._settings.get("tie_word_embeddings")
        return ModelShape(
            name=self._settings.name,
            num_layers=num_layers,
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=self._num_kv_heads(num_heads),
            head_dim=self._settings.whole(("head_dim",), d_model // num_heads),
            d_ff=self._d_ff(d_model, experts),
            gated_ff=self._type not in _UNGATED,
            vocab_size=self._settings.whole(("vocab_size",)),
            tied_embeddings=self._type in _TIED_BY_DEFAULT if tied is None else bool(tied),
            max_context=self._settings.whole(_CONTEXT),
            sliding_window=window,
            windowed_layers=windowed_layers,
            dtype=self._dtype(),
            d_embed=None
            if d_embed in (None, d_model)
            else self._settings.whole(("word_embed_proj_dim",)),
            experts=experts,
        )

    def refuse_other_kinds(self) -> None:
        """Raise for models whose layers do not each cache K/V for each token.

        Raises:
            UnsupportedModelError: the model is of such a kind.
        """
        if self._settings.get("is_encoder_decoder"):
            raise self._settings.error("is an encoder-decoder; only decoder-only models are served")
        for setting, kind in _OTHER_CACHE.items():
            if self._settings.get(setting):
                raise self._settings.error(f"{kind} ({setting}); layers that cache K/V are needed")
        if self._type in _SINKS:
            raise self._settings.error("has attention sinks, which are not served")
        others = set(self._settings.get("layer_types") or ()) - {
            "full_attention",
            "sliding_attention",
        }
        if others:
            raise self._settings.error(
                f"has layers of type {', '.join(sorted(map(str, others)))}; "
                "allowed are full_attention and sliding_attention"
            )

    def _d_ff(self, d_model: int, experts: Experts | None) -> int:
        """Return the width of blocks without experts; of an expert where all layers have them."""
        if experts is not None and not experts.dense_layers:
            return experts.d_ff
        usual = 4 * d_model if self._type in _FOUR_TIMES_D_MODEL else None
        return self._settings.whole(_D_FF, usual)

    def _num_kv_heads(self, num_heads: int) -> int:
        if self._settings.get("multi_query") and not self._settings.get("new_decoder_architecture"):
            return 1
        return self._settings.whole(_KV_HEADS, num_heads)

    def _windows(self, num_layers: int) -> tuple[int | None, int]:
        """Return the window, and how many layers have it."""
        if (
            not self._settings.get("sliding_window")
            or self._settings.get("use_sliding_window") is False
        ):
            return None, 0
        layer_types = self._settings.get("layer_types")
        if layer_types:
            windowed = list(layer_types)[:num_layers].count("sliding_attention")
        elif self._type in _ALL_WINDOWED:
            windowed = num_layers
        elif self._type in _FULL_EVERY:
            every = self._settings.whole(("sliding_window_pattern",), _FULL_EVERY[self._type])
            windowed = num_layers - num_layers // every
        elif self._settings.get("use_sliding_window"):
            windowed = max(0, num_layers - (self._settings.get("max_window_layers") or 0))
        else:
            raise self._settings.error(
                "has a sliding_window, but does not say (layer_types) which layers"
            )
        return (self._settings.whole(("sliding_window",)), windowed) if windowed else (None, 0)

    def _dtype(self) -> str:
        given = self._settings.get("dtype") or self._settings.get("torch_dtype") or "float32"
        dtype = str(given).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise self._settings.error(f"has dtype {dtype}; allowed are {', '.join(DTYPE_BYTES)}")
        return dtype
