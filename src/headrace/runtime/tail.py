"""The newest tokens of each row, on the device.

Shape suffixes: B rows, H key/value heads, T places of the tail, D head width, q new tokens, 1 one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend
from headrace.runtime.moves import TailUpdate
from headrace.runtime.store import LayerWidths


class Tail:
    """Keys and values of up to ``block_tokens`` newest tokens a row, for every paged layer.

    A step concerns rows that follow each other, and is given views of theirs alone.

    Args:
        backend: whose memory.
        widths: by layer.
        rows: sequences that there is room for; more are possible (``select``).
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

        self._rows = rows
        self._keys = {layer: buffer(width) for layer, width in widths.items()}
        self._values = {layer: buffer(width) for layer, width in widths.items()}

    @property
    def size_bytes(self) -> int:
        """Device memory of all layers' tails."""
        tensors = [*self._keys.values(), *self._values.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def layer(self, layer: int, rows: range) -> tuple[Tensor, Tensor]:
        """Return some rows' keys and values in a layer, ``[B, H, T, D]``."""
        some = slice(rows.start, rows.stop)
        return self._keys[layer][some], self._values[layer][some]

    def update(
        self,
        layer: int,
        key_sources: Tensor,
        value_sources: Tensor,
        update: TailUpdate,
        rows: range,
    ) -> None:
        """Give some rows new contents, taken from their sources ``[B, H, T + q, D]``."""
        sources = (key_sources, value_sources)
        for tail, source in zip(self.layer(layer, rows), sources, strict=True):
            gathered = source[update.rows_RT, :, update.sources_RT]
            tail[update.rows_R] = gathered.transpose(1, 2)

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for tensors in (self._keys, self._values):
            select_rows(tensors, sources)


def put_newest(tail: tuple[Tensor, Tensor], key: Tensor, value: Tensor, place_B111: Tensor) -> None:
    """Put rows' newest tokens ``[B, H, 1, D]`` into their tails ``[B, H, T, D]``.

    Args:
        tail: keys and values of the rows' tails.
        key: of the newest tokens.
        value: likewise.
        place_B111: int64; the place in its tail that a row's newest token gets.
    """
    place = place_B111.expand(-1, key.shape[1], -1, key.shape[3])
    for part, new in zip(tail, (key, value), strict=True):
        part.scatter_(2, place, new)


def select_rows(tensors: dict[int, Tensor], sources: Sequence[int]) -> None:
    """Let the first dimension's place i hold what place ``sources[i]`` held, in every tensor.

    Only what moves is copied. Where there are more sources than places, tensors are replaced.
    """
    moves = [(target, source) for target, source in enumerate(sources) if target != source]
    if not moves or not tensors:
        return
    some = next(iter(tensors.values()))
    if len(sources) > some.shape[0]:
        chosen = torch.tensor(list(sources)).to(some.device)
        tensors.update({layer: part.index_select(0, chosen) for layer, part in tensors.items()})
        return
    to, of = (torch.tensor(places).to(some.device) for places in zip(*moves, strict=True))
    for tensor in tensors.values():
        tensor[to] = tensor.index_select(0, of)


def tail_visible(
    lengths: list[int], hidden: list[set[int]], block_tokens: int, device: torch.device
) -> Tensor:
    """Return which places of each row's tail are seen: bool ``[B, T]``.

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
    return visible.to(device, non_blocking=True)
