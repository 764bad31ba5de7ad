"""Watches a model's forward on a few tokens: which modules attend, how, and to what.

Nothing is taken from an architecture's name. One forward runs the model as it is, a second one runs
it through our attention function and notes each attention module's input, keys and values. Where
the two disagree, the model does something with attention that we do not know, and is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headrace.errors import UnsupportedModelError
from headrace.hf.attention import set_target
from headrace.hf.switch import switched_attention
from headrace.model.projection import Observation
from headrace.runtime.attention import (
    Accumulator,
    Scoring,
    attend_causal,
    group_queries,
    ungroup_output,
)

_TOKENS = 11
_SECOND_ROW_STARTS_AT = 5
_WORKSPACE_BYTES = 1 << 26
_AGREEMENT = {torch.float32: 1e-4}
_AGREEMENT_HALF = 5e-2


@dataclass(frozen=True)
class ObservedLayer:
    """One layer's attention.

    Attributes:
        module: the attention module.
        observation: its input, keys and values on a few tokens.
        scoring: its scale, soft cap and window.
    """

    module: nn.Module
    observation: Observation
    scoring: Scoring


def text_config(model: nn.Module) -> Any:
    """Return the configuration of a model's decoder."""
    config = model.config
    getter = getattr(config, "get_text_config", None)
    return config if getter is None else getter(decoder=True)


def observe(model: nn.Module) -> list[ObservedLayer]:
    """Return a model's attention layers, in order.

    Raises:
        UnsupportedModelError: some layer has no K/V cache, or attends in a way we do not reproduce.
    """
    config = text_config(model)
    _check_configuration(model, config)
    inputs, positions = _inputs(model, config.vocab_size)
    watcher = _Watcher(model, positions)
    with torch.no_grad():
        expected = model(**inputs, past_key_values=DynamicCache(config=config))[0]
        with watcher.watching():
            cache = _NotingCache(config=config)
            made = _forward(model, {**inputs, "past_key_values": cache})
    layers = watcher.layers(model, config.num_hidden_layers, cache.updated)
    _check_agreement(model, expected, made)
    return layers


def _forward(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return a model's output with our attention; what it cannot bear makes it unsupported."""
    try:
        return model(**inputs)[0]
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run with headrace's attention "
            f"({type(error).__name__}: {reason}); models with position biases or masks of their "
            "own are not served"
        ) from error


def _check_configuration(model: nn.Module, config: Any) -> None:
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model; headrace serves decoder-only models"
        )
    strange = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if strange:
        raise UnsupportedModelError(
            f"{name} has layers of type {', '.join(sorted(strange))}, which keep no plain K/V "
            "cache; headrace serves models whose layers all attend to keys and values, in full or "
            "in a sliding window"
        )


def _inputs(model: nn.Module, vocab_size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return a forward's arguments for two rows of tokens, and the positions of these."""
    device = next(model.parameters()).device
    tokens = torch.arange(2 * _TOKENS, device=device).view(2, -1) * 7 % (vocab_size - 3) + 3
    positions = torch.arange(_TOKENS, device=device).repeat(2, 1)
    inputs = {"input_ids": tokens}
    if "position_ids" in inspect.signature(model.forward).parameters:
        positions[1] += _SECOND_ROW_STARTS_AT
        inputs["position_ids"] = positions
    return inputs, positions


class _NotingCache(DynamicCache):
    """A plain cache that notes which layers use it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.updated: set[int] = set()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Note the layer."""
        self.updated.add(layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class _Watcher:
    """Takes part in every attention of one forward without anything cached, and takes notes."""

    def __init__(self, model: nn.Module, positions: Tensor) -> None:
        self._model = model
        self._positions = positions
        self._given: dict[nn.Module, tuple[Tensor, tuple[Tensor, Tensor] | None]] = {}
        self._seen: dict[int, ObservedLayer] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every module that says which layer it is of."""
        modules = [
            module
            for module in self._model.modules()
            if isinstance(getattr(module, "layer_idx", None), int)
        ]
        hooks = [
            module.register_forward_pre_hook(self._note_input, with_kwargs=True)
            for module in modules
        ]
        for module in modules:
            set_target(module, self)
        try:
            with switched_attention(self._model):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in modules:
                set_target(module, None)

    def _note_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(given, Tensor):
            self._given[module] = given, kwargs.get("position_embeddings")

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Note a module's tensors, and attend its tokens causally to themselves."""
        if module not in self._given:
            raise UnsupportedModelError(
                f"{type(module).__name__} does not take its input as hidden_states; headrace "
                "cannot see what its keys and values are made from"
            )
        if key.shape != value.shape:
            raise UnsupportedModelError(
                f"{type(module).__name__} has keys of width {key.shape[-1]} and values of width "
                f"{value.shape[-1]}; headrace serves models whose keys and values are alike"
            )
        activations, rotation = self._given[module]
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        observation = Observation(layer, module, activations, key, value, self._positions, rotation)
        self._seen[layer] = ObservedLayer(module, observation, scoring)
        token = torch.arange(query.shape[2], device=query.device).expand(query.shape[0], -1)
        grouped = group_queries(query, key.shape[1])
        accumulator = Accumulator(grouped)
        accumulator.add(attend_causal(grouped, key, value, scoring, token, token, _WORKSPACE_BYTES))
        return ungroup_output(accumulator.output(query.dtype), query.shape[2])

    def layers(self, model: nn.Module, count: int, updated: set[int]) -> list[ObservedLayer]:
        """Return what was seen, if it is every layer of the model."""
        lacking = sorted(set(range(count)) - set(self._seen)) or sorted(set(range(count)) - updated)
        if lacking:
            raise UnsupportedModelError(
                f"{type(model).__name__} has {len(lacking)} of {count} layers without a K/V cache "
                f"of their own (layer {lacking[0]} first); headrace serves models whose layers all "
                "attend to keys and values of their own"
            )
        return [self._seen[layer] for layer in range(count)]


def _check_agreement(model: nn.Module, expected: Tensor, made: Tensor) -> None:
    """Raise if our attention does not reproduce the model's own output."""
    spread = (expected.amax() - expected.amin()).clamp_min(1e-20)
    error = ((made - expected).abs().amax() / spread).item()
    if not error <= _AGREEMENT.get(expected.dtype, _AGREEMENT_HALF):
        raise UnsupportedModelError(
            f"{type(model).__name__} attends in a way that headrace does not reproduce (outputs "
            f"differ by {error:.2g} of their range); models with attention sinks, position biases "
            "or masks of their own are not served"
        )
