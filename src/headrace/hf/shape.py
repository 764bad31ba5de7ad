"""A loaded model's shape: from its configuration, corrected by what was observed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from headrace.errors import UnsupportedModelError
from headrace.hf.attachment import Attachment
from headrace.hf.observe import text_config
from headrace.model.config import from_config
from headrace.model.shape import ModelShape


def model_shape(model: nn.Module, attachment: Attachment, dtype: torch.dtype) -> ModelShape:
    """Return a model's shape: from its configuration, corrected by what was observed."""
    config = text_config(model)
    windows = [layer.scoring.window for layer in attachment.layers]
    windowed = [window for window in windows if window is not None]
    try:
        shape = from_config(config.to_dict(), name=_name(model, config))
    except UnsupportedModelError:
        shape = _observed_shape(model, attachment, config)
    return replace(
        shape,
        dtype=str(dtype).removeprefix("torch."),
        sliding_window=max(windowed) if windowed else None,
        windowed_layers=len(windowed),
        embedding_on_host=attachment.embedding is not None,
    )


def _name(model: nn.Module, config: Any) -> str:
    return str(getattr(config, "_name_or_path", "")) or type(model).__name__


def _observed_shape(model: nn.Module, attachment: Attachment, config: Any) -> ModelShape:
    """Return a shape for a model whose configuration does not say it (some mixtures of experts).

    The feed-forward width is what makes the model's weights add up; a step then reads all experts.
    """
    seen = attachment.layers[0].observation
    kv_heads, head_dim = seen.key.shape[1], seen.key.shape[3]
    d_model, layers = seen.activations.shape[2], len(attachment.layers)
    heads = int(getattr(config, "num_attention_heads", kv_heads))
    vocab = int(config.vocab_size)
    weights = sum(parameter.numel() for parameter in model.parameters())
    attention = 2 * d_model * head_dim * (heads + kv_heads)
    d_ff = max(1, ((weights - 2 * vocab * d_model) // layers - attention) // (3 * d_model))
    return ModelShape(
        name=_name(model, config),
        num_layers=layers,
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=d_ff,
        gated_ff=True,
        vocab_size=vocab,
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        max_context=int(getattr(config, "max_position_embeddings", 1 << 20)),
    )
