"""A decoder's layers and widths: all that planning needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes an element, by the name that torch and Hugging Face configurations use."""


@dataclass(frozen=True)
class ModelShape:
    """Widths of a decoder-only transformer.

    Attributes:
        name: how people call it.
        num_layers: decoder layers.
        d_model: width of X, the input of the K/V projections.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of one head.
        d_ff: inner width of the feed-forward block (of one expert).
        gated_ff: whether the feed-forward block has a gate (three matrices, not two).
        vocab_size: rows of the embedding.
        tied_embeddings: whether the head shares the embedding's weights.
        max_context: tokens that the model's positions allow.
        sliding_window: window of the windowed layers in tokens, or None.
        windowed_layers: number of layers that attend only to their window.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        d_embed: width of the embedding where it is not ``d_model``, or None (OPT-350M projects).
    """

    name: str
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    gated_ff: bool
    vocab_size: int
    tied_embeddings: bool
    max_context: int
    sliding_window: int | None = None
    windowed_layers: int = 0
    dtype: str = "bfloat16"
    d_embed: int | None = None

    @property
    def d_kv(self) -> int:
        """Width of all key heads together (and of all value heads)."""
        return self.num_kv_heads * self.head_dim

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def embedding_width(self) -> int:
        """Width of the embedding and of the head."""
        return self.d_model if self.d_embed is None else self.d_embed

    @property
    def full_layers(self) -> int:
        """Layers that attend to the whole context; only these have a cache on the host."""
        return self.num_layers - self.windowed_layers
