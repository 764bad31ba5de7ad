"""How the prompts of rows that come are divided: as suits the batch that they join.

Everything else has its place already. What is open is which part of the new prompts' pages goes to
the device, as far as there is room, and which is kept as X; the rest is K/V on the host, which the
link and the cores divide as suits the batch, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.hf.cached_batch import pages_in_use
from headrace.plan.policies import Split
from headrace.plan.replan import Replanner
from headrace.runtime.capacity import RowNeed
from headrace.runtime.layout import Layout
from headrace.runtime.paged import PagedCache
from headrace.runtime.pages import HOST_KINDS, PageKind

_LEAST_GAIN = 0.01
"""Share by which the step must become shorter, times the new prompts' share of the batch."""


def split_of_arriving(
    paged: PagedCache,
    replanner: Replanner,
    paths: Sequence[str],
    new: Sequence[RowNeed],
    others: Sequence[RowNeed],
) -> Split | None:
    """Return how the prompts of rows that come are best divided; None: as is planned.

    Host memory suffices for all rows as they are divided then, until they end.

    Args:
        paged: the cache, which does not have the new rows yet.
        replanner: predicts.
        paths: that the plan's policy takes.
        new: the rows that come, at least one.
        others: those that there are, or that come with a beginning that is in the cache.
    """
    batch = _Joined.of(paged.layout, new, others)
    if batch.new == 0:
        return None
    best = batch.best(replanner, paths)
    if best is None:
        return None
    planned_s, best_s = (
        batch.step_s(replanner, paths, split) for split in (paged.layout.split, best)
    )
    pays = planned_s - best_s > _LEAST_GAIN * batch.new / batch.total * planned_s
    return best if pays and _has_room(paged, best, new, others) else None


@dataclass(frozen=True)
class _Joined:
    """The batch as it will be once new prompts are in the cache, in pages.

    Attributes:
        rows: sequences.
        block_tokens: tokens of a page.
        resident: pages on the device, without those of the new prompts.
        rebuilt: pages of X, likewise.
        on_host: pages of K/V on the host, likewise; with those that new rows will have generated
            when they are half-way.
        new: pages of the new prompts.
        planned: how prompts are divided unless said otherwise.
        room: pages that may still come to the device; None where there is no limit to them, so that
            as many come as is planned.
    """

    rows: int
    block_tokens: int
    resident: float
    rebuilt: float
    on_host: float
    new: int
    planned: Split
    room: float | None

    @classmethod
    def of(cls, layout: Layout, new: Sequence[RowNeed], others: Sequence[RowNeed]) -> _Joined:
        """Return what a layout will hold.

        Of prompts that are under way it is what is still to come, too.
        """
        block = layout.block_tokens
        used = pages_in_use(layout)
        room = None if layout.resident_pages is None else float(layout.resident_room)
        resident, rebuilt, on_host = (
            float(used[kind]) for kind in (PageKind.RESIDENT, PageKind.ACTIVATIONS, PageKind.KV)
        )
        for row in others:
            split = row.split or layout.split
            pages = max(0, row.prompt_len - row.cached) // block
            kept = split.resident * pages
            if room is not None:
                kept = min(kept, room)
                room -= kept
            resident += kept
            rebuilt += split.recompute * pages
            on_host += pages - kept - split.recompute * pages
        on_host += sum(row.samples * ((row.end - row.prompt_len) // 2 // block) for row in new)
        return cls(
            rows=max(1, sum(max(1, row.samples) for row in (*others, *new))),
            block_tokens=block,
            resident=resident,
            rebuilt=rebuilt,
            on_host=on_host,
            new=sum(row.prompt_len // block for row in new),
            planned=layout.split,
            room=room,
        )

    @property
    def total(self) -> float:
        """All pages."""
        return self.resident + self.rebuilt + self.on_host + self.new

    @property
    def context(self) -> int:
        """Tokens of a row in pages, on average."""
        return max(1, int(self.total) * self.block_tokens // self.rows)

    def _kept(self, split: Split) -> float:
        """Return the pages of the new prompts that come to the device."""
        wanted = split.resident * self.new
        return wanted if self.room is None else min(wanted, self.room)

    def step_s(self, replanner: Replanner, paths: Sequence[str], split: Split) -> float:
        """Return the least step if the new prompts are divided in a given way."""
        resident = (self.resident + self._kept(split)) / self.total
        rebuilt = (self.rebuilt + split.recompute * self.new) / self.total
        if "host" not in paths:
            rebuilt = min(1.0, rebuilt)
            streamed = max(0.0, 1.0 - resident - rebuilt)
            divided = Split(max(0.0, 1.0 - streamed - rebuilt), streamed, rebuilt)
            return replanner.step_s(self.rows, self.context, divided)
        return replanner.hosted(self.rows, self.context, resident, rebuilt)[1]

    def best(self, replanner: Replanner, paths: Sequence[str]) -> Split | None:
        """Return how the new prompts are best divided.

        X is kept only where that is planned for some: else the model's forward does not note it.
        """
        total, new = self.total, self.new
        resident, rebuilt = self.resident / total, self.rebuilt / total
        as_planned = resident + self._kept(self.planned) / total
        least = {"resident": as_planned if self.room is None else resident, "recompute": rebuilt}
        most = {
            "resident": as_planned if self.room is None else resident + min(new, self.room) / total,
            "recompute": rebuilt + (new / total if self.planned.recompute > 0 else 0.0),
        }
        found = replanner.completed(
            self.rows, self.context, least, most, self.on_host / total, paths
        )
        if found is None:
            return None
        kept = min(1.0, max(0.0, found.resident - resident) * total / new)
        x = min(1.0 - kept, max(0.0, found.recompute - rebuilt) * total / new)
        return Split(kept, max(0.0, 1.0 - kept - x), x)


def _has_room(
    paged: PagedCache, split: Split, new: Sequence[RowNeed], others: Sequence[RowNeed]
) -> bool:
    """Return whether the pools have room for all that is still to come."""
    block, planned = paged.layout.block_tokens, paged.layout.split
    coming = [row.host_pages(row.split or planned, block) for row in others]
    coming += [row.host_pages(split, block) for row in new]
    pages = {kind: sum(of_row[kind] for of_row in coming) for kind in HOST_KINDS}
    return paged.capacity.suffices(pages)
