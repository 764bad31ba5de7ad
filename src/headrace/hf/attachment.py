"""What a model is given so that caches of ours work with it, and what is taken away at the end.

All caches of a model share one attachment. It holds what was found out about the model, and the
hooks that tell which cache a forward runs with and what each attention module's input is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headrace.hf.attention import set_target
from headrace.hf.embedding import host_embedding
from headrace.hf.observe import ObservedLayer, observe, text_config
from headrace.hf.switch import AttentionSwitch
from headrace.hf.weights import placed_weights
from headrace.model.projection import LayerProjection, find_projection
from headrace.model.rotary import RotaryTable, rotary_modules
from headrace.runtime.attention import Scoring

DecodeLayer = Callable[[int, Tensor, Tensor, Tensor, Scoring], Tensor]
"""(layer, query, key, value, scoring) to the attention output ``[B, 1, heads, D]``."""


class ForwardCache(Protocol):
    """A cache that a model's forward runs with."""

    @property
    def needs_activations(self) -> bool:
        """Whether ``attend_layer`` needs X."""

    @property
    def decode(self) -> DecodeLayer | None:
        """What attends instead of ``attend_layer`` in the forward that has begun, if it may."""

    def begin_forward(self, attachment: Attachment, inputs: dict[str, Any]) -> None:
        """Prepare for a forward with these arguments of the model that is attached so."""

    def attend_layer(
        self,
        layer: int,
        activations: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """Return a layer's attention output ``[B, q, heads, D]``."""

    def end_forward(self, failed: bool) -> None:
        """Finish the forward, which may have failed before it had begun."""


class Attachment:
    """A model's hooks, and what is known of its layers.

    Attributes:
        layers: what was observed of each attention layer.
        projections: for each layer how to rebuild its keys and values, or why that is not possible.
        placed: where the model's weights are, if some of them are streamed.
        embedding: the model's input embedding, if it is on the host.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[ObservedLayer] = observe(model)
        self.placed = placed_weights(model)
        self.embedding = host_embedding(model)
        embeddings = rotary_modules(model)
        self.projections: list[LayerProjection | str] = []
        for number, layer in enumerate(self.layers):
            with self._holding(number):
                self.projections.append(
                    find_projection(layer.observation, embeddings)
                    if layer.scoring.window is None
                    else "it attends to a sliding window, which stays on the device"
                )
        # What was seen has been of use, and so have tables; shapes still are.
        for table in self.rotary_tables:
            table.release()
        self.layers = [
            replace(layer, observation=layer.observation.without_contents())
            for layer in self.layers
        ]
        self.users = 0
        self._model = model
        self._switch = AttentionSwitch(model)
        self._layer_of = {layer.module: index for index, layer in enumerate(self.layers)}
        self._cache: ForwardCache | None = None
        self._decode: DecodeLayer | None = None
        self._inputs: dict[nn.Module, Tensor] = {}
        self._hooks: list[Any] = []
        self._input_hooks: list[Any] = []

    def open(self) -> None:
        """Put the hooks in place, and the weights of keys and values side by side."""
        model = self._model
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]
        for module in self._layer_of:
            set_target(module, self)
        for number, projection in enumerate(self.projections):
            if isinstance(projection, LayerProjection):
                with self._holding(number):
                    projection.source.merge()

    @property
    def rotary_tables(self) -> set[RotaryTable]:
        """What rebuilt keys are rotated with."""
        return {
            projection.rotary.table
            for projection in self.projections
            if isinstance(projection, LayerProjection) and projection.rotary is not None
        }

    @property
    def why_not_rebuilt(self) -> str | None:
        """Why the model's keys and values cannot be rebuilt from X; None if they can."""
        for number, projection in enumerate(self.projections):
            windowed = self.layers[number].scoring.window is not None
            if not windowed and not isinstance(projection, LayerProjection):
                return f"layer {number} cannot be rebuilt: {projection}"
        return None

    def _holding(self, layer: int) -> AbstractContextManager[None]:
        """Have a layer's weights on the device for a while."""
        return nullcontext() if self.placed is None else self.placed.holding(layer)

    def close(self) -> None:
        """Leave the model as it was."""
        self._switch.off()
        self._note_inputs(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for module in self._layer_of:
            set_target(module, None)
        self._cache = None
        self._inputs.clear()
        for projection in self.projections:
            if isinstance(projection, LayerProjection):
                projection.source.restore()
        for table in self.rotary_tables:
            table.release()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A forward that was interrupted (by a signal, say) has ended without a call of its hook.
        self._finish(failed=True)
        if _attachments.get(self._model) is not self:
            return
        cache = kwargs.get("past_key_values")
        if cache is None or not hasattr(cache, "begin_forward"):
            self._note_inputs(False)
            return
        inputs = dict(kwargs)
        if args:
            inputs.setdefault("input_ids", args[0])
        try:
            cache.begin_forward(self, inputs)
        except BaseException:
            cache.end_forward(failed=True)
            raise
        self._cache = cache
        # Ours are no part of a graph; who runs the model with one goes the longer way.
        self._decode = None if torch.is_grad_enabled() else cache.decode
        self._note_inputs(cache.needs_activations)
        self._switch.on()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._finish(failed=output is None)

    def _finish(self, failed: bool) -> None:
        """End the forward that is under way, if one is."""
        if self._cache is not None:
            cache, self._cache, self._decode = self._cache, None, None
            self._inputs.clear()
            self._switch.off()
            cache.end_forward(failed)

    def _note_inputs(self, wanted: bool) -> None:
        """Have the attention modules' inputs noted, or no longer: hooks slow every call down."""
        if wanted and not self._input_hooks:
            self._input_hooks = [
                module.register_forward_pre_hook(self._note_input, with_kwargs=True)
                for module in self._layer_of
            ]
        elif not wanted and self._input_hooks:
            for hook in self._input_hooks:
                hook.remove()
            self._input_hooks = []

    def _note_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._cache is not None:
            self._inputs[module] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Hand a module's attention to the cache that the forward runs with."""
        layer = self._layer_of[module]
        if self._decode is not None:
            return self._decode(layer, query, key, value, scoring)
        assert self._cache is not None
        activations = self._inputs.pop(module, None)
        return self._cache.attend_layer(layer, activations, query, key, value, scoring)


_attachments: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


def attach(model: nn.Module) -> Attachment:
    """Return the model's attachment, made if there is none; ``detach`` it when done.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    attachment = _attachments.get(model)
    if attachment is None:
        attachment = Attachment(model)
        try:
            attachment.open()
        except BaseException:
            attachment.close()
            raise
        _attachments[model] = attachment
    attachment.users += 1
    return attachment


def detach(model: nn.Module) -> None:
    """Give an attachment back; the last one leaves the model as it was."""
    attachment = _attachments[model]
    attachment.users -= 1
    if attachment.users == 0:
        # First, so that what is interrupted before its end is done with all the same.
        del _attachments[model]
        attachment.close()


@contextmanager
def attached(model: nn.Module) -> Iterator[Attachment]:
    """Hold a model's attachment for a while.

    Who attaches meanwhile, again and again, gets the same one; by itself each would run the model.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    attachment = attach(model)
    try:
        yield attachment
    finally:
        detach(model)


__all__ = ["Attachment", "ForwardCache", "attach", "attached", "detach", "text_config"]
