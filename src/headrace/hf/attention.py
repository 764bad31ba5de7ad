"""The attention function that `transformers` calls, and the mask function beside it.

Both are registered once under the name ``headrace``. A model is switched to them only while its
forward runs with a cache of ours; see ``headrace.hf.attachment``.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from headrace.errors import UnsupportedModelError
from headrace.runtime.attention import Scoring

NAME = "headrace"
"""Name of the attention implementation."""


class AttentionTarget(Protocol):
    """What takes part in a model's attention while its forward runs."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return the attention output ``[B, q, heads, D]`` of a module's new tokens."""


_targets: WeakKeyDictionary[nn.Module, AttentionTarget] = WeakKeyDictionary()


def set_target(module: nn.Module, target: AttentionTarget | None) -> None:
    """Say who takes part in an attention module's attention from now on."""
    if target is None:
        _targets.pop(module, None)
    else:
        _targets[module] = target


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend through the cache that the model's forward runs with.

    Args:
        module: the attention module.
        query: ``[B, heads, q, D]``.
        key: new keys ``[B, H, q, D]``; the past is in the cache.
        value: new values ``[B, H, q, D]``.
        attention_mask: not used; padding is known from the forward's own arguments.
        dropout: must be 0.
        scaling: factor on the products; by default one over the root of D.
        sliding_window: tokens that a query sees, itself included, or None.
        softcap: soft limit of the scores, or None.
        kwargs: what else the model passes on.
    """
    del attention_mask, kwargs
    target = _targets.get(module)
    if target is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} uses headrace's attention without a HostCache; "
            "pass past_key_values=HostCache(model)"
        )
    if dropout:
        raise UnsupportedModelError(
            f"attention dropout is {dropout}; headrace is for inference: call model.eval()"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return target.attend(module, query, key, value, _scoring(scale, softcap, sliding_window)), None


_scoring = cache(Scoring)


def attention_mask(*args: Any, **kwargs: Any) -> None:
    """Return no mask: causality and padding are the cache's business."""
    del args, kwargs


def register() -> None:
    """Make both functions known to `transformers`; may be called again."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
