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
    """Two linear layers. Merged, they are one matrix product over one buffer."""

    def __init__(self, key: nn.Module, value: nn.Module) -> None:
        self._key = key
        self._value = value
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, activations: Tensor) -> Tensor:
        """Return keys and values side by side."""
        if self._weight is None:
            return torch.cat([self._key(activations), self._value(activations)], dim=-1)
        return F.linear(activations, self._weight, self._bias)

    def merge(self) -> None:
        """Bring both weights into one buffer and let the parameters be views of it."""
        key, value = self._key, self._value
        if type(key) is not nn.Linear or type(value) is not nn.Linear:
            return
        if key.weight.device.type == "meta" or key.weight.dtype != value.weight.dtype:
            return
        self._weight = _merged(key.weight, value.weight)
        biases = [bias for layer in (key, value) if (bias := _bias_of(layer)) is not None]
        if len(biases) == 2:
            self._bias = _merged(*biases)
        elif biases:
            self._bias = torch.cat([_bias_or_zeros(key), _bias_or_zeros(value)])

    def restore(self) -> None:
        """Give each parameter memory of its own again."""
        if self._weight is None:
            return
        for layer in (self._key, self._value):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.clone()
        self._weight = self._bias = None


def _bias_of(layer: nn.Linear) -> Tensor | None:
    bias: Tensor | None = layer.bias
    return bias


def _bias_or_zeros(layer: nn.Linear) -> Tensor:
    bias = _bias_of(layer)
    return layer.weight.new_zeros(layer.out_features) if bias is None else bias.detach()


def _merged(first: Tensor, second: Tensor) -> Tensor:
    """Return both parameters in one buffer, and make them views of it."""
    buffer = torch.cat([first.detach(), second.detach()])
    first.data, second.data = buffer[: first.shape[0]], buffer[first.shape[0] :]
    return buffer


class FusedLinear(KvSource):
    """Rows of one weight that also makes the queries.

    Args:
        weight: ``[out, M]``, a view of the module's.
        bias: ``[out]``, or None.
        rows: the outputs that are keys, then values: a slice (a view) or indices (a copy).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: slice | Tensor) -> None:
        self._weight = weight[rows]
        self._bias = None if bias is None else bias[rows]

    def __call__(self, activations: Tensor) -> Tensor:
        """Return keys and values side by side."""
        return F.linear(activations, self._weight, self._bias)


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
            yield from _fused_sources(fused, weight, num_kv_heads, head_dim)


def _fused_sources(
    fused: nn.Module, weight: Tensor, num_kv_heads: int, head_dim: int
) -> Iterator[KvSource]:
    """Yield the known orders of the outputs of a fused projection."""
    weight = weight.detach()
    if type(fused).__name__ == "Conv1D":
        weight = weight.t()
    raw_bias = getattr(fused, "bias", None)
    bias = raw_bias.detach() if isinstance(raw_bias, Tensor) else None
    outputs, kv_width = weight.shape[0], num_kv_heads * head_dim
    if outputs <= 2 * kv_width:
        return
    # All queries, then all keys, then all values (Phi-3, GPT-2, Falcon-7B).
    yield FusedLinear(weight, bias, slice(outputs - 2 * kv_width, outputs))
    index = torch.arange(outputs, device=weight.device)
    group = outputs // kv_width - 2
    if outputs == (group + 2) * kv_width:
        # For each key head: its queries, its key, its value (GPT-NeoX, Bloom, Falcon-40B).
        grouped = index.view(num_kv_heads, group + 2, head_dim)
        rows = torch.cat([grouped[:, group].flatten(), grouped[:, group + 1].flatten()])
        yield FusedLinear(weight, bias, rows)
