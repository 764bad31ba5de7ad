"""Who has which row of a cache: those who decode, then prompts under way, then trunks."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.engine.sample import Sample
from headrace.engine.trunks import Trunk
from headrace.hf.rows_cache import RowsCache
from headrace.runtime.capacity import RowNeed


class Roster:
    """The order of a cache's rows.

    Samples that decode come first, behind them those whose prompts are under way (a trunk's too),
    and last the trunks that are ready. Rows move only here; the cache is the one that they are in.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        """Those who decode, and those whose prompts are under way."""
        self.trunks: list[Trunk] = []
        """Those that are ready."""
        self.decoding = 0
        """How many samples decode: the first ones."""

    @property
    def known_trunks(self) -> list[Trunk]:
        """Those that are ready, and those under way."""
        return [*self.trunks, *(one for one in self.samples if isinstance(one, Trunk))]

    def needs(self, cache: RowsCache) -> list[RowNeed]:
        """Return what the rows of all samples will have."""
        return [one.need(cache.split_of(row)) for row, one in enumerate(self.samples)]

    def admit(
        self,
        cache: RowsCache,
        admitted: list[tuple[Sample, Trunk | None]],
        kept: list[Trunk],
    ) -> None:
        """Add rows behind those of the prompts under way: empty ones, or a trunk's.

        Args:
            cache: the rows'.
            admitted: samples, each with the trunk that it begins with, or None.
            kept: trunks that are not let go of.
        """
        if not admitted and len(kept) == len(self.trunks):
            return
        first = len(self.samples)
        of_trunk = {id(trunk): first + place for place, trunk in enumerate(self.trunks)}
        others = self.needs(cache)
        for sample, trunk in admitted:
            if trunk is not None:
                sample.cached = len(trunk.tokens)
                others.append(sample.need(cache.split_of(of_trunk[id(trunk)])))
        new = [sample.need() for sample, trunk in admitted if trunk is None]
        empty = iter(cache.add(len(new), new, others))
        sources = [next(empty) if trunk is None else of_trunk[id(trunk)] for _, trunk in admitted]
        cache.arrange([*range(first), *sources, *(of_trunk[id(trunk)] for trunk in kept)])
        self.trunks = kept
        for sample, _ in admitted:
            self.samples.append(sample)

    def next_forward(self, limit: int, prompts_next: bool) -> tuple[range, list[list[int]]]:
        """Return the rows of the next forward, and the tokens of each.

        All that decode; or where prompts are under way, in turn, and as long as they are more than
        those that decode, several whole ones if they fit, else a part of the first.

        Args:
            limit: most tokens of prompts, padding included.
            prompts_next: whether it is the prompts' turn.
        """
        first = self.decoding
        prompts = self.samples[first:]
        # A decode step of few rows is hardly shorter than one of many.
        prompts_turn = prompts_next or len(prompts) > first
        if first and not (prompts and prompts_turn):
            return range(first), [sample.tokens[-1:] for sample in self.samples[:first]]
        if prompts[0].left > limit:
            cached = prompts[0].cached
            return range(first, first + 1), [prompts[0].tokens[cached : cached + limit]]
        longest, count = 0, 0
        for sample in prompts:
            longest = max(longest, sample.left)
            if longest * (count + 1) > limit:
                break
            count += 1
        tokens = [sample.tokens[sample.cached :] for sample in prompts[:count]]
        return range(first, first + count), tokens

    def following(self, rows: range, tokens: list[list[int]]) -> tuple[range | None, int]:
        """Return what the forward after one will probably be, for whose loads it is known ahead.

        Args:
            rows: of the one before it, which is about to begin.
            tokens: its tokens of each.

        Returns:
            Its rows, or some of them, None for the same; and how many inputs each will have.
        """
        if rows.start < self.decoding:
            return None, 1
        if self.decoding:
            return range(self.decoding), 1
        left = self.samples[rows.start].left - len(tokens[0])
        if left > 0:
            return rows, min(left, len(tokens[0]))
        if rows.stop == len(self.samples):
            return None, 1
        return range(rows.stop, rows.stop + 1), self.samples[rows.stop].left

    def part(self, cache: RowsCache, rows: range, logits: Tensor) -> tuple[list[Sample], Tensor]:
        """Let rows all of whose tokens are in the cache decode from now on.

        Each sample of a prompt gets a row of its own, which shares the prompt's cache; trunks go
        behind all others.

        Args:
            cache: the rows'.
            rows: of the last forward.
            logits: of each, ``[B, V]``.

        Returns:
            The samples, and the logits of each.
        """
        samples = self.samples[rows.start : rows.stop]
        parts = [part for sample in samples for part in sample.split()]
        if len(parts) != len(samples) or any(isinstance(one, Trunk) for one in samples):
            logits = self._fork(cache, rows, logits)
        self.samples[rows.start : rows.stop] = parts
        if rows.start >= self.decoding:
            self.decoding += len(parts)
        return parts, logits

    def _fork(self, cache: RowsCache, rows: range, logits: Tensor) -> Tensor:
        sources = [row for row in rows for _ in self.samples[row].indices]
        ready = [row for row in rows if isinstance(self.samples[row], Trunk)]
        count = len(self.samples)
        behind = [*range(rows.stop, count + len(self.trunks)), *ready]
        cache.arrange([*range(rows.start), *sources, *behind])
        self.trunks += [
            one for one in self.samples[rows.start : rows.stop] if isinstance(one, Trunk)
        ]
        index = torch.tensor([source - rows.start for source in sources], dtype=torch.int64)
        return logits.index_select(0, index.to(logits.device))

    def drop_finished(self, cache: RowsCache) -> None:
        """Let rows that have ended go; the last ones that decode take their places."""
        samples, first = self.samples, self.decoding
        decoding = [row for row in range(first) if not samples[row].finished]
        prompts = [row for row in range(first, len(samples)) if not samples[row].finished]
        if len(decoding) + len(prompts) == len(samples):
            return
        kept = len(decoding)
        moved = iter([row for row in decoding if row >= kept])
        alive = set(decoding)
        self._arrange(
            cache, [row if row in alive else next(moved) for row in range(kept)] + prompts
        )
        self.decoding = kept

    def drop_last(self, cache: RowsCache) -> Sample:
        """Take its row from the last sample, and return it."""
        last = self.samples[-1]
        self._arrange(cache, list(range(len(self.samples) - 1)))
        self.decoding = min(self.decoding, len(self.samples))
        return last

    def drop_trunks(self, cache: RowsCache) -> None:
        """Let go of the trunks that are ready."""
        cache.arrange(list(range(len(self.samples))))
        self.trunks = []

    def _arrange(self, cache: RowsCache, sources: list[int]) -> None:
        """Let sample i be what sample ``sources[i]`` was."""
        first = len(self.samples)
        cache.arrange([*sources, *range(first, first + len(self.trunks))])
        self.samples = [self.samples[source] for source in sources]

    def clear(self) -> list[Sample]:
        """Forget all rows, whose cache has gone; return the samples that had some."""
        samples = [sample for sample in self.samples if not isinstance(sample, Trunk)]
        self.samples, self.trunks, self.decoding = [], [], 0
        return samples
