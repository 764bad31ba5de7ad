"""Makes the program of a step from the pages that there really are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import NamedTuple

import torch

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.operations import Kind, Program
from headrace.plan.schedule import GranuleSpec, build_program, order_granules
from headrace.runtime.attention import EntryTable
from headrace.runtime.granules import Granule, cut_granules, layer_table
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.layout import Layout
from headrace.runtime.pages import Page, PageKind, Row, StepMoves, TokenNumbers
from headrace.runtime.settings import CacheSettings

PrepareEntries = Callable[[Sequence[tuple[Page, int]], Sequence[Row]], RowEntries]

_STORES = {
    PageKind.ACTIVATIONS: Kind.STORE_ACTIVATIONS,
    PageKind.KV: Kind.STORE_KV,
}


_CUTS_KEPT = 8
"""Of so many sets of rows: those that decode, and those whose prompts are under way."""

MOST_HOST_QUERIES = 16
"""Inputs of a step up to which the host attends: more are a prompt's, and all K/V travel for it."""


_STRUCTURES_KEPT = 64


class _Seen(NamedTuple):
    """Pages with the row that sees each, and what was in them.

    Attributes:
        uses: page, and row.
        tokens: of each page: arrays that are replaced, never changed.
    """

    uses: list[tuple[Page, int]]
    tokens: list[TokenNumbers]

    def are_those_of(self, other: _Seen) -> bool:
        """Return whether the same rows see the same tokens in the same pages."""
        return self.uses == other.uses and all(map(is_, self.tokens, other.tokens))


@dataclass(frozen=True)
class StepProgram:
    """A program with the granules that its operations speak of, the same for each paged layer."""

    program: Program
    granules: Sequence[Granule]
    table: EntryTable
    """Of all granules' entries, see ``layer_table``."""
    host: RowEntries | None = None
    """What the host attends to in each paged layer."""

    @cached_property
    def entries(self) -> int:
        """Entries of all granules."""
        return sum(granule.entries for granule in self.granules)


@dataclass(frozen=True)
class Cut:
    """The pages of some rows, divided over granules and the host.

    Attributes:
        state: of the rows in the layout when they were divided.
        granules: what the device attends to, in the order in which it is loaded.
        host: what the host attends to, or None.
        table: of all entries, see ``layer_table``.
        hides: whether a row does not see all of its tokens.
        by_kind: granules of each pool, with what they were made of.
        made: programs over them, by inputs of the step, tokens that are on the device anyway, and
            whether costs count.
    """

    state: tuple[int, ...]
    granules: list[Granule]
    host: RowEntries | None
    table: EntryTable
    hides: bool = False
    by_kind: dict[PageKind, tuple[_Seen, list[Granule]]] = field(default_factory=dict)
    made: dict[tuple[int, int, bool], StepProgram] = field(default_factory=dict)


