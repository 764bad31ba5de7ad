"""The attention of one layer, put together from its granules.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, T tokens of a page, D head
width, N pages of a granule.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from headrace.runtime.attention import (
    Accumulator,
    EntryTable,
    Partial,
    Rotation,
    Scoring,
    attend,
    concatenate,
    empty_partial,
    merge,
    merge_entries,
    normalised,
)
from headrace.runtime.gpu_kernels import kernels_for
from headrace.runtime.granules import Granule
from headrace.runtime.prompt import attend_pages
from headrace.runtime.tail import put_newest

_SHAPES_KEPT = 2
"""Of queries, for whose results there is memory: a model's layers may have two widths."""


class Results:
    """Memory for partial results of a layer's entries, which layers share one after the other."""

    def __init__(self) -> None:
        self._made: dict[torch.Size, Partial] = {}

    def of(self, entries: int, query: Tensor) -> Partial:
        """Return room for the results of so many entries of queries ``[B, H, G, D]``."""
        shape = query.shape[1:]
        made = self._made.pop(shape, None)
        if made is None or made.output.shape[0] != entries:
            if len(self._made) >= _SHAPES_KEPT:
                self.release()
            # What there was before is given back first.
            made = None
            made = empty_partial((entries, *shape), query.device)
        self._made[shape] = made
        return made

    def release(self) -> None:
        """Let go of it: somebody else needs the memory."""
        self._made.clear()


