"""Where an attention module keeps the weights of its keys and values.

Whatever the architecture, a source turns X ``[..., M]`` into keys and values side by side,
``[..., 2 · H · D]``, by one matrix product where the weights allow it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SEPARATE = (
    ("k_proj", "v_proj"),
    ("key_proj", "value_proj"),
    ("key", "value"),
    ("k", "v"),
    ("wk", "wv"),
)
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "wqkv", "in_proj")

_PLACES_KEPT = 4
"""Streamed weights are in one of a few slots."""


class KvSource(ABC):
    """Makes keys and values, before norms and rotation, from X."""

    @abstractmethod
    def __call__(self, activations: Tensor) -> Tensor:
        """Return keys and values side by side, ``[..., 2 · H · D]``, of X ``[..., M]``."""

    def merge(self) -> None:  # noqa: B027 (nothing to do where the weights are side by side)
        """Bring the weights into one buffer, if that helps; the module's become views of it."""

    def restore(self) -> None:  # noqa: B027
        """Undo ``merge``."""


class SeparateLinears(KvSource):
    """Two linear layers. Where their weights are side by side they are one matrix product."""

    def __init__(self, key: nn.Module, value: nn.Module) -> None:
        self._key = key
        self._value = value
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._joined: dict[tuple[int, ...], list[Tensor]] = {}
        self._copied = False
        self._bias: Tensor | None = None

    def __call__(self, activations: Tensor) -> Tensor:
        """Return keys and values side by side."""
        if not self._pairs:
            return torch.cat([self._key(activations), self._value(activations)], dim=-1)
        weight, *biases = self._as_one()
        return F.linear(activations, weight, biases[0] if biases else self._bias)

    def _as_one(self) -> list[Tensor]:
        """Return the pairs as one tensor each; made once for each place where they are.

        Biases may be streamed where weights are not: they move from slot to slot by themselves.
        """
        place = tuple(first.data_ptr() for first, _ in self._pairs)
        joined = self._joined.get(place)
        if joined is None:
            if len(self._joined) >= _PLACES_KEPT:
                self._joined = {}
            joined = self._joined[place] = [_as_one(*pair) for pair in self._pairs]
        return joined

    def merge(self) -> None:
        """Bring both weights into one buffer and let the parameters be views of it."""
        self._pairs, self._joined = list(_mergeable(self._key, self._value)), {}
        for pair in self._pairs:
            if not _is_one(*pair):
                _merge(*pair)
                self._copied = True
        if len(self._pairs) == 1:
            self._bias = _lone_bias(self._key, self._value)

    def restore(self) -> None:
        """Give each parameter memory of its own again, if that was taken from it."""
        if self._copied:
            for layer in (self._key, self._value):
                for parameter in layer.parameters(recurse=False):
                    parameter.data = parameter.data.clone()
        self._pairs, self._joined, self._copied = [], {}, False
        self._bias = None


