"""Rotary position embedding of rebuilt keys, by the model's own functions.

Shape suffixes: N pages, H key/value heads, T tokens of a page, D head width.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_CONTEXT_DEPENDENT = ("dynamic", "longrope")

_ROUNDINGS = 4
"""Of numbers up to 1, by which the same rotation may differ if it is written differently."""


class RotaryTable:
    """Cosines and sines by position, shared by all layers that use the same embedding.

    Args:
        embedding: the model's rotary embedding module.
        arguments: further arguments of its forward (the layer's type, where it asks for one).
    """

    def __init__(self, embedding: nn.Module, arguments: dict[str, Any]) -> None:
        # The table is kept by embedding, and must not keep the embedding alive.
        self._embedding = weakref.ref(embedding)
        self._arguments = arguments
        self._table: tuple[Tensor, Tensor] | None = None
        self._positions = 0

    def reserve(self, positions: int, like: Tensor) -> None:
        """Make the table of that many positions, in the dtype and on the device of ``like``."""
        if self._table is not None:
            made = self._table[0]
            same = made.dtype == like.dtype and made.device == like.device
            if same and made.shape[0] >= positions:
                return
        embedding = self._embedding()
        assert embedding is not None
        with torch.no_grad():
            index = torch.arange(positions, device=like.device)[None]
            cos, sin = embedding(like, index, **self._arguments)
        self._table, self._positions = (cos[0], sin[0]), positions

    @property
    def size_bytes(self) -> int:
        """Device memory of the table."""
        return 0 if self._table is None else sum(part.nbytes for part in self._table)

    def release(self) -> None:
        """Let go of the table; it is made anew, of as many positions, when it is needed."""
        self._table = None

    def whole(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of all positions that were reserved, ``[positions, W]`` each."""
        if self._table is None:
            self.reserve(self._positions, like)
        assert self._table is not None
        return self._table

    def at(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions."""
        if self._table is None:
            self.reserve(max(self._positions, int(positions.max()) + 1), like)
        assert self._table is not None
        index = positions.flatten()
        cos, sin = (table.index_select(0, index) for table in self._table)
        return cos.unflatten(0, positions.shape), sin.unflatten(0, positions.shape)


_tables: WeakKeyDictionary[nn.Module, dict[str, RotaryTable]] = WeakKeyDictionary()


def _table_of(embedding: nn.Module, arguments: dict[str, Any]) -> RotaryTable:
    """Return the one table of an embedding with these arguments."""
    tables = _tables.setdefault(embedding, {})
    return tables.setdefault(repr(arguments), RotaryTable(embedding, arguments))


class Rotary:
    """Rotates keys by their positions.

    Args:
        table: cosines and sines.
        apply: the model's ``apply_rotary_pos_emb(q, k, cos, sin)``.
        partial: rotate only the first part of each head, as wide as the table.
        of_halves: whether ``apply`` does what ``rotate_halves`` does.
    """

    def __init__(
        self,
        table: RotaryTable,
        apply: Callable[..., tuple[Tensor, Tensor]],
        partial: bool,
        of_halves: bool,
    ) -> None:
        self.table = table
        self.of_halves = of_halves
        self._apply = apply
        self._partial = partial

    def __call__(self, key_NHTD: Tensor, positions_NT: Tensor) -> Tensor:
        """Return the rotated keys."""
        cos, sin = self.table.at(positions_NT, key_NHTD)
        width = cos.shape[-1]
        if not self._partial:
            return self._apply(key_NHTD[:, :0], key_NHTD, cos, sin)[1]
        turned = self._apply(key_NHTD[:, :0, :, :width], key_NHTD[..., :width], cos, sin)[1]
        return torch.cat([turned, key_NHTD[..., width:]], dim=-1)


def rotate_halves(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of each head's numbers against the second, as Llama does.

    Args:
        key: ``[..., T, W]``.
        cos: ``[..., T, W]``, of which the first half counts.
        sin: likewise.
    """
    first, second = key.chunk(2, dim=-1)
    half = first.shape[-1]
    cos, sin = cos[..., :half], sin[..., :half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _is_of_halves(
    apply: Callable[..., tuple[Tensor, Tensor]], rotation: tuple[Tensor, Tensor]
) -> bool:
    """Return whether a model's function does what ``rotate_halves`` does, by trying it."""
    cos, sin = rotation
    if cos.shape[-1] % 2:
        return False
    key = torch.arange(1.0, cos.numel() + 1, device=cos.device).sin().view(cos.shape)
    key = key.to(cos.dtype)[:, None]
    ours = rotate_halves(key, cos[:, None], sin[:, None])
    error = (apply(key[:, :0], key, cos, sin)[1] - ours).abs().amax()
    return bool(error <= _ROUNDINGS * torch.finfo(cos.dtype).eps)


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
        of_halves = _is_of_halves(apply, rotation)
        for module in modules:
            for arguments in _arguments(module):
                if _makes(module, arguments, rotation, positions):
                    table = _table_of(module, arguments)
                    yield Rotary(table, apply, partial=False, of_halves=of_halves)
                    yield Rotary(table, apply, partial=True, of_halves=of_halves)
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
