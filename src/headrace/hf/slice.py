"""A small model of the same widths: what a model's layers can do, without all of its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from headrace.hf.observe import text_config

_LAYERS = 4
_VOCABULARY = 2048


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return a configuration with a few of the layers, and a small vocabulary."""
    small = copy.deepcopy(config)
    text = small.get_text_config(decoder=True)
    text.num_hidden_layers = min(text.num_hidden_layers, _LAYERS)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.vocab_size = min(text.vocab_size, _VOCABULARY)
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, token, None) is not None:
            setattr(text, token, 0)
    return small


def small_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, attention: str | None = None
) -> nn.Module:
    """Return a model of such a configuration, with random weights.

    Args:
        config: of the whole model.
        device: where it goes.
        dtype: of its weights.
        attention: implementation of attention; None for the usual one.
    """
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(
            small_config(config), dtype=dtype, attn_implementation=attention
        )
    return model.eval()


def small_model_of(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a small model like another one."""
    config = model.config
    assert isinstance(config, PretrainedConfig)
    attention = getattr(text_config(model), "_attn_implementation", None)
    return small_model(config, device, next(model.parameters()).dtype, attention)
