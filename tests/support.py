"""Tiny random models, ragged batches, and the comparison with the plain model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from headrace.hf.cache import HostCache

VOCABULARY = 97
PAD = 0
LOGIT_TOLERANCE = 1e-4
"""Largest difference of logits in float32, as a share of their range (DESIGN, section 7)."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
_GATED = {**_SIZES, "intermediate_size": 64}
_GROUPED = {**_GATED, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_GATED, attention_bias=True),
    "llama-gqa": lambda: LlamaConfig(**{**_GROUPED, "num_hidden_layers": 3}),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**_GROUPED, sliding_window=24),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=16),
    "olmo2": lambda: Olmo2Config(**_GATED),
    "opt": lambda: OPTConfig(**_SIZES, ffn_dim=64, word_embed_proj_dim=48),
    "gemma2": lambda: Gemma2Config(
        **{**_GROUPED, "num_hidden_layers": 4},
        head_dim=16,
        sliding_window=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=20.0,
        query_pre_attn_scalar=20,
    ),
    "phi3": lambda: Phi3Config(**_GROUPED),
    "gpt-neox": lambda: GPTNeoXConfig(
        **_GATED, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}
    ),
    "gpt2": lambda: GPT2Config(**_SIZES),
}
"""Configurations of every kind of projection, position embedding, norm and window."""

EAGER_ONLY = frozenset({"gemma2"})
"""Architectures whose plain model is right only with eager attention (no soft cap in sdpa)."""

POLICIES: tuple[tuple[str, float | None], ...] = (
    ("resident", None),
    ("stream", None),
    ("recompute", 0.0),
    ("recompute", 0.37),
    ("recompute", 1.0),
    ("kvpr", 0.0),
    ("kvpr", 0.37),
    ("kvpr", 1.0),
)
"""Policies with their recompute fractions."""

SPLITS: tuple[tuple[str, float | None], ...] = (
    ("resident", None),
    ("stream", None),
    ("recompute", 0.37),
    ("kvpr", 1.0),
)
"""One of each, for what hardly depends on the fraction."""


def make_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **changes: Any,
) -> PreTrainedModel:
    """Return a tiny model whose random weights, biases and norms are far from their defaults."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    if attention is None:
        attention = "eager" if name in EAGER_ONLY else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return randomise(model, seed).to(dtype)


def randomise(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Give a model weights in which every error shows; return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_weight = key.endswith("weight")
                parameter.copy_((1.0 if is_weight else 0.0) + 0.3 * noise)
            else:
                parameter.copy_(noise * 0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


@functools.cache
def shared_model(name: str) -> PreTrainedModel:
    """Return a model that tests share; whoever opens a cache on it must close it."""
    return make_model(name)


@dataclass(frozen=True)
class Batch:
    """Left-padded inputs of a batch of ragged rows."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of a model or of ``generate``."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def with_more(self, tokens: Tensor, seen: Tensor) -> Batch:
        """Return the batch with further columns."""
        return Batch(
            torch.cat([self.input_ids, tokens], dim=1),
            torch.cat([self.attention_mask, seen.to(torch.int64)], dim=1),
        )


def make_batch(lengths: tuple[int, ...] = (83, 50, 97), seed: int = 1) -> Batch:
    """Return random prompts of these lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(3, VOCABULARY, (length,), generator=generator)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).to(torch.int64)
    return Batch(ids, mask)


@dataclass(frozen=True)
class Generated:
    """What ``generate`` made: tokens, and the logits of each step ``[B, steps, V]``."""

    tokens: Tensor
    logits: Tensor | None


def generate(
    model: PreTrainedModel,
    batch: Batch,
    cache: Any,
    new_tokens: int = 20,
    **options: Any,
) -> Generated:
    """Generate greedily unless told otherwise."""
    options = {"do_sample": False, **options}
    result = model.generate(
        **batch.inputs,
        past_key_values=cache,
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    logits = None if result.logits is None else torch.stack(result.logits, dim=1)
    return Generated(result.sequences, logits)


def plain_cache(model: PreTrainedModel) -> DynamicCache:
    """Return the cache that `transformers` itself would use."""
    return DynamicCache(config=model.config)


@functools.cache
def greedy_alone(name: str) -> Generated:
    """Return what the plain model makes of ``make_batch()``."""
    model = shared_model(name)
    return generate(model, make_batch(), plain_cache(model))


def host_cache(model: PreTrainedModel, policy: str, fraction: float | None, **options: Any):
    """Return a cache of ours with poisoned staging and little reserved memory."""
    return HostCache(
        model,
        policy=policy,
        recompute_fraction=fraction,
        **{"reserve_tokens": 64, "poison": True, **options},
    )


def logit_error(expected: Tensor, made: Tensor) -> float:
    """Return the largest difference as a share of the expected logits' range."""
    spread = (expected.amax() - expected.amin()).item()
    return ((made.float() - expected.float()).abs().amax() / spread).item()


def assert_same(expected: Generated, made: Generated, tolerance: float = LOGIT_TOLERANCE) -> None:
    """Fail unless tokens are identical and logits agree."""
    assert torch.equal(made.tokens, expected.tokens)
    assert expected.logits is not None
    assert made.logits is not None
    error = logit_error(expected.logits, made.logits)
    assert error <= tolerance


def forward_in_chunks(
    model: PreTrainedModel, batch: Batch, cache: Any, sizes: list[int], start: int = 0
) -> Tensor:
    """Run columns ``start`` onwards through the model, that many at a time; return their logits."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    logits = []
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    for size in sizes:
        columns = slice(start, start + size)
        more = {"position_ids": positions[:, columns]} if takes_positions else {}
        with torch.no_grad():
            result = model(
                input_ids=batch.input_ids[:, columns],
                attention_mask=batch.attention_mask[:, : columns.stop],
                past_key_values=cache,
                **more,
            )
        logits.append(result.logits)
        start = columns.stop
    return torch.cat(logits, dim=1)


def chunk_sizes(total: int, size: int) -> list[int]:
    """Return the sizes of chunks that cover a number of columns."""
    return [min(size, total - start) for start in range(0, total, size)]


def assert_same_where_seen(expected: Tensor, made: Tensor, seen: Tensor) -> None:
    """Fail unless logits agree in every column that is a token (padding's are anybody's)."""
    chosen = seen.bool()
    assert logit_error(expected[chosen], made[chosen]) <= LOGIT_TOLERANCE
