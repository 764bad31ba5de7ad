"""Makes the program of a step from the pages that there really are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.operations import Kind
from headrace.plan.schedule import GranuleSpec, build_program, order_granules
from headrace.runtime.attention import EntryTable
from headrace.runtime.conveyor import StepProgram
from headrace.runtime.granules import Granule, cut_granules, layer_table
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.layout import Layout
from headrace.runtime.pages import Page, PageKind, Row, StepMoves
from headrace.runtime.settings import CacheSettings

PrepareEntries = Callable[[Sequence[tuple[Page, int]], Sequence[Row]], RowEntries]

_STORES = {
    PageKind.ACTIVATIONS: Kind.STORE_ACTIVATIONS,
    PageKind.KV: Kind.STORE_KV,
}


MOST_HOST_QUERIES = 16
"""Inputs of a step up to which the host attends: more are a prompt's, and all K/V travel for it."""


@dataclass(frozen=True)
class _Cut:
    """A layout's pages, divided over granules and the host.

    Attributes:
        granules: what the device attends to, in the order in which it is loaded.
        host: what the host attends to, or None.
        table: of all entries, see ``layer_table``.
    """

    granules: list[Granule]
    host: RowEntries | None
    table: EntryTable


class ProgramMaker:
    """Makes programs; pages are divided anew only when the layout's pages have changed.

    Args:
        settings: how the cache is laid out.
        layout: where its tokens are.
        device: where the granules' index tensors go.
        host_entries: prepares pages for the host's attention: (page, row) pairs of the pool of keys
            and values; None where the host does not attend.
    """

    def __init__(
        self,
        settings: CacheSettings,
        layout: Layout,
        device: torch.device,
        host_entries: PrepareEntries | None = None,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._device = device
        self._host_entries = host_entries
        self._version = -1
        self._cuts: dict[bool, _Cut] = {}
        self._made: dict[tuple[int, int, int], StepProgram] = {}

    def cut(self, q_len: int) -> _Cut:
        """Return how the layout's pages are divided in a step of so many inputs."""
        if self._version != self._layout.version:
            self._version = self._layout.version
            self._cuts, self._made = {}, {}
        hosted = self._hosted(q_len)
        if hosted not in self._cuts:
            self._cuts[hosted] = self._cut(hosted)
        return self._cuts[hosted]

    def _hosted(self, q_len: int) -> bool:
        wanted = self._host_entries is not None and self._settings.host_share > 0
        return wanted and q_len <= MOST_HOST_QUERIES

    def _cut(self, hosted: bool) -> _Cut:
        by_host: list[tuple[Page, int]] = []
        by_kind: dict[PageKind, deque[Granule]] = {}
        for kind in PageKind:
            uses = self._layout.pages(kind)
            if kind is PageKind.KV and hosted:
                uses, by_host = _divide(uses, self._settings.host_share)
            at_once = self._settings.pages_at_once(kind)
            by_kind[kind] = deque(cut_granules(self._layout, kind, at_once, self._device, uses))
        specs = [self._spec(granule) for granules in by_kind.values() for granule in granules]
        ordered = order_granules(specs, self._settings.policy)
        granules = [by_kind[PageKind(spec.kind)].popleft() for spec in ordered]
        host = None
        if by_host and self._host_entries is not None:
            host = self._host_entries(by_host, self._layout.rows)
        rows = len(self._layout.rows)
        table = layer_table(granules, rows, self._device, hosted=host is not None)
        return _Cut(granules, host, table)

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
        cut = self.cut(q_len)
        key = (rows, q_len, device_tokens)
        if key not in self._made:
            self._made[key] = self._build(cut, rows, q_len, device_tokens, ())
        return self._made[key]

    def program_with_stores(
        self, rows: int, q_len: int, device_tokens: int, moves: StepMoves, cut: _Cut
    ) -> StepProgram:
        """Return the program of a step that also fills pages; ``cut`` is from before it."""
        return self._build(cut, rows, q_len, device_tokens, tuple(self._stores(moves)))

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
        cut: _Cut,
        rows: int,
        q_len: int,
        device_tokens: int,
        stores: Sequence[tuple[Kind, int]],
    ) -> StepProgram:
        settings = self._settings
        specs = [self._spec(granule) for granule in cut.granules]
        paged = [layer in settings.widths for layer in range(settings.shape.num_layers)]
        hosted = 0 if cut.host is None else cut.host.tokens
        program = build_program(
            settings.shape,
            [specs if is_paged else [] for is_paged in paged],
            rows,
            q_len,
            settings.geometry.ring_slots,
            settings.policy,
            [stores if is_paged else () for is_paged in paged],
            device_tokens=[device_tokens + rows * q_len] * len(paged),
            host_tokens=[hosted if is_paged else 0 for is_paged in paged] if hosted else (),
        )
        return StepProgram(program, cut.granules, cut.table, self._version, cut.host)


def _divide(
    uses: Sequence[tuple[Page, int]], share: float
) -> tuple[list[tuple[Page, int]], list[tuple[Page, int]]]:
    """Divide pages between the link and the host: the first ones travel, in one long run."""
    numbers = sorted({page.number for page, _ in uses})
    travel = set(numbers[: len(numbers) - round(share * len(numbers))])
    linked = [use for use in uses if use[0].number in travel]
    return linked, [use for use in uses if use[0].number not in travel]
