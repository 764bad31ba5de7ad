"""Places a model's weights: on the device, or on the host, from where they come layer by layer.

Works for any decoder whose layers are the modules of one list. What is in no layer (the last norm,
the head, and, unless it stays on the host, the embedding) is always on the device, and so is what
several layers share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import ConfigurationError, UnsupportedModelError
from headrace.hf.embedding import host_embedding
from headrace.hf.observe import text_config
from headrace.model.config import from_config
from headrace.model.kv_weights import side_by_side
from headrace.plan.weights import weight_slots
from headrace.runtime.lanes import Backend
from headrace.runtime.weights import StreamedWeights, Unit

_USUAL_SLOTS = 2
_ATTRIBUTE = "_headrace_placed_weights"


class PlacedWeights:
    """A model some of whose weights are streamed, and the hooks that bring them.

    Args:
        model: on any device.
        backend: where its weights go, and the link. The model's caches use it too.
        share: share of the layers' weights that is streamed, 0 to 1; what is streamed is a little
            more, for a parameter is streamed whole or not at all.
        poison: overwrite slots once they have been read (tests).

    Raises:
        ConfigurationError: the share is not allowed, or the model's weights are placed already.
        UnsupportedModelError: the model's layers were not found.
    """

    def __init__(
        self, model: nn.Module, backend: Backend, share: float, poison: bool = False
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"share is {share}; allowed are fractions from 0 to 1")
        if placed_weights(model) is not None:
            raise ConfigurationError("the model's weights are placed already; release them first")
        layers = decoder_layers(model)
        units = _units_by_layer(layers)
        chosen = choose_units(units, share)
        self.backend = backend
        _move_others(model, chosen, backend)
        self.streamed = StreamedWeights(backend, chosen, _slots(model), poison)
        self.share = _size_bytes(chosen) / _size_bytes(units)
        """Share of the layers' weights that is streamed."""
        self._model = model
        self._hooks = [
            hook for number in range(len(layers)) for hook in self._watch(layers, number)
        ]
        # On the model itself, so that the two of them end together.
        object.__setattr__(model, _ATTRIBUTE, self)

    def _watch(self, layers: nn.ModuleList, number: int) -> Iterator[Any]:
        """Bring a layer's weights when it is called, and let their slot go when it has ended."""

        def begin(module: nn.Module, args: Any) -> None:
            self.streamed.use(number)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self.streamed.done(number)

        yield layers[number].register_forward_pre_hook(begin)
        yield layers[number].register_forward_hook(end, always_call=True)

    @contextmanager
    def holding(self, layer: int) -> Iterator[None]:
        """Have a layer's weights on the device for a while, outside of any forward."""
        self.streamed.use(layer)
        try:
            yield
        finally:
            self.streamed.done(layer)

    def release(self) -> None:
        """Take the hooks away and bring all weights to the device; may be called again."""
        if placed_weights(self._model) is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.streamed.release()
        object.__delattr__(self._model, _ATTRIBUTE)


def placed_weights(model: nn.Module) -> PlacedWeights | None:
    """Return how a model's weights were placed, or None if they are all on its device."""
    placed = getattr(model, _ATTRIBUTE, None)
    assert placed is None or isinstance(placed, PlacedWeights)
    return placed


def device_bytes(model: nn.Module, device: torch.device) -> int:
    """Return the bytes of a model's parameters and buffers on a device, slots included.

    Those that share memory are counted once, and an embedding that is on the host not at all.
    """
    embedding = host_embedding(model)
    elsewhere = None if embedding is None else embedding.address
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.device == device and tensor.data_ptr() != elsewhere
    }
    return sum(storages.values())


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return a model's decoder layers: the list of as many modules as it has layers.

    Raises:
        UnsupportedModelError: there is no such list, or several.
    """
    count = text_config(model).num_hidden_layers
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # A list within a layer may be as long by chance: the outermost one comes first.
    inner = {id(part) for one in lists for layer in one for part in layer.modules()}
    found = [one for one in lists if id(one) not in inner]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(found)} lists of {count} layers, so headrace does "
            "not know whose weights to stream; it must fit the device as a whole"
        )
    return found[0]


def choose_units(layers: Sequence[Sequence[Unit]], share: float) -> list[list[Unit]]:
    """Return what is streamed of each layer.

    All layers together, and the first ones together up to any, come to the share or a little more:
    what one layer has too much, the next one has less.

    Args:
        layers: each layer's units.
        share: share of their bytes, 0 to 1.
    """
    chosen, wanted, brought = [], 0.0, 0
    for units in layers:
        wanted += share * sum(unit.size_bytes for unit in units)
        some = _covering(units, wanted - brought)
        brought += sum(unit.size_bytes for unit in some)
        chosen.append(some)
    return chosen


def _covering(units: Sequence[Unit], size_bytes: float) -> list[Unit]:
    """Return few units that together have at least so many bytes, and hardly more."""
    left, taken, others = size_bytes, [], []
    for unit in sorted(units, key=lambda unit: unit.size_bytes, reverse=True):
        if unit.size_bytes <= left:
            taken.append(unit)
            left -= unit.size_bytes
        else:
            others.append(unit)
    if left > 0.5:
        taken.append(others[-1])
    numbers = {id(unit): number for number, unit in enumerate(units)}
    return sorted(taken, key=lambda unit: numbers[id(unit)])


def _size_bytes(layers: Sequence[Sequence[Unit]]) -> int:
    return sum(unit.size_bytes for unit in chain.from_iterable(layers))


def _units_by_layer(layers: nn.ModuleList) -> list[list[Unit]]:
    """Return each layer's parameters: keys' and values' side by side, others by themselves."""
    users = Counter(id(tensor) for layer in layers for tensor in _tensors(layer))
    return [
        _units([tensor for tensor in _tensors(layer) if users[id(tensor)] == 1], layer)
        for layer in layers
    ]


def _tensors(layer: nn.Module) -> list[Tensor]:
    return [parameter for parameter in layer.parameters() if parameter.numel()]


def _units(tensors: Sequence[Tensor], layer: nn.Module) -> list[Unit]:
    own = {id(tensor) for tensor in tensors}
    pairs = [
        pair
        for module in layer.modules()
        for pair in side_by_side(module)
        if {id(tensor) for tensor in pair} <= own
    ]
    paired = {id(tensor) for pair in pairs for tensor in pair}
    singles = [(tensor,) for tensor in tensors if id(tensor) not in paired]
    return [Unit(tuple(unit)) for unit in (*pairs, *singles)]


def _move_others(model: nn.Module, chosen: Sequence[Sequence[Unit]], backend: Backend) -> None:
    """Bring everything that is not streamed to the device."""
    streamed = {id(tensor) for units in chosen for unit in units for tensor in unit.tensors}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in streamed and tensor.device != backend.device:
            tensor.data = tensor.data.to(backend.device)


def _slots(model: nn.Module) -> int:
    """Return the slots that the planner counts with."""
    try:
        shape = from_config(text_config(model).to_dict(), name=type(model).__name__)
    except UnsupportedModelError:
        return _USUAL_SLOTS
    return weight_slots(shape)
