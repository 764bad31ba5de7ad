"""How a layer makes keys and values from X: found in the module, and verified by its own numbers.

A recipe says where the weights are, whether keys are normalised, and how positions are rotated in.
Recipes are tried in turn until one reproduces what the module itself computed; a name alone is
never trusted. Where none does, the layer cannot be rebuilt, and the reason is kept.

Shape suffixes: N pages, T tokens of a page, M model width, H key/value heads, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from headrace.model.kv_weights import KvSource, kv_sources
from headrace.model.rotary import Rotary, rotary_candidates

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference that counts as agreement, as a share of the largest value."""


@dataclass(frozen=True)
class Observation:
    """What one attention module was given and made, on a few tokens.

    Attributes:
        layer: index of the layer.
        module: the attention module.
        activations: its input X, ``[B, q, M]``.
        key: keys after position embedding, ``[B, H, q, D]``.
        value: values, ``[B, H, q, D]``.
        positions: int64 ``[B, q]``.
        rotation: the (cos, sin) that the module was given, or None.
    """

    layer: int
    module: nn.Module
    activations: Tensor
    key: Tensor
    value: Tensor
    positions: Tensor
    rotation: tuple[Tensor, Tensor] | None

    def without_contents(self) -> Observation:
        """Return the same shapes and dtypes without any memory."""
        return replace(
            self,
            activations=self.activations.to("meta"),
            key=self.key.to("meta"),
            value=self.value.to("meta"),
            positions=self.positions.to("meta"),
            rotation=None,
        )


class KeyNorm(StrEnum):
    """Where a norm of the keys is applied."""

    NONE = "none"
    PER_HEAD = "per head"
    ACROSS_HEADS = "across heads"
    AFTER_ROTATION = "per head, after rotation"


@dataclass
class LayerProjection:
    """A verified recipe of one layer.

    Attributes:
        source: makes keys and values side by side, before norm and rotation.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        key_norm: the module that normalises keys, and where.
        value_norm: the module that normalises values head by head, or None.
        rotary: rotates keys by their positions, or None.
    """

    source: KvSource
    num_kv_heads: int
    head_dim: int
    key_norm: tuple[KeyNorm, nn.Module | None]
    value_norm: nn.Module | None
    rotary: Rotary | None

    def rebuild(self, activations_NTM: Tensor, positions_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[N, H, T, D]``; D alone is sure to be contiguous.

        Args:
            activations_NTM: X of the pages.
            positions_NT: int64; position of each token.
        """
        key, value = self._unrotated(activations_NTM)
        if self.rotary is not None:
            key = self.rotary(key, positions_NT)
        where, norm = self.key_norm
        if norm is not None and where is KeyNorm.AFTER_ROTATION:
            key = norm(key)
        return key, value

    @property
    def rotates_last(self) -> bool:
        """Whether rotating halves of heads, as ``rotate_halves`` does, is the last of it all."""
        rotary, (where, _) = self.rotary, self.key_norm
        return rotary is not None and rotary.of_halves and where is not KeyNorm.AFTER_ROTATION

    def rebuild_unrotated(
        self, activations_NTM: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return keys and values before the rotation, which must be the last of it all.

        Args:
            activations_NTM: X of the pages.

        Returns:
            Keys and values as ``rebuild`` does, and cosines and sines of all positions that were
            reserved, ``[positions, W]``, with which the first W numbers of each head are to be
            rotated.
        """
        assert self.rotary is not None
        key, value = self._unrotated(activations_NTM)
        return (key, value), self.rotary.table.whole(key)

    def _unrotated(self, activations_NTM: Tensor) -> tuple[Tensor, Tensor]:
        pages, tokens, _ = activations_NTM.shape
        both = self.source(activations_NTM).view(pages, tokens, 2, self.num_kv_heads, self.head_dim)
        where, norm = self.key_norm
        if where is KeyNorm.NONE and self.value_norm is None:
            key, value = both.permute(2, 0, 3, 1, 4).unbind()
            return key, value
        key, value = both.unbind(2)
        if norm is not None and where is KeyNorm.PER_HEAD:
            key = norm(key)
        elif norm is not None and where is KeyNorm.ACROSS_HEADS:
            key = norm(key.flatten(2)).view(key.shape)
        if self.value_norm is not None:
            value = self.value_norm(value)
        return key.transpose(1, 2), value.transpose(1, 2)


def find_projection(
    observation: Observation, rotary_modules: list[nn.Module]
) -> LayerProjection | str:
    """Return the first recipe that reproduces the observed keys and values, or why there is none.

    Args:
        observation: what the module was given and made.
        rotary_modules: the model's rotary embeddings.
    """
    sources = list(
        kv_sources(observation.module, observation.key.shape[1], observation.key.shape[3])
    )
    if not sources:
        return f"no key and value weights were found in {type(observation.module).__name__}"
    best = float("inf")
    for candidate in _candidates(observation, sources, rotary_modules):
        error = _error(candidate, observation)
        if error <= TOLERANCE.get(observation.key.dtype, 1e-4):
            return candidate
        best = min(best, error)
    return (
        f"keys and values rebuilt from the input of {type(observation.module).__name__} differ "
        f"from the model's own by {best:.2g} of their range"
    )


def _candidates(
    observation: Observation, sources: list[KvSource], rotary_modules: list[nn.Module]
) -> Iterator[LayerProjection]:
    heads, width = observation.key.shape[1], observation.key.shape[3]
    rotaries = list(
        rotary_candidates(
            observation.module, observation.rotation, observation.positions, rotary_modules
        )
    )
    for source, rotary, key_norm, value_norm in itertools.product(
        sources, rotaries, _key_norms(observation.module), _value_norms(observation.module)
    ):
        yield LayerProjection(source, heads, width, key_norm, value_norm, rotary)


def _key_norms(module: nn.Module) -> list[tuple[KeyNorm, nn.Module | None]]:
    for name in ("k_norm", "k_layernorm", "key_layernorm", "key_norm"):
        norm = getattr(module, name, None)
        if isinstance(norm, nn.Module):
            where = (KeyNorm.PER_HEAD, KeyNorm.ACROSS_HEADS, KeyNorm.AFTER_ROTATION)
            return [*((place, norm) for place in where), (KeyNorm.NONE, None)]
    return [(KeyNorm.NONE, None)]


def _value_norms(module: nn.Module) -> list[nn.Module | None]:
    norm = getattr(module, "v_norm", None)
    return [norm, None] if isinstance(norm, nn.Module) else [None]


def _error(candidate: LayerProjection, observation: Observation) -> float:
    """Return the largest difference from what was observed, as a share of its range."""
    try:
        rebuilt = candidate.rebuild(observation.activations, observation.positions)
    except (RuntimeError, ValueError, TypeError):
        return float("inf")
    errors = [
        ((ours - theirs).abs().amax() / theirs.abs().amax().clamp_min(1e-20)).item()
        for ours, theirs in zip(rebuilt, (observation.key, observation.value), strict=True)
        if ours.shape == theirs.shape
    ]
    return max(errors) if len(errors) == 2 else float("inf")
