"""The split follows the batch and the machine: looked at again as rows come, grow and leave.

What is decided anew is cheap to change: which share of the K/V on the host its cores attend to, and
whether pages on the host come to the device where rows that ended have left room. There are never
more pages on the device than the plan allowed for; which rows have them makes no difference to a
step, so none goes back. Pages of X come too, rebuilt for the last time.

The cores' share also follows the rates at which they turn out to attend and the link to load, for
both read the host's memory, and others do, too. Where it has come to nothing, the cores are tried
again now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.hf.arrivals import split_of_arriving
from headrace.hf.cached_batch import CachedBatch, pages_in_use
from headrace.hf.learnt_rates import LearntRates, RateRules, RecentRates
from headrace.plan.demands import AttainedRates
from headrace.plan.policies import Split
from headrace.plan.replan import HOST_SHARES, Ratios, Replanner
from headrace.plan.step_work import PATHS
from headrace.runtime.capacity import RowNeed
from headrace.runtime.lanes import Busy
from headrace.runtime.paged import PagedCache
from headrace.runtime.pages import PageKind
from headrace.units import format_rate

_MOST_LONGER = 4
"""So many times as many steps make a rate, at the most, after changes for other rates."""


@dataclass(frozen=True)
class Rules:
    """When the split changes.

    Attributes:
        least_gain: share by which the predicted step must become shorter.
        every_steps: decode steps from one look to the next, at the least, unless the rate of the
            host's cores, or of the link, has changed.
        regained_steps: decode steps in which the time that pages take to come must be regained.
        rate: when such a rate has changed.
    """

    least_gain: float = 0.05
    every_steps: int = 16
    regained_steps: int = 32
    rate: RateRules = field(default_factory=RateRules)


class Replanning:
    """Looks at a cache's batch, and changes its split where that pays.

    Args:
        paged: the cache.
        replanner: predicts.
        rules: when the split changes.
        paths: that the plan's policy takes.
    """

    def __init__(
        self,
        paged: PagedCache,
        replanner: Replanner,
        rules: Rules | None = None,
        paths: Sequence[str] = PATHS,
    ) -> None:
        self.rules = rules or Rules()
        self.changes = 0
        """How often the split was changed."""
        self.promoted = 0
        """Pages that came to the device."""
        self.split: Split | None = None
        """How cached tokens were divided when that was last looked at."""
        self.ratios = Ratios()
        """How many times the profile's rates link and cores go at, as far as is known."""
        self.divided = 0
        """Rows that came and whose prompts were not divided as is planned."""
        self.tries = 0
        """How often cores that did nothing were tried."""
        self._paged = paged
        self._paths = paths
        self._profiled = self._replanner = replanner
        self._version = -1
        self._steps = 0
        self._decoded: CachedBatch | None = None
        self._recent = RecentRates(self.rules.rate.steps)
        self._seen: tuple[LearntRates, AttainedRates] | None = None
        self._words: str | None = None
        self._followed = 0
        self._trying = 0
        self._idle_steps = 0
        self._wait_steps = self.rules.rate.try_every
        self._unseen, self._most_unseen = 0, self.rules.rate.try_every // self.rules.rate.steps

    def before_forward(self, rows: range, inputs: int) -> None:
        """Take note of the forward before this one, and look at the batch if it is time to.

        That is before a decode step, if enough of them have gone by and pages have changed, or if
        the host's cores or the link turned out to go at another rate.

        Args:
            rows: the rows that take part.
            inputs: of each row; 1 in a decode step.
        """
        link, cores = self._paged.link_busy(), self._paged.host_busy()
        known = self.ratios
        if self._decoded is not None:
            self._learn(link, cores, self._decoded)
        self._decoded = None
        if inputs > 1:
            return
        self._steps += 1
        version = self._paged.layout.version
        changed = version != self._version and self._steps >= self.rules.every_steps
        if self.ratios != known or (changed and not self._trying):
            self._steps = 0
            self._look(rows)
            self._version = self._paged.layout.version
            self._seen = None
        elif not self._trying and self._paged.host_share == 0:
            self._try_again(rows)
        self._decoded = self._batch(rows)

    def of_arriving(self, new: Sequence[RowNeed], others: Sequence[RowNeed]) -> Split | None:
        """Return how the prompts of rows that come are to be divided; None: as is planned.

        Args:
            new: the rows that come, in empty rows of the cache.
            others: those that there are, or that come with a beginning that is in the cache.
        """
        if not new:
            return None
        split = split_of_arriving(self._paged, self._replanner, self._paths, new, others)
        self.divided += 0 if split is None else len(new)
        return split

    def _learn(self, link: Busy, cores: Busy, batch: CachedBatch) -> None:
        """Note at which rates the link loaded and the cores attended in a decode step."""
        rules = self.rules.rate
        learnt = self._recent.note(link, cores)
        if self._trying:
            self._trying -= 1
            if learnt is not None or not self._trying:
                self._use_share(0.0)
                self._trying = 0
        if learnt is None:
            return
        learnt = learnt.at_most(link=self._profiled.profile.h2d_bytes_per_s)
        where = batch.rows, batch.context, batch.split
        expected = self._replanner.rates(*where)
        if rules.differ(learnt.cores, expected.cores) or rules.differ(learnt.link, expected.link):
            found = self._profiled.ratios(
                *where, link=learnt.link, cores=learnt.cores, known=self.ratios
            )
            self._use_ratios(found, (learnt, expected))
        self._forget_slow_link(learnt)

    def _forget_slow_link(self, learnt: LearntRates) -> None:
        """Take a slow link that nothing goes through any more for as fast as its profile says.

        Else it would never be seen again. Each time the next is twice as far away.
        """
        if learnt.link is not None or self.ratios.link >= 1:
            self._unseen = 0
            return
        self._unseen += 1
        if self._unseen >= self._most_unseen:
            self._unseen, self._most_unseen = 0, 2 * self._most_unseen
            self._use_ratios(Ratios(self.ratios.cores), None)

    def _use_ratios(self, ratios: Ratios, seen: tuple[LearntRates, AttainedRates] | None) -> None:
        """Predict with other ratios from now on, and keep why."""
        if ratios != self.ratios:
            self.ratios, self._seen = ratios, seen
            self._replanner = self._profiled.with_ratios(ratios)

    def _use_share(self, share: float, steps: int | None = None) -> None:
        """Let the cores attend to a share of the K/V on the host, and learn the rates anew."""
        self._paged.host_share = share
        # Whoever has changed for another rate looks longer before the next change.
        usual = self.rules.rate.steps * min(_MOST_LONGER, 1 + self._followed)
        self._recent = RecentRates(usual if steps is None else steps)

    def _batch(self, rows: range) -> CachedBatch | None:
        """Return the batch as it is in the cache; None where no page is in use."""
        return CachedBatch.of(self._paged.layout, len(rows), self._paged.host_share)

    def _look(self, rows: range) -> None:
        batch = self._batch(rows)
        if batch is None:
            return
        used, before = pages_in_use(self._paged.layout), self._paged.host_share
        total = sum(used.values())
        on_device, rebuilt = used[PageKind.RESIDENT], used[PageKind.ACTIVATIONS]
        now_s = batch.step_s(self._replanner)
        coming = min(self._paged.layout.promotable, total - on_device)
        # Keys and values come first, then X.
        left = rebuilt - max(0, coming - used[PageKind.KV])
        share, then_s = self._replanner.hosted(
            len(rows), batch.context, (on_device + coming) / total, left / total
        )
        bring_s = coming * self._paged.capacity.page_bytes / self._replanner.profile.h2d_bytes_per_s
        if coming and self._pays(now_s, then_s, bring_s):
            self.promoted += self._paged.promote(rows, coming)
            self._change(share, before)
        else:
            share, then_s = batch.hosted(self._replanner)
            if self._pays(now_s, then_s, 0.0):
                self._change(share, before)
        divided = self._batch(rows)
        self.split = None if divided is None else divided.split

    def _change(self, share: float, before: float) -> None:
        """Change the cores' share of the K/V on the host, and note why."""
        self.changes += 1
        self._idle_steps, self._wait_steps = 0, self.rules.rate.try_every
        if self._seen is not None and share != before:
            self._followed += 1
            self._words = (
                f"the cores' share of the K/V on the host went from {100 * before:.0f} % to "
                f"{100 * share:.0f} %, for {self._reason(*self._seen)}"
            )
        self._use_share(share)

    def _reason(self, learnt: LearntRates, expected: AttainedRates) -> str:
        """Return which rates are not what was expected."""
        differ, parts = self.rules.rate.differ, []
        if learnt.cores is not None and differ(learnt.cores, expected.cores):
            rates = f"{format_rate(learnt.cores)}, not {format_rate(expected.cores)}"
            parts.append(f"they attended at {rates}")
        if learnt.link is not None and differ(learnt.link, expected.link):
            rates = f"{format_rate(learnt.link)}, not {format_rate(expected.link)}"
            parts.append(f"the link loaded at {rates}")
        return " and ".join(parts)

    def _try_again(self, rows: range) -> None:
        """Let the cores attend to a little, if they have done nothing for long.

        Only their rate keeps them from it: at the profile's, it would pay.
        """
        self._idle_steps += 1
        if self.ratios.cores >= 1 or self._idle_steps < self._wait_steps:
            return
        self._idle_steps = 0
        batch, pages = self._batch(rows), pages_in_use(self._paged.layout)[PageKind.KV]
        if batch is None or pages == 0:
            return
        now_s = batch.step_s(self._replanner)
        recovered = self._profiled.with_ratios(Ratios(link=self.ratios.link))
        if not self._pays(now_s, batch.hosted(recovered)[1], 0.0):
            return
        share = max(1 / HOST_SHARES, 1 / pages)
        rules = self.rules.rate
        self._wait_steps = rules.wait_steps(now_s, batch.with_share(share).step_s(self._replanner))
        self._trying = rules.try_steps
        self._use_share(share, rules.try_steps)
        self.tries += 1

    def _pays(self, now_s: float, then_s: float, cost_s: float) -> bool:
        gain_s = now_s - then_s
        return gain_s > self.rules.least_gain * now_s and cost_s < (
            gain_s * self.rules.regained_steps
        )

    def words(self) -> str | None:
        """Return what was changed, in a sentence; None where nothing was."""
        came = (
            f"the prompts of {self.divided} rows were divided as suited the batch when they came"
            if self.divided
            else None
        )
        if not self.changes or self.split is None:
            return came
        parts = (
            f"{100 * getattr(self.split, path):.0f} % {path}"
            for path in ("resident", "stream", "recompute", "host")
        )
        words = (
            f"the split was changed {self.changes} times while rows ran, and {self.promoted} "
            f"pages came to the device; it was {', '.join(parts)} at last"
        )
        return "; ".join(part for part in (words, self._words, came) if part is not None)
