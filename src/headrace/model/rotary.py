"""Rotary position embedding of rebuilt keys, by the model's own functions.

Shape suffixes: N pages, H key/value heads, T tokens of a page, D head width.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONTEXT_DEPENDENT = ("dynamic", "longrope")


class Rotary:
    """Rotates keys by their positions.

    Cosines and sines come from a table over positions, made by the model's rotary embedding.

    Args:
        embedding: the model's rotary embedding module.
        arguments: further arguments of its forward (the layer's type, where it asks for one).
        apply: the model's ``apply_rotary_pos_emb(q, k, cos, sin)``.
        partial: rotate only the first part of each head, as wide as the table.
    """

    def __init__(
        self,
        embedding: nn.Module,
        arguments: dict[str, Any],
        apply: Callable[..., tuple[Tensor, Tensor]],
        partial: bool,
    ) -> None:
        self._embedding = embedding
        self._arguments = arguments
        self._apply = apply
        self._partial = partial
        self._table: tuple[Tensor, Tensor] | None = None

    def reserve(self, positions: int, like: Tensor) -> None:
        """Make the table of that many positions, in the dtype and on the device of ``like``."""
        if self._table is not None and self._table[0].shape[0] >= positions:
            return
        with torch.no_grad():
            index = torch.arange(positions, device=like.device)[None]
            cos, sin = self._embedding(like, index, **self._arguments)
        self._table = cos[0], sin[0]

    def __call__(self, key_NHTD: Tensor, positions_NT: Tensor) -> Tensor:
        """Return the rotated keys."""
        if self._table is None:
            self.reserve(int(positions_NT.max()) + 1, key_NHTD)
        assert self._table is not None
        cos, sin = self._table[0][positions_NT], self._table[1][positions_NT]
        width = cos.shape[-1]
        if not self._partial:
            return self._apply(key_NHTD[:, :0], key_NHTD, cos, sin)[1]
        turned = self._apply(key_NHTD[:, :0, :, :width], key_NHTD[..., :width], cos, sin)[1]
        return torch.cat([turned, key_NHTD[..., width:]], dim=-1)


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that make cosines and sines from positions."""
    return [
        module
        for module in model.modules()
        if "Rotary" in type(module).__name__
        and "position_ids" in inspect.signature(module.forward).parameters
    ]


def rotary_candidates(
    attention: nn.Module,
    rotation: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    modules: list[nn.Module],
) -> Iterator[Rotary | None]:
    """Yield the ways in which a layer may rotate its keys; None stands for not at all.

    Args:
        attention: the attention module.
        rotation: the (cos, sin) that it was given, or None.
        positions: int64 ``[B, q]``, the positions they were made from.
        modules: the model's rotary embeddings.
    """
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotation is not None and apply is not None:
        for module in modules:
            for arguments in _arguments(module):
                if _makes(module, arguments, rotation, positions):
                    yield Rotary(module, arguments, apply, partial=False)
                    yield Rotary(module, arguments, apply, partial=True)
    yield None


def _arguments(module: nn.Module) -> list[dict[str, Any]]:
    """Return the further arguments that a rotary embedding may want."""
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return [{}]
    types = getattr(getattr(module, "config", None), "layer_types", None) or [None]
    return [{"layer_type": layer_type} for layer_type in dict.fromkeys(types)]


def _makes(
    module: nn.Module, arguments: dict[str, Any], rotation: tuple[Tensor, Tensor], positions: Tensor
) -> bool:
    """Return whether a rotary embedding makes just the cosines and sines that were observed."""
    if _depends_on_context(module):
        return False
    try:
        made = module(rotation[0], positions, **arguments)
    except (RuntimeError, KeyError, AttributeError, TypeError):
        return False
    return all(
        ours.shape == theirs.shape and torch.equal(ours, theirs)
        for ours, theirs in zip(made, rotation, strict=True)
    )


def _depends_on_context(module: nn.Module) -> bool:
    """Return whether the angles change with the length of the context (then X cannot be kept)."""
    rope_type = getattr(module, "rope_type", "default")
    types = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(str(name) in _CONTEXT_DEPENDENT for name in types)
