"""Shapes of published models, for planning without their weights.

Each entry names its source. Where a model card's weights are in float32 (Gemma 2, OLMo 2), the
shape has bfloat16, in which they are commonly run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.errors import ConfigurationError
from headrace.model.shape import Experts, ModelShape


@dataclass(frozen=True)
class PublishedModel:
    """A published model.

    Attributes:
        shape: its layers and widths.
        source: the paper, and the model card whose ``config.json`` has the figures.
    """

    shape: ModelShape
    source: str


def _opt(name: str, num_layers: int, d_model: int, num_heads: int) -> ModelShape:
    return ModelShape(
        name, num_layers, d_model, num_heads, num_heads, d_model // num_heads, 4 * d_model,
        gated_ff=False, vocab_size=50272, tied_embeddings=True, max_context=2048, dtype="float16",
    )  # fmt: skip


def _gated(
    name: str,
    num_layers: int,
    d_model: int,
    heads: tuple[int, int, int],
    d_ff: int,
    vocab_size: int,
    max_context: int,
    *,
    tied_embeddings: bool = False,
    sliding_window: int | None = None,
    windowed_layers: int = 0,
    dtype: str = "bfloat16",
) -> ModelShape:
    """Return a shape with a gated feed-forward block. Heads: of queries, of K/V, width of one."""
    return ModelShape(
        name, num_layers, d_model, *heads, d_ff,
        gated_ff=True, vocab_size=vocab_size, tied_embeddings=tied_embeddings,
        max_context=max_context, sliding_window=sliding_window, windowed_layers=windowed_layers,
        dtype=dtype,
    )  # fmt: skip


def _mixture(
    name: str,
    num_layers: int,
    d_model: int,
    heads: tuple[int, int, int],
    experts: Experts,
    vocab_size: int,
    max_context: int,
) -> ModelShape:
    """Return a shape all of whose layers have experts. Heads: as of ``_gated``."""
    dense = _gated(name, num_layers, d_model, heads, experts.d_ff, vocab_size, max_context)
    return replace(dense, experts=experts)


_OPT = "Zhang et al. 2022, OPT (arXiv 2205.01068), table 1; model card facebook/"
_LLAMA_2 = "Touvron et al. 2023, Llama 2 (arXiv 2307.09288); model card meta-llama/"
_LLAMA_3 = "Grattafiori et al. 2024, Llama 3 (arXiv 2407.21783), table 3; model card meta-llama/"
_QWEN_3 = "Yang et al. 2025, Qwen3 (arXiv 2505.09388), tables 1 and 2; model card Qwen/"
_GEMMA_2 = "Riviere et al. 2024, Gemma 2 (arXiv 2408.00118), table 1; model card google/"
_MIXTRAL = (
    "Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088), table 1; model card mistralai/"
)
_OLMO_2 = "OLMo team 2025, 2 OLMo 2 Furious (arXiv 2501.00656); model card allenai/"

_PUBLISHED = (
    PublishedModel(_opt("opt-6.7b", 32, 4096, 32), f"{_OPT}opt-6.7b"),
    PublishedModel(_opt("opt-13b", 40, 5120, 40), f"{_OPT}opt-13b"),
    PublishedModel(_opt("opt-30b", 48, 7168, 56), f"{_OPT}opt-30b"),
    PublishedModel(
        _gated("llama-2-7b", 32, 4096, (32, 32, 128), 11008, 32000, 4096, dtype="float16"),
        f"{_LLAMA_2}Llama-2-7b-hf",
    ),
    PublishedModel(
        _gated("llama-2-13b", 40, 5120, (40, 40, 128), 13824, 32000, 4096, dtype="float16"),
        f"{_LLAMA_2}Llama-2-13b-hf",
    ),
    PublishedModel(
        _gated("llama-3-8b", 32, 4096, (32, 8, 128), 14336, 128256, 8192),
        f"{_LLAMA_3}Meta-Llama-3-8B",
    ),
    PublishedModel(
        _gated("llama-3-70b", 80, 8192, (64, 8, 128), 28672, 128256, 8192),
        f"{_LLAMA_3}Meta-Llama-3-70B",
    ),
    PublishedModel(
        _gated("qwen3-0.6b", 28, 1024, (16, 8, 128), 3072, 151936, 40960, tied_embeddings=True),
        f"{_QWEN_3}Qwen3-0.6B",
    ),
    PublishedModel(
        _gated("qwen3-8b", 36, 4096, (32, 8, 128), 12288, 151936, 40960), f"{_QWEN_3}Qwen3-8B"
    ),
    PublishedModel(
        _gated("qwen3-14b", 40, 5120, (40, 8, 128), 17408, 151936, 40960), f"{_QWEN_3}Qwen3-14B"
    ),
    PublishedModel(
        _mixture("qwen3-30b-a3b", 48, 2048, (32, 4, 128), Experts(128, 8, 768), 151936, 40960),
        f"{_QWEN_3}Qwen3-30B-A3B",
    ),
    PublishedModel(
        _mixture("mixtral-8x7b", 32, 4096, (32, 8, 128), Experts(8, 2, 14336), 32000, 32768),
        f"{_MIXTRAL}Mixtral-8x7B-v0.1",
    ),
    PublishedModel(
        _gated(
            "gemma-2-9b",
            42,
            3584,
            (16, 8, 256),
            14336,
            256000,
            8192,
            tied_embeddings=True,
            sliding_window=4096,
            windowed_layers=21,
        ),
        f"{_GEMMA_2}gemma-2-9b",
    ),
    PublishedModel(
        _gated("olmo-2-13b", 40, 5120, (40, 40, 128), 13824, 100352, 4096),
        f"{_OLMO_2}OLMo-2-1124-13B",
    ),
)

PUBLISHED = {model.shape.name: model for model in _PUBLISHED}
"""Published models by name."""


def published_names() -> tuple[str, ...]:
    """Return the names of the published shapes."""
    return tuple(PUBLISHED)


def published_shape(name: str) -> ModelShape:
    """Return a published shape by its name.

    Raises:
        ConfigurationError: there is no such shape; the message lists those there are.
    """
    if name not in PUBLISHED:
        raise ConfigurationError(
            f"no published model is called {name!r}; there are {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name].shape