class LayerAttention:
    """A layer's attention while it is put together.

    The partial results of few queries are kept as they are and merged once, at the end. Those of
    many queries would take too much memory and are merged granule by granule.

    Args:
        query: grouped queries ``[B, H, G, D]``.
        entries: of all granules that will be attended to, in order.
        table: of these entries, and one or two more for each row (``layer_table``).
        scoring: scale and soft cap.
        workspace_bytes: bound on scores, and on pages that are laid out for a prompt.
        results_bytes: bound on the partial results that are kept.
        results: memory that all layers' partial results share.
        into: where kernels write the output, contiguous, in the queries' shape; None: somewhere.
        is_prompt: whether the queries are a prompt's, and many (``prompt.is_prompt``).
    """

    def __init__(
        self,
        query: Tensor,
        entries: int,
        table: EntryTable,
        scoring: Scoring,
        workspace_bytes: int,
        results_bytes: int,
        results: Results,
        into: Tensor | None = None,
        *,
        is_prompt: bool = False,
    ) -> None:
        self._query = query
        self._into = into
        self._table = table
        self._scoring = scoring
        self._workspace_bytes = workspace_bytes
        self._entries = entries
        self._is_prompt = is_prompt
        few = entries * query[0].numel() * 4 <= results_bytes
        self._merge_once = few and not self._is_prompt
        self._kernels = kernels_for(query) if self._merge_once else None
        self._results = results
        self._room: Partial | None = None
        self._filled = 0
        self._has_tail = False
        self._parts: list[Partial] = []
        self._new: Partial | None = None
        self._host: Partial | None = None
        self._accumulator: Accumulator | None = None
        self._whole: Tensor | None = None
        if not self._merge_once:
            results.release()

    @property
    def by_kernels(self) -> bool:
        """Whether kernels of our own attend, which rotate keys."""
        return self._kernels is not None

    @property
    def from_pool(self) -> bool:
        """Whether pages are found in their pool: they need not be gathered."""
        return self._kernels is not None or self._is_prompt

    def attend_granule(
        self,
        granule: Granule,
        key: Tensor,
        value: Tensor,
        *,
        rotation: Rotation | None = None,
        in_pool: bool = False,
    ) -> None:
        """Attend to a granule's pages.

        Args:
            granule: which row sees which page.
            key: keys of its pages ``[N, H, T, D]``, or of all pages of its pool.
            value: their values.
            rotation: how the keys are yet to be rotated (only ``by_kernels``), or None.
            in_pool: whether they are those of the pool (only ``from_pool``).
        """
        if self._kernels is not None:
            first, self._filled = self._filled, self._filled + granule.entries
            self._kernels.attend_pages(
                self._query,
                key,
                value,
                self._scoring,
                self._made_room,
                granule.entry_row,
                granule.entry_number if in_pool else granule.entry_page,
                granule.visible,
                entries=granule.entries,
                first=first,
                rotation=rotation,
            )
            return
        assert rotation is None
        if self._is_prompt:
            self._attend_rows(granule, key, value, in_pool)
            return
        part = attend_granule(
            granule, self._query, key, value, self._scoring, self._workspace_bytes
        )
        if self._merge_once:
            self._parts.append(part)
        else:
            self._accumulated.add(merge_entries(part, granule.table), granule.rows)

    def _attend_rows(self, granule: Granule, key: Tensor, value: Tensor, in_pool: bool) -> None:
        """Attend a prompt's queries to a granule, many of a row's pages at once."""
        page_bytes = key[0].nbytes + value[0].nbytes
        # Pages may have to be picked, and are laid out anew: half of the workspace at the most.
        most = max(1, self._workspace_bytes // (4 * page_bytes))
        for row, pages, entries in granule.pieces(most, in_pool=in_pool):
            part = attend_pages(
                self._query[row : row + 1],
                key[pages],
                value[pages],
                self._scoring,
                None if granule.visible is None else granule.visible[entries],
                self._workspace_bytes // 2,
            )
            self._accumulated.add_to_row(part, row)

    @property
    def _made_room(self) -> Partial:
        """Where the results of all entries go, and of each row's newest tokens behind them."""
        if self._room is None:
            self._room = self._results.of(self._entries + len(self._query), self._query)
        return self._room

    def attend_tail(
        self,
        tail: tuple[Tensor, Tensor],
        key: Tensor,
        value: Tensor,
        place_B111: Tensor,
        seen_BT: Tensor,
    ) -> None:
        """Put each row's newest token into its tail, and attend to that.

        Args:
            tail: keys and values of the rows' tails, ``[B, H, T, D]``.
            key: of the newest tokens, ``[B, H, 1, D]``.
            value: likewise.
            place_B111: int64; where in its tail a row's newest token goes.
            seen_BT: bool; places of the tails that are seen, the new ones among them.
        """
        if self._kernels is None:
            put_newest(tail, key, value, place_B111)
            visible = seen_BT[:, None, None]
            self._new = attend(self._query, *tail, self._scoring, visible)
            return
        fresh = (_with_heads_in_one(key), _with_heads_in_one(value), place_B111)
        self._kernels.attend_pages(
            self._query,
            *tail,
            self._scoring,
            self._made_room,
            visible_ET=seen_BT,
            entries=len(self._query),
            first=self._entries,
            fresh=fresh,
        )
        self._has_tail = True

    def add_new(self, result: Partial | Tensor) -> None:
        """Add the attention of all rows to what is on the device anyway, or to a part of that."""
        if isinstance(result, Tensor):
            self._whole = result
        elif self._is_prompt:
            self._accumulated.add(result)
        else:
            self._new = result if self._new is None else merge([self._new, result])

    def add_host(self, part: Partial) -> None:
        """Add what the host's cores attended to."""
        self._host = part

    @property
    def _accumulated(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = Accumulator(self._query)
        return self._accumulator

    def merge(self) -> None:
        """Merge all parts into the output."""
        of_rows = [part for part in (self._new, self._host) if part is not None]
        if self._kernels is not None and (self._room is not None or of_rows):
            self._merge_by_kernel(self._kernels)
        elif self._parts:
            merged = merge_entries(concatenate([*self._parts, *of_rows]), self._table)
            self._whole = normalised(merged, self._query.dtype)
        elif self._accumulator is not None or of_rows:
            for part in of_rows:
                self._accumulated.add(part)
            self._whole = self._accumulated.output(self._query.dtype)

    def _merge_by_kernel(self, kernels: ModuleType) -> None:
        entries = self._entries + len(self._query) if self._has_tail else self._filled
        self._whole = self._into
        if self._whole is None:
            self._whole = torch.empty_like(self._query, memory_format=torch.contiguous_format)
        kernels.merge_parts(
            self._room, self._table, self._new, self._host, self._whole, entries=entries
        )

    def output(self) -> Tensor:
        """Return the normalised output ``[B, H, G, D]``."""
        assert self._whole is not None
        return self._whole


def attend_granule(
    granule: Granule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    workspace_bytes: int,
) -> Partial:
    """Attend to a granule; return the result of each of its entries.

    Args:
        granule: which row sees which page.
        query: grouped queries of all rows ``[B, H, G, D]``.
        key: keys of the granule's pages ``[N, H, T, D]``.
        value: their values.
        scoring: scale and soft cap.
        workspace_bytes: bound on the scores that exist at once; queries are cut to keep it.
    """
    kernels = kernels_for(query)
    if kernels is not None:
        result = empty_partial((granule.entries, *query.shape[1:]), query.device)
        kernels.attend_pages(
            query,
            key,
            value,
            scoring,
            result,
            granule.entry_row,
            granule.entry_page,
            granule.visible,
        )
        return result
    if granule.entry_page is not None:
        key = key.index_select(0, granule.entry_page)
        value = value.index_select(0, granule.entry_page)
    visible = None if granule.visible is None else granule.visible[:, None, None]
    entries, heads, tokens, width = key.shape
    grouped = query.shape[2]
    per_query = entries * heads * (tokens + 3 * width) * 4
    at_once = max(1, min(grouped, workspace_bytes // per_query))
    parts = []
    for start in range(0, grouped, at_once):
        some = query[:, :, start : start + at_once].index_select(0, granule.entry_row)
        parts.append(attend(some, key, value, scoring, visible))
    return concatenate(parts, dim=2)


def _with_heads_in_one(part: Tensor) -> Tensor:
    """Return keys or values whose heads are each contiguous, copied if they are not."""
    return part if part.stride(-1) == 1 else part.contiguous()
