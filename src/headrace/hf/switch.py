"""Switches a model to our attention function for the length of a forward, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from headrace.hf.attention import NAME, register


class AttentionSwitch:
    """The attention implementation that a model's configurations name.

    Args:
        model: whose configurations, those of its parts included.
    """

    def __init__(self, model: nn.Module) -> None:
        register()
        found = {
            id(config): config
            for module in model.modules()
            if (config := getattr(module, "config", None)) is not None
            and hasattr(config, "_attn_implementation")
        }
        self._configs: list[Any] = list(found.values())
        self._own: list[Any] | None = None

    def on(self) -> None:
        """Name ours."""
        if self._own is None:
            self._own = [config._attn_implementation for config in self._configs]
            for config in self._configs:
                config._attn_implementation_internal = NAME

    def off(self) -> None:
        """Name the model's own again."""
        if self._own is not None:
            for config, name in zip(self._configs, self._own, strict=True):
                config._attn_implementation_internal = name
            self._own = None


@contextmanager
def switched_attention(model: nn.Module) -> Iterator[None]:
    """Let a model use our attention function for a while."""
    switch = AttentionSwitch(model)
    switch.on()
    try:
        yield
    finally:
        switch.off()
