"""How a cache is laid out and run: the plan, in the runtime's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headrace.model.shape import ModelShape
from headrace.plan.geometry import Geometry
from headrace.plan.memory import max_head_dim
from headrace.plan.policies import Policy, Split
from headrace.runtime.pages import PageKind
from headrace.runtime.store import LayerWidths


@dataclass(frozen=True)
class CacheSettings:
    """How a cache is laid out and run.

    Attributes:
        shape: the model, for the costs in the program.
        dtype: of cache and activations.
        policy: decides the order of operations.
        split: shares of the prompt on each path.
        resident_pages: most pages of keys and values on the device, over all rows; None: see
            ``Layout``.
        host_share: share of the keys and values on the host to which the host's cores attend in a
            decode step, 0 to 1; the others are streamed.
        geometry: tokens of a page, size and number of staging slots.
        widths: of each layer that attends to the whole context.
        windows: of each layer that attends to a window: its widths and the window in tokens.
        workspace_bytes: bound on the attention scores that exist at once.
        results_bytes: bound on the partial results of a layer's attention that exist at once, from
            which on they are merged granule by granule.
        host_memory_bytes: bound on the pools in host memory, or None.
        poison: overwrite staging slots once they have been read (tests).
    """

    shape: ModelShape
    dtype: torch.dtype
    policy: Policy
    split: Split
    geometry: Geometry
    widths: Mapping[int, LayerWidths]
    windows: Mapping[int, tuple[LayerWidths, int]]
    resident_pages: int | None = None
    host_share: float = 0.0
    workspace_bytes: int = 1 << 28
    results_bytes: int = 1 << 28
    host_memory_bytes: int | None = None
    poison: bool = False

    @property
    def all_resident(self) -> bool:
        """Whether nothing is ever kept on the host."""
        return self.split.resident >= 1.0 - 1e-9 and self.resident_pages is None

    @property
    def paged_widths(self) -> Mapping[int, LayerWidths]:
        """Widths of each layer whose cache is paged: none, where nothing is ever on the host."""
        return {} if self.all_resident else self.widths

    def pages_at_once(self, kind: PageKind) -> int:
        """Return the most pages of a granule: what fits a staging slot, whichever the layer.

        Resident pages are not staged: as many as the workspace holds scores and results of, for
        one query token, make a granule.
        """
        if kind is PageKind.RESIDENT:
            numbers = self.geometry.block_tokens + 3 * max_head_dim(self.shape)
            return max(1, self.workspace_bytes // (self.shape.num_heads * numbers * 4))
        slot_bytes = self.geometry.granule_bytes
        if kind is PageKind.ACTIVATIONS and self.geometry.activation_bytes is not None:
            slot_bytes = min(slot_bytes, self.geometry.activation_bytes)
        slot = slot_bytes // self.dtype.itemsize
        page = self._largest_page(kind)
        return max(1, slot // page) if page else 1

    @property
    def slot_elements(self) -> int:
        """Elements of a staging slot: a granule, or one page where that is larger."""
        if self.all_resident:
            return 0
        slot = self.geometry.granule_bytes // self.dtype.itemsize
        return max(slot, *(self._largest_page(kind) for kind in PageKind))

    def _largest_page(self, kind: PageKind) -> int:
        tokens = self.geometry.block_tokens
        sizes = [width.page_elements(kind, tokens) for width in self.widths.values()]
        return max(sizes, default=0)
