"""A decoder's layers and widths: all that planning needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes an element, by the name that torch and Hugging Face configurations use."""


@dataclass(frozen=True)
class Experts:
    """The feed-forward block of a mixture's layers: every token takes a few of many experts.

    Raises:
        ValueError: a token takes more experts than there are.

    Attributes:
        count: experts of a layer.
        per_token: experts that a token goes through.
        d_ff: inner width of one expert.
        d_shared: inner width of the block that every token goes through besides; 0 without one.
        dense_layers: layers that have no experts, but a block of the model's own ``d_ff``.
    """

    count: int
    per_token: int
    d_ff: int
    d_shared: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count:
            raise ValueError(f"{self.per_token} experts a token of {self.count}")

    def narrowed(self, factor: int) -> Experts:
        """Return experts that are so many times narrower."""
        return replace(self, d_ff=self.d_ff // factor, d_shared=self.d_shared // factor)


@dataclass(frozen=True)
class ModelShape:
    """Widths of a decoder-only transformer.

    Raises:
        ValueError: ``kv_widths`` has not one entry for each layer.

    Attributes:
        name: how people call it.
        num_layers: decoder layers.
        d_model: width of X, the input of the K/V projections.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of one head.
        d_ff: inner width of the feed-forward block (of one expert, where all layers have experts).
        gated_ff: whether the feed-forward block has a gate (three matrices, not two).
        vocab_size: rows of the embedding.
        tied_embeddings: whether the head shares the embedding's weights.
        max_context: tokens that the model's positions allow.
        sliding_window: window of the windowed layers in tokens, or None.
        windowed_layers: number of layers that attend only to their window.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        d_embed: width of the embedding where it is not ``d_model``, or None (OPT-350M projects).
        kv_widths: key/value heads and width of a head for each layer, where they differ between
            layers; empty where all are ``num_kv_heads`` × ``head_dim``.
        activation_parts: devices over which X is divided on its way to all of them (tensor
            parallelism); 1 where each device brings in the whole.
        embedding_on_host: whether the embedding's table stays in host memory, where the device
            reads the rows of its tokens by itself.
        experts: those of a mixture of experts, or None.
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
    kv_widths: tuple[tuple[int, int], ...] = ()
    activation_parts: int = 1
    embedding_on_host: bool = False
    experts: Experts | None = None

    def __post_init__(self) -> None:
        if self.kv_widths and len(self.kv_widths) != self.num_layers:
            raise ValueError(f"{len(self.kv_widths)} widths of K/V for {self.num_layers} layers")

    @property
    def d_kv(self) -> int:
        """Width of all key heads together (and of all value heads)."""
        return self.num_kv_heads * self.head_dim

    @property
    def kind(self) -> str:
        """What a layer's time depends on besides its widths of K/V, as a short word."""
        gate = "gated" if self.gated_ff else ""
        experts = self.experts
        of = "" if experts is None else f"of{experts.per_token}in{experts.count}x{experts.d_ff}"
        return f"{self.num_heads}x{self.head_dim}x{self.d_ff}{gate}{of}"

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

    def narrowed(self, factor: int) -> ModelShape:
        """Return a shape with so many times fewer heads and so much narrower layers.

        Raises:
            ValueError: the heads cannot be divided so.
        """
        if self.num_heads % factor or self.num_kv_heads % factor or self.kv_widths:
            raise ValueError(f"{self.name} cannot be made {factor} times as narrow")
        return replace(
            self,
            d_model=self.d_model // factor,
            num_heads=self.num_heads // factor,
            num_kv_heads=self.num_kv_heads // factor,
            d_ff=self.d_ff // factor,
            experts=self.experts and self.experts.narrowed(factor),
        )

    @cached_property
    def windowed_indices(self) -> frozenset[int]:
        """Which layers are taken to be windowed: as many as there are, spread evenly."""
        count, layers = self.windowed_layers, self.num_layers
        return frozenset(
            layer
            for layer in range(layers)
            if (layer + 1) * count // layers > layer * count // layers
        )

    @cached_property
    def layers(self) -> tuple[ModelShape, ...]:
        """The shape of each layer by itself: this one, with the layer's own widths of K/V."""
        if not self.kv_widths:
            return (self,) * self.num_layers
        made = {
            widths: replace(self, num_kv_heads=widths[0], head_dim=widths[1], kv_widths=())
            for widths in self.kv_widths
        }
        return tuple(made[widths] for widths in self.kv_widths)

    @cached_property
    def all_groups(self) -> tuple[LayerGroup, ...]:
        """The layers, grouped by their widths of K/V and by whether they are windowed."""
        counts: dict[tuple[ModelShape, bool], int] = {}
        for index, layer in enumerate(self.layers):
            kind = layer, index in self.windowed_indices
            counts[kind] = counts.get(kind, 0) + 1
        return tuple(
            LayerGroup(layer, count, windowed) for (layer, windowed), count in counts.items()
        )

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Those groups that attend to the whole context, and so have a cache on the host."""
        return tuple(group for group in self.all_groups if not group.windowed)


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose cache is alike.

    Attributes:
        shape: a shape with the widths of these layers.
        layers: how many they are.
        windowed: whether they attend to a window only.
    """

    shape: ModelShape
    layers: int
    windowed: bool = False

    @property
    def name(self) -> str:
        """Key/value heads and width of a head, such as ``8x128``."""
        return f"{self.shape.num_kv_heads}x{self.shape.head_dim}"
