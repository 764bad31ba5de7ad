"""Makes the program of a step from the pages that there really are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.operations import Kind
from headrace.plan.schedule import GranuleSpec, build_program, order_granules
from headrace.runtime.attention import EntryTable
from headrace.runtime.conveyor import StepProgram
from headrace.runtime.granules import Granule, cut_granules, layer_table
from headrace.runtime.layout import Layout
from headrace.runtime.pages import PageKind, StepMoves
from headrace.runtime.settings import CacheSettings

_STORES = {
    PageKind.ACTIVATIONS: Kind.STORE_ACTIVATIONS,
    PageKind.KV: Kind.STORE_KV,
}


class ProgramMaker:
    """Makes programs; granules are cut anew only when the layout's pages have changed.

    Args:
        settings: how the cache is laid out.
        layout: where its tokens are.
        device: where the granules' index tensors go.
    """

    def __init__(self, settings: CacheSettings, layout: Layout, device: torch.device) -> None:
        self._settings = settings
        self._layout = layout
        self._device = device
        self._version = -1
        self._granules: list[Granule] = []
        self._table = EntryTable.of([], device)
        self._made: dict[tuple[int, int, int], StepProgram] = {}

    def granules(self) -> list[Granule]:
        """Return the granules of the layout as it is, in the order in which they are loaded."""
        if self._version != self._layout.version:
            self._granules = self._cut()
            self._table = layer_table(self._granules, len(self._layout.rows), self._device)
            self._version = self._layout.version
            self._made = {}
        return self._granules

    def _cut(self) -> list[Granule]:
        by_kind = {
            kind: deque(
                cut_granules(self._layout, kind, self._settings.pages_at_once(kind), self._device)
            )
            for kind in PageKind
        }
        specs = [self._spec(granule) for granules in by_kind.values() for granule in granules]
        ordered = order_granules(specs, self._settings.policy)
        return [by_kind[PageKind(spec.kind)].popleft() for spec in ordered]

    def _spec(self, granule: Granule) -> GranuleSpec:
        shape, block = self._settings.shape, self._settings.geometry.block_tokens
        of_token = {
            PageKind.ACTIVATIONS: activation_bytes_per_token(shape),
            PageKind.KV: kv_bytes_per_token(shape),
            PageKind.RESIDENT: 0,
        }[granule.kind]
        pages = len(granule.pages)
        return GranuleSpec(granule.kind.value, pages, pages * block, pages * block * of_token)

    def program(self, rows: int, q_len: int, device_tokens: int = 0) -> StepProgram:
        """Return the program of a step over the layout's pages, without stores.

        Args:
            rows: sequences.
            q_len: inputs of the step.
            device_tokens: tokens that are on the device anyway, summed over rows.
        """
        granules = self.granules()
        key = (rows, q_len, device_tokens)
        if key not in self._made:
            self._made[key] = self._build(granules, rows, q_len, device_tokens, ())
        return self._made[key]

    def program_with_stores(
        self, rows: int, q_len: int, device_tokens: int, moves: StepMoves, granules: list[Granule]
    ) -> StepProgram:
        """Return the program of a step that also fills pages; ``granules`` are from before it."""
        return self._build(granules, rows, q_len, device_tokens, tuple(self._stores(moves)))

    def _stores(self, moves: StepMoves) -> Iterator[tuple[Kind, int]]:
        shape = self._settings.shape
        for kind, operation in _STORES.items():
            tokens = sum(fill.count for fill in moves.fills if fill.page.kind is kind)
            of_token = (
                activation_bytes_per_token(shape)
                if kind is PageKind.ACTIVATIONS
                else kv_bytes_per_token(shape)
            )
            if tokens:
                yield operation, tokens * of_token

    def _build(
        self,
        granules: Sequence[Granule],
        rows: int,
        q_len: int,
        device_tokens: int,
        stores: Sequence[tuple[Kind, int]],
    ) -> StepProgram:
        settings = self._settings
        specs = [self._spec(granule) for granule in granules]
        paged = [layer in settings.widths for layer in range(settings.shape.num_layers)]
        program = build_program(
            settings.shape,
            [specs if is_paged else [] for is_paged in paged],
            rows,
            q_len,
            settings.geometry.ring_slots,
            settings.policy,
            [stores if is_paged else () for is_paged in paged],
            device_tokens=[device_tokens + rows * q_len] * len(paged),
        )
        return StepProgram(program, granules, self._table, self._version)
