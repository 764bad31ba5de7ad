"""The split follows the batch: looked at again as rows come, grow and leave.

What is decided anew is cheap to change: which share of the K/V on the host its cores attend to, and
whether pages on the host come to the device where rows that ended have left room. There are never
more pages on the device than the plan allowed for; which rows have them makes no difference to a
step, so none goes back. Pages of X come too, rebuilt for the last time.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.plan.policies import Split
from headrace.plan.replan import Replanner
from headrace.runtime.paged import PagedCache
from headrace.runtime.pages import PageKind


@dataclass(frozen=True)
class Rules:
    """When the split changes.

    Attributes:
        least_gain: share by which the predicted step must become shorter.
        every_steps: decode steps from one look to the next, at the least.
        regained_steps: decode steps in which the time that pages take to come must be regained.
    """

    least_gain: float = 0.05
    every_steps: int = 16
    regained_steps: int = 32


class Replanning:
    """Looks at a cache's batch, and changes its split where that pays.

    Args:
        paged: the cache.
        replanner: predicts.
        rules: when the split changes.
    """

    def __init__(self, paged: PagedCache, replanner: Replanner, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.changes = 0
        """How often the split was changed."""
        self.promoted = 0
        """Pages that came to the device."""
        self.split: Split | None = None
        """How cached tokens were divided when that was last looked at."""
        self._paged = paged
        self._replanner = replanner
        self._version = -1
        self._steps = 0

    def before_decode(self, rows: range) -> None:
        """Look at the batch, if its pages have changed and enough steps have gone by."""
        self._steps += 1
        version = self._paged.layout.version
        if version == self._version or self._steps < self.rules.every_steps:
            return
        self._version, self._steps = version, 0
        self._look(rows)
        self._version = self._paged.layout.version

    def _look(self, rows: range) -> None:
        pools = self._paged.layout.pools
        used = {kind: pool.capacity - pool.free for kind, pool in pools.items()}
        total = sum(used.values())
        if total == 0:
            return
        context = max(1, total * self._paged.layout.block_tokens // len(rows))
        on_device, rebuilt = used[PageKind.RESIDENT], used[PageKind.ACTIVATIONS]
        now = self._divided(used, self._paged.host_share)
        now_s = self._replanner.step_s(len(rows), context, now)
        coming = min(self._paged.layout.promotable, total - on_device)
        # Keys and values come first, then X.
        left = rebuilt - max(0, coming - used[PageKind.KV])
        share, then_s = self._replanner.hosted(
            len(rows), context, (on_device + coming) / total, left / total
        )
        bring_s = coming * self._paged.capacity.page_bytes / self._replanner.profile.h2d_bytes_per_s
        if coming and self._pays(now_s, then_s, bring_s):
            self.promoted += self._paged.promote(rows, coming)
            self._paged.host_share = share
            self.changes += 1
        else:
            share, then_s = self._replanner.hosted(
                len(rows), context, on_device / total, rebuilt / total
            )
            if self._pays(now_s, then_s, 0.0):
                self._paged.host_share = share
                self.changes += 1
        used = {kind: pool.capacity - pool.free for kind, pool in pools.items()}
        self.split = self._divided(used, self._paged.host_share)

    def _pays(self, now_s: float, then_s: float, cost_s: float) -> bool:
        gain_s = now_s - then_s
        return gain_s > self.rules.least_gain * now_s and cost_s < (
            gain_s * self.rules.regained_steps
        )

    @staticmethod
    def _divided(used: dict[PageKind, int], host_share: float) -> Split:
        total = sum(used.values())
        on_host = used[PageKind.KV] / total
        rebuilt = used[PageKind.ACTIVATIONS] / total
        hosted = host_share * on_host
        return Split(max(0.0, 1.0 - on_host - rebuilt), on_host - hosted, rebuilt, hosted)

    def words(self) -> str | None:
        """Return what was changed, in a sentence; None where nothing was."""
        if not self.changes or self.split is None:
            return None
        parts = (
            f"{100 * getattr(self.split, path):.0f} % {path}"
            for path in ("resident", "stream", "recompute", "host")
        )
        return (
            f"the split was changed {self.changes} times as the batch did, and {self.promoted} "
            f"pages came to the device; it was {', '.join(parts)} at last"
        )
