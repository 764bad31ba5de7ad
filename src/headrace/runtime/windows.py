"""All layers that attend only to a window: one cache for each size of window.

Shape suffixes: B rows, q inputs of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headrace.runtime.lanes import Backend
from headrace.runtime.store import LayerWidths
from headrace.runtime.window import WindowCache


class Windows:
    """The window caches of a batch; layers with the same window share one.

    Args:
        backend: whose memory.
        layers: of each windowed layer, its widths and its window in tokens.
        rows: sequences that there is room for.
        dtype: the cache's dtype.
    """

    def __init__(
        self,
        backend: Backend,
        layers: Mapping[int, tuple[LayerWidths, int]],
        rows: int,
        dtype: torch.dtype,
    ) -> None:
        by_window: dict[int, dict[int, LayerWidths]] = {}
        for layer, (width, window) in layers.items():
            by_window.setdefault(window, {})[layer] = width
        caches = {
            window: WindowCache(backend, widths, window, rows, dtype)
            for window, widths in by_window.items()
        }
        self._caches = tuple(caches.values())
        self._of_layer = {layer: caches[window] for layer, (_, window) in layers.items()}

    def __bool__(self) -> bool:
        """Return whether any layer has a window."""
        return bool(self._caches)

    def of(self, layer: int) -> WindowCache | None:
        """Return a layer's cache, or None where it has no window."""
        return self._of_layer.get(layer)

    @property
    def size_bytes(self) -> int:
        """Device memory of all of them."""
        return sum(cache.size_bytes for cache in self._caches)

    def begin_step(
        self,
        column_Bq: Tensor,
        new: tuple[tuple[int, ...], ...],
        first_column: int | Sequence[int],
        rows: range,
    ) -> None:
        """Prepare the places of a step's new tokens; see ``WindowCache.begin_step``."""
        for cache in self._caches:
            cache.begin_step(column_Bq, new, first_column, rows)

    def hide(self, row: int, columns: set[int]) -> None:
        """Let the attention mask hide a row's tokens of these columns for good."""
        for cache in self._caches:
            cache.hide(row, columns)

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was."""
        for cache in self._caches:
            cache.select(sources)

    def clear(self, rows: range) -> None:
        """Let rows begin anew."""
        for cache in self._caches:
            cache.clear(rows)

    def crop(self, columns: int) -> None:
        """Forget every token from this column of the padded batch on.

        Raises:
            ConfigurationError: a window would lack tokens; none has changed.
        """
        for cache in self._caches:
            cache.check_crop(columns)
        for cache in self._caches:
            cache.crop(columns)
