"""The memory behind the layout: pools of pages, for X and for keys and values.

Shape suffixes: P pages, H key/value heads, T tokens of a page, D head width, M model width.

Keys and values are kept apart and head by head, ``[P, H, T, D]``, so that a run of pages is one
contiguous copy and, once staged, one batch of matrix products. X is ``[P, T, M]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend
from headrace.runtime.pages import PageKind


@dataclass(frozen=True)
class LayerWidths:
    """Widths of one layer's cache.

    Attributes:
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        d_model: width of X.
    """

    num_kv_heads: int
    head_dim: int
    d_model: int

    def page_elements(self, kind: PageKind, block_tokens: int) -> int:
        """Return the elements of one page of this layer."""
        if kind is PageKind.ACTIVATIONS:
            return block_tokens * self.d_model
        return 2 * block_tokens * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Extent:
    """Pages ``first`` to ``first + count - 1`` of one kind, for every layer.

    Attributes:
        first: number of the first page.
        count: pages.
        tensors: by layer: (X,) or (keys, values), each with pages as its first dimension.
    """

    first: int
    count: int
    tensors: Mapping[int, tuple[Tensor, ...]]


class PageStore:
    """All pages of a cache.

    A pool is made of extents, so that it can grow without being copied. Nothing is allocated during
    a step unless a pool is used up, which ``growths`` counts.

    Args:
        backend: where host and device buffers come from.
        widths: by layer index; only layers whose cache is paged.
        dtype: the cache's dtype.
        block_tokens: tokens of a page.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, LayerWidths],
        dtype: torch.dtype,
        block_tokens: int,
    ) -> None:
        self._backend = backend
        self._widths = dict(widths)
        self._dtype = dtype
        self.block_tokens = block_tokens
        self._extents: dict[PageKind, list[Extent]] = {kind: [] for kind in PageKind}
        self.positions = torch.zeros((0, block_tokens), dtype=torch.int64, device=backend.device)
        """Position of each token of each page of X, ``[P, T]``, on the device."""
        self.growths = 0

    def extents(self, kind: PageKind) -> Sequence[Extent]:
        """Return the extents of a pool, by page number."""
        return tuple(self._extents[kind])

    def capacity(self, kind: PageKind) -> int:
        """Return the pages of a pool."""
        return sum(extent.count for extent in self._extents[kind])

    def grow(self, kind: PageKind, pages: int) -> None:
        """Add that many pages to a pool."""
        if pages <= 0:
            return
        first = self.capacity(kind)
        tensors: dict[int, tuple[Tensor, ...]] = {}
        made: list[Tensor] = []
        try:
            for layer in self._widths:
                for shape in self._shapes(kind, layer):
                    made.append(self._buffer(kind, (pages, *shape)))
                tensors[layer] = tuple(made[-len(self._shapes(kind, layer)) :])
        except BaseException:
            self._free(kind, made)
            raise
        self._extents[kind].append(Extent(first, pages, tensors))
        self.growths += 1
        if kind is PageKind.ACTIVATIONS:
            added = torch.zeros(
                (pages, self.block_tokens), dtype=torch.int64, device=self._backend.device
            )
            self.positions = torch.cat([self.positions, added])

    def _free(self, kind: PageKind, buffers: Sequence[Tensor]) -> None:
        if kind is not PageKind.RESIDENT:
            for buffer in buffers:
                self._backend.free_host(buffer)

    def release(self) -> None:
        """Give back all host memory; nothing else may be called afterwards."""
        for kind, extents in self._extents.items():
            for extent in extents:
                for tensors in extent.tensors.values():
                    self._free(kind, tensors)
        self._extents.clear()

    def _shapes(self, kind: PageKind, layer: int) -> tuple[tuple[int, ...], ...]:
        widths = self._widths[layer]
        if kind is PageKind.ACTIVATIONS:
            return ((self.block_tokens, widths.d_model),)
        return ((widths.num_kv_heads, self.block_tokens, widths.head_dim),) * 2

    def _buffer(self, kind: PageKind, shape: Sequence[int]) -> Tensor:
        if kind is PageKind.RESIDENT:
            return self._backend.device_buffer(shape, self._dtype)
        return self._backend.host_buffer(shape, self._dtype)

    def bytes_of(self, kind: PageKind, pages: int = 1) -> int:
        """Return the bytes of pages of a kind over all layers."""
        elements = sum(
            widths.page_elements(kind, self.block_tokens) for widths in self._widths.values()
        )
        return pages * elements * self._dtype.itemsize

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that the pools take."""
        kinds = (PageKind.ACTIVATIONS, PageKind.KV)
        return sum(self.bytes_of(kind, self.capacity(kind)) for kind in kinds)

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that resident pages take, and the positions of pages of X."""
        pages = self.bytes_of(PageKind.RESIDENT, self.capacity(PageKind.RESIDENT))
        return pages + self.positions.nbytes

    def runs(self, kind: PageKind, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return ascending page numbers as runs (first, count) that are contiguous in memory."""
        bounds = {extent.first for extent in self._extents[kind]}
        runs: list[tuple[int, int]] = []
        for number in numbers:
            if runs and number == sum(runs[-1]) and number not in bounds:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((number, 1))
        return runs

    def pages(self, kind: PageKind, layer: int, first: int, count: int) -> tuple[Tensor, ...]:
        """Return views of a run of pages: (X,) ``[P, T, M]`` or (keys, values) ``[P, H, T, D]``."""
        for extent in self._extents[kind]:
            if extent.first <= first < extent.first + extent.count:
                start = first - extent.first
                return tuple(part[start : start + count] for part in extent.tensors[layer])
        raise IndexError(f"no page {first} of kind {kind.value}")

    def pool(self, kind: PageKind, layer: int) -> tuple[Tensor, ...] | None:
        """Return all pages of a pool, by their numbers, or None if they are not in one piece."""
        extents = self._extents[kind]
        return extents[0].tensors[layer] if len(extents) == 1 else None

    def gather(self, kind: PageKind, layer: int, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        """Return pages of a pool as one tensor each: a view if they are one run, else a copy."""
        runs = self.runs(kind, numbers)
        views = [self.pages(kind, layer, first, count) for first, count in runs]
        if len(views) == 1:
            return views[0]
        return tuple(torch.cat(parts) for parts in zip(*views, strict=True))