class ProgramMaker:
    """Makes programs; rows' pages are divided anew only when they have changed.

    Where rows are of different lengths, one of them fills a page in nearly every step. So granules
    of pools that have not changed are kept, and programs that do the same in the same order are
    made once, unless what their operations cost counts.

    Args:
        settings: how the cache is laid out.
        layout: where its tokens are.
        device: where the granules' index tensors go.
        host_entries: prepares pages for the host's attention: (page, row) pairs of the pool of keys
            and values; None where the host does not attend.
        layer_weights: bytes of each layer's weights that are streamed; empty for none.
    """

    def __init__(
        self,
        settings: CacheSettings,
        layout: Layout,
        device: torch.device,
        host_entries: PrepareEntries | None = None,
        layer_weights: tuple[int, ...] = (),
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._device = device
        self._host_entries = host_entries
        self._layer_weights = layer_weights
        self._cuts: dict[tuple[range, bool], Cut] = {}
        self._structures: dict[tuple[object, ...], Program] = {}
        self._host_share = settings.host_share

    def cut(self, rows: range, q_len: int) -> Cut:
        """Return how the pages of some rows are divided in a step of so many inputs."""
        key, state = (rows, self._hosted(q_len)), self._layout.state(rows)
        known = self._cuts.pop(key, None)
        if known is None or known.state != state:
            known = self._cut(rows, state, key[1], known)
        # The newest ones come last.
        self._cuts[key] = known
        if len(self._cuts) > _CUTS_KEPT:
            del self._cuts[next(iter(self._cuts))]
        return known

    @property
    def host_share(self) -> float:
        """Share of the keys and values on the host to which the host attends."""
        return self._host_share

    @host_share.setter
    def host_share(self, share: float) -> None:
        self._host_share = share
        self._cuts = {}

    def _hosted(self, q_len: int) -> bool:
        wanted = self._host_entries is not None and self._host_share > 0
        return wanted and q_len <= MOST_HOST_QUERIES

    def _cut(self, rows: range, state: tuple[int, ...], hosted: bool, before: Cut | None) -> Cut:
        """Divide the pages of some rows; ``before`` is how they were divided last."""
        if not self._settings.paged_widths:
            return Cut(state, [], None, layer_table([], len(rows), self._device))
        by_host: list[tuple[Page, int]] = []
        by_kind: dict[PageKind, tuple[_Seen, list[Granule]]] = {}
        for kind in PageKind:
            uses = self._layout.pages(kind, rows)
            if kind is PageKind.KV and hosted:
                uses, by_host = _divide(uses, self._host_share)
            by_kind[kind] = self._granules(kind, rows, uses, before)
        specs = [self._spec(granule) for _, granules in by_kind.values() for granule in granules]
        ordered = order_granules(specs, self._settings.policy)
        left = {kind: deque(granules) for kind, (_, granules) in by_kind.items()}
        granules = [left[PageKind(spec.kind)].popleft() for spec in ordered]
        host = None
        if by_host and self._host_entries is not None:
            host = self._host_entries(by_host, self._layout.of(rows))
        if (
            before is not None
            and before.granules == granules
            and (before.host is None) is (host is None)
        ):
            table = before.table
        else:
            table = layer_table(granules, len(rows), self._device, hosted=host is not None)
        hides = any(row.hidden for row in self._layout.of(rows))
        return Cut(state, granules, host, table, hides, by_kind)

    def _granules(
        self, kind: PageKind, rows: range, uses: list[tuple[Page, int]], before: Cut | None
    ) -> tuple[_Seen, list[Granule]]:
        """Return a pool's granules, those of before if they would be the same."""
        seen = _Seen(uses, [page.tokens for page, _ in uses])
        known = None if before is None or before.hides else before.by_kind.get(kind)
        hides = any(row.hidden for row in self._layout.of(rows))
        if known is not None and not hides and seen.are_those_of(known[0]):
            return known
        at_once = self._settings.pages_at_once(kind)
        return seen, cut_granules(self._layout, kind, at_once, self._device, uses, rows)

    def _spec(self, granule: Granule) -> GranuleSpec:
        shape, block = self._settings.shape, self._settings.geometry.block_tokens
        of_token = {
            PageKind.ACTIVATIONS: activation_bytes_per_token(shape),
            PageKind.KV: kv_bytes_per_token(shape),
            PageKind.RESIDENT: 0,
        }[granule.kind]
        pages = len(granule.pages)
        return GranuleSpec(granule.kind.value, pages, pages * block, pages * block * of_token)

    def program(
        self, rows: range, q_len: int, device_tokens: int = 0, *, costed: bool = True
    ) -> StepProgram:
        """Return the program of a step over the pages of some rows, without stores.

        Args:
            rows: the rows that take part.
            q_len: inputs of the step.
            device_tokens: tokens that are on the device anyway, summed over rows.
            costed: whether its operations' bytes and FLOPs count; else they may be those of another
                step that does the same in the same order.
        """
        cut = self.cut(rows, q_len)
        key = (q_len, device_tokens, costed)
        if key not in cut.made:
            cut.made[key] = self._build(cut, len(rows), q_len, device_tokens, (), costed)
        return cut.made[key]

    def program_with_stores(
        self,
        rows: range,
        q_len: int,
        device_tokens: int,
        moves: StepMoves,
        cut: Cut,
        *,
        costed: bool = True,
    ) -> StepProgram:
        """Return the program of a step that also fills pages; ``cut`` is from before it."""
        stores = tuple(self._stores(moves))
        return self._build(cut, len(rows), q_len, device_tokens, stores, costed)

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
        cut: Cut,
        rows: int,
        q_len: int,
        device_tokens: int,
        stores: Sequence[tuple[Kind, int]],
        costed: bool,
    ) -> StepProgram:
        structure = (
            rows,
            q_len,
            tuple([granule.kind for granule in cut.granules]),
            cut.host is None,
            tuple([kind for kind, _ in stores]),
        )
        # Streamed weights come in pieces, whose bytes count.
        reusable = not costed and not any(self._layer_weights)
        program = self._structures.get(structure) if reusable else None
        if program is None:
            program = self._built(cut, rows, q_len, device_tokens, stores)
        if reusable:
            self._structures.setdefault(structure, program)
            if len(self._structures) > _STRUCTURES_KEPT:
                del self._structures[next(iter(self._structures))]
        return StepProgram(program, cut.granules, cut.table, cut.host)

    def _built(
        self,
        cut: Cut,
        rows: int,
        q_len: int,
        device_tokens: int,
        stores: Sequence[tuple[Kind, int]],
    ) -> Program:
        settings = self._settings
        specs = [self._spec(granule) for granule in cut.granules]
        paged = [layer in settings.paged_widths for layer in range(settings.shape.num_layers)]
        hosted = 0 if cut.host is None else cut.host.tokens
        return build_program(
            settings.shape,
            [specs if is_paged else [] for is_paged in paged],
            rows,
            q_len,
            settings.geometry.ring_slots,
            settings.policy,
            [stores if is_paged else () for is_paged in paged],
            device_tokens=[device_tokens + rows * q_len] * len(paged),
            host_tokens=[hosted if is_paged else 0 for is_paged in paged] if hosted else (),
            page_tokens=settings.geometry.block_tokens,
            layer_weights=self._layer_weights,
        )


def _divide(
    uses: Sequence[tuple[Page, int]], share: float
) -> tuple[list[tuple[Page, int]], list[tuple[Page, int]]]:
    """Divide pages between the link and the host: the first ones travel, in one long run."""
    numbers = sorted({page.number for page, _ in uses})
    travel = set(numbers[: len(numbers) - round(share * len(numbers))])
    linked = [use for use in uses if use[0].number in travel]
    return linked, [use for use in uses if use[0].number not in travel]
