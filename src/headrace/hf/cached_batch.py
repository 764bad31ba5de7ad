"""Rows that decode, as planning sees them: how many, how long, and how they are divided now."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.plan.policies import Split
from headrace.plan.replan import Replanner
from headrace.runtime.layout import Layout
from headrace.runtime.pages import PageKind


def pages_in_use(layout: Layout) -> dict[PageKind, int]:
    """Return the pages of each kind that are not free."""
    return {kind: pool.capacity - pool.free for kind, pool in layout.pools.items()}


@dataclass(frozen=True)
class CachedBatch:
    """Rows that decode.

    Attributes:
        rows: how many.
        context: cached tokens of each in pages, on average.
        split: how these are divided.
    """

    rows: int
    context: int
    split: Split

    @classmethod
    def of(cls, layout: Layout, rows: int, host_share: float) -> CachedBatch | None:
        """Return the batch that is in a cache; None where no page is in use.

        Args:
            layout: the cache's.
            rows: how many decode.
            host_share: share of the K/V on the host to which its cores attend.
        """
        used = pages_in_use(layout)
        total = sum(used.values())
        if total == 0:
            return None
        on_host, rebuilt = used[PageKind.KV] / total, used[PageKind.ACTIVATIONS] / total
        hosted = host_share * on_host
        split = Split(max(0.0, 1.0 - on_host - rebuilt), on_host - hosted, rebuilt, hosted)
        return cls(rows, max(1, total * layout.block_tokens // rows), split)

    def with_share(self, share: float) -> CachedBatch:
        """Return the same with another share of the K/V on the host for its cores."""
        split, on_host = self.split, self.split.stream + self.split.host
        hosted = share * on_host
        divided = Split(split.resident, on_host - hosted, split.recompute, hosted)
        return CachedBatch(self.rows, self.context, divided)

    def step_s(self, replanner: Replanner) -> float:
        """Return the least time of a decode step."""
        return replanner.step_s(self.rows, self.context, self.split)

    def hosted(self, replanner: Replanner) -> tuple[float, float]:
        """Return the best share of the K/V on the host for its cores, and the step it makes."""
        split = self.split
        return replanner.hosted(self.rows, self.context, split.resident, split.recompute)
