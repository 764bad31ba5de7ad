"""A graph for the CPU: notes every operation, and does them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OpGraph(TorchDispatchMode):
    """Does what a CUDA graph does: what was recorded runs again, on the same memory.

    Operations also run while they are recorded, but what they then make is overwritten, so that
    nobody can rely on it, as with a CUDA graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def capture_begin(self) -> None:
        """Record from here on."""
        self.__enter__()

    def capture_end(self) -> None:
        """Record no longer."""
        self.__exit__(None, None, None)
        for _, _, _, made in self._operations:
            for tensor in made:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))

    def replay(self) -> None:
        """Do everything again."""
        for operation, args, kwargs, made in self._operations:
            again = [one for one in tree_leaves(operation(*args, **kwargs)) if _is_tensor(one)]
            for place, tensor in zip(made, again, strict=False):
                place.copy_(tensor)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do an operation, and note it."""
        if operation.overloadpacket in _WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        known = {
            one.untyped_storage().data_ptr()
            for one in tree_leaves((args, kwargs))
            if _is_tensor(one)
        }
        results = [one for one in tree_leaves(out) if _is_tensor(one)]
        # Views, and what is changed in place, need no copy: they are the same memory again.
        own = [one for one in results if one.untyped_storage().data_ptr() not in known]
        self._operations.append((operation, args, kwargs, own if len(own) == len(results) else []))
        return out


_WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.item)
"""Operations that bring a number to Python."""


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
