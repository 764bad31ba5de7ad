"""The newest tokens of each row, on the device.

Shape suffixes: B rows, H key/value heads, T places of the tail, D head width, q new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend
from headrace.runtime.moves import StepIndex, TailUpdate
from headrace.runtime.store import LayerWidths


class Tail:
    """Keys and values of up to ``block_tokens`` newest tokens a row, for every paged layer.

    Args:
        backend: whose memory.
        widths: by layer.
        rows: sequences.
        block_tokens: places a row.
        dtype: the cache's dtype.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, LayerWidths],
        rows: int,
        block_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        def buffer(width: LayerWidths) -> Tensor:
            shape = (rows, width.num_kv_heads, block_tokens, width.head_dim)
            return backend.device_buffer(shape, dtype)

        self.rows = rows
        self._keys = {layer: buffer(width) for layer, width in widths.items()}
        self._values = {layer: buffer(width) for layer, width in widths.items()}

    @property
    def size_bytes(self) -> int:
        """Device memory of all layers' tails."""
        tensors = [*self._keys.values(), *self._values.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, ``[B, H, T, D]``."""
        return self._keys[layer], self._values[layer]

    def write(self, layer: int, key: Tensor, value: Tensor, index: StepIndex) -> None:
        """Write each row's one new token, ``[B, H, 1, D]``, to its place."""
        assert index.written_slots is not None
        place = index.written_slots.expand(-1, key.shape[1], -1, key.shape[3])
        self._keys[layer].scatter_(2, place, key)
        self._values[layer].scatter_(2, place, value)

    def update(
        self, layer: int, key_sources: Tensor, value_sources: Tensor, update: TailUpdate
    ) -> None:
        """Give rows new contents, taken from their sources ``[B, H, T + q, D]``."""
        for tail, sources in (
            (self._keys[layer], key_sources),
            (self._values[layer], value_sources),
        ):
            gathered = sources[update.rows_RT, :, update.sources_RT]
            tail[update.rows_R] = gathered.transpose(1, 2)

    def select(self, sources: Tensor) -> None:
        """Let row i become what row ``sources[i]`` was (int64, on the device)."""
        self.rows = sources.numel()
        for tensors in (self._keys, self._values):
            for layer, tensor in tensors.items():
                chosen = tensor.index_select(0, sources)
                if chosen.shape == tensor.shape:
                    tensor.copy_(chosen)
                else:
                    tensors[layer] = chosen


def tail_visible(
    lengths: list[int], hidden: list[set[int]], block_tokens: int, device: torch.device
) -> Tensor:
    """Return which places of each row's tail are seen: bool ``[B, 1, 1, T]``.

    Args:
        lengths: tokens in each row's tail.
        hidden: places of each row's tail that the attention mask hides.
        block_tokens: places of the tail.
        device: where the result goes.
    """
    count = torch.tensor(lengths, dtype=torch.int64)
    visible = torch.arange(block_tokens) < count[:, None]
    for row, places in enumerate(hidden):
        if places:
            visible[row, list(places)] = False
    return visible.to(device, non_blocking=True)[:, None, None]