def side_by_side(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs of a module's own parameters that are best kept side by side.

    They are the weights, and the biases, of separate linear layers for keys and values.
    """
    for key_name, value_name in _SEPARATE:
        key, value = getattr(module, key_name, None), getattr(module, value_name, None)
        if isinstance(key, nn.Module) and isinstance(value, nn.Module):
            yield from _mergeable(key, value)


def _mergeable(key: nn.Module, value: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weights, then biases, if they can be one product's."""
    if type(key) is not nn.Linear or type(value) is not nn.Linear:
        return
    if key.weight.device.type == "meta" or key.weight.dtype != value.weight.dtype:
        return
    yield key.weight, value.weight
    biases = _bias_of(key), _bias_of(value)
    if biases[0] is not None and biases[1] is not None:
        yield biases[0], biases[1]


def _bias_of(layer: nn.Module) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _lone_bias(key: nn.Module, value: nn.Module) -> Tensor | None:
    """Return the bias of the one of two layers that has one, with zeros for the other, or None."""
    if _bias_of(key) is None and _bias_of(value) is None:
        return None
    parts = []
    for layer in (key, value):
        assert isinstance(layer, nn.Linear)
        bias = _bias_of(layer)
        parts.append(layer.weight.new_zeros(layer.out_features) if bias is None else bias.detach())
    return torch.cat(parts)


def _is_one(first: Tensor, second: Tensor) -> bool:
    """Return whether a tensor begins where another one ends."""
    same = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    whole = first.is_contiguous() and second.is_contiguous()
    return same and whole and second.storage_offset() == first.storage_offset() + first.numel()


def _as_one(first: Tensor, second: Tensor) -> Tensor:
    """Return both as one tensor, without a copy: wherever they are now, they are side by side."""
    size = (first.shape[0] + second.shape[0], *first.shape[1:])
    return first.detach().as_strided(size, first.stride())


def _merge(first: Tensor, second: Tensor) -> None:
    """Bring both parameters into one buffer, and make them views of it."""
    buffer = torch.cat([first.detach(), second.detach()])
    first.data, second.data = buffer[: first.shape[0]], buffer[first.shape[0] :]


class FusedLinear(KvSource):
    """Rows of one weight that also makes the queries.

    Args:
        fused: the module whose weight it is.
        rows: the outputs that are keys, then values: a slice (a view) or indices (a copy).
    """

    def __init__(self, fused: nn.Module, rows: slice | Tensor) -> None:
        self._fused = fused
        self._rows = rows
        self._copies = None if isinstance(rows, slice) else self._chosen()

    def __call__(self, activations: Tensor) -> Tensor:
        """Return keys and values side by side."""
        weight, bias = self._copies or self._chosen()
        return F.linear(activations, weight, bias)

    def _chosen(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = _outputs_first(self._fused), getattr(self._fused, "bias", None)
        chosen = bias.detach()[self._rows] if isinstance(bias, Tensor) else None
        return weight[self._rows], chosen


def _outputs_first(fused: nn.Module) -> Tensor:
    """Return a view of a projection's weight whose rows are its outputs."""
    weight: Tensor = fused.weight.detach()  # type: ignore[operator]
    return weight.t() if type(fused).__name__ == "Conv1D" else weight


def kv_sources(module: nn.Module, num_kv_heads: int, head_dim: int) -> Iterator[KvSource]:
    """Yield every way in which a module may keep its key and value weights.

    Args:
        module: the attention module.
        num_kv_heads: key and value heads that it makes.
        head_dim: width of a head.
    """
    for key_name, value_name in _SEPARATE:
        key, value = getattr(module, key_name, None), getattr(module, value_name, None)
        if isinstance(key, nn.Module) and isinstance(value, nn.Module):
            yield SeparateLinears(key, value)
    for name in _FUSED:
        fused = getattr(module, name, None)
        weight = getattr(fused, "weight", None)
        if isinstance(fused, nn.Module) and isinstance(weight, Tensor) and weight.dim() == 2:
            yield from _fused_sources(fused, num_kv_heads, head_dim)


def _fused_sources(fused: nn.Module, num_kv_heads: int, head_dim: int) -> Iterator[KvSource]:
    """Yield the known orders of the outputs of a fused projection."""
    weight = _outputs_first(fused)
    outputs, kv_width = weight.shape[0], num_kv_heads * head_dim
    if outputs <= 2 * kv_width:
        return
    # All queries, then all keys, then all values (Phi-3, GPT-2, Falcon-7B).
    yield FusedLinear(fused, slice(outputs - 2 * kv_width, outputs))
    index = torch.arange(outputs, device=weight.device)
    group = outputs // kv_width - 2
    if outputs == (group + 2) * kv_width:
        # For each key head: its queries, its key, its value (GPT-NeoX, Bloom, Falcon-40B).
        grouped = index.view(num_kv_heads, group + 2, head_dim)
        rows = torch.cat([grouped[:, group].flatten(), grouped[:, group + 1].flatten()])
        yield FusedLinear(fused, rows)
