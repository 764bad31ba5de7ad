"""Continuous batching: requests come and go, and every forward is over those that are there.

Rows that decode come first in the cache, and behind them those whose prompts are under way; a step
is one forward over some of either. Prompts go in chunks, in turn with decode steps, so that neither
starves. What a row gets depends on its own prompt, params and seed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from headrace.engine.request import SamplingParams
from headrace.engine.row import Row
from headrace.engine.sample import Job, Sample
from headrace.engine.sampling import choose_tokens
from headrace.engine.trunks import Trunk, common_beginning
from headrace.errors import ConfigurationError, MemoryBudgetError
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload

_FEWEST_PROMPT_TOKENS = 64
"""Tokens of prompts in a forward where the device's memory is short."""


@dataclass(frozen=True)
class Update:
    """What a step did for a sample.

    Attributes:
        job: the request.
        index: which sample of it.
        text: what may be shown now.
        finished: whether the sample has ended.
    """

    job: Job
    index: int
    text: str
    finished: bool


@dataclass(frozen=True)
class Step:
    """What a step did.

    Attributes:
        updates: by sample.
        decoded: rows that got one more token; 0 for a step of prompts.
    """

    updates: list[Update]
    decoded: int


class Batcher:
    """Runs requests through a model, as many at once as there is room for.

    Args:
        model: the model.
        tokenizer: the model's.
        options: what is asked of the cache.
        end_tokens: the model's.
        max_rows: most rows at once.
        prefill_tokens: most tokens of prompts in a forward, padding included; None: what the plan
            has memory for.
        share_prompts: whether prompts that begin alike share that part of the cache.

    Raises:
        ConfigurationError: a number is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        options: CacheOptions,
        end_tokens: Collection[int],
        max_rows: int,
        prefill_tokens: int | None = None,
        share_prompts: bool = True,
    ) -> None:
        for setting, value in (("max_rows", max_rows), ("prefill_tokens", prefill_tokens)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{setting} is {value}; allowed is 1 or more")
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._end_tokens = end_tokens
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens
        self._cache: RowsCache | None = None
        self._waiting: deque[Sample] = deque()
        self._samples: list[Sample] = []
        self._trunks: list[Trunk] = []
        self._shares = share_prompts
        self.shared_tokens = 0
        """Tokens of prompts that did not go through the model, for others began with them."""
        self._decoding = 0
        self._prompts_next = True
        self._rows_at_once = max_rows

    # Requests

    def add(self, request_id: str, prompt: list[int], params: SamplingParams) -> Job:
        """Let a prompt wait for its turn; its params must leave room in the model's context.

        Raises:
            ConfigurationError: it asks for more samples than there may be rows.
        """
        if params.n > self._max_rows:
            raise ConfigurationError(
                f"n is {params.n}, but at most {self._max_rows} rows run at once; lower n, or "
                "raise max_rows"
            )
        rows = [
            Row(self._tokenizer, params.of_sample(index), prompt, self._end_tokens)
            for index in range(params.n)
        ]
        job = Job(request_id, prompt, rows, params.max_tokens)
        self._waiting.append(Sample(job, list(range(params.n)), list(prompt)))
        return job

    def cancel(self, job: Job) -> None:
        """End a request; what its samples have made stays."""
        for row in job.rows:
            row.cancel()
        self._waiting = deque(sample for sample in self._waiting if not sample.finished)
        self._drop_finished()

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended."""
        return bool(self._waiting or self._samples)

    @property
    def wants_more(self) -> bool:
        """Whether further requests would soon find room."""
        taken = sum(len(sample.indices) for sample in (*self._samples, *self._waiting))
        return taken < 2 * self._max_rows

    @property
    def opened(self) -> bool:
        """Whether there is a cache: not before the first step, nor if none fits the budgets."""
        return self._cache is not None

    @property
    def decoding(self) -> int:
        """Rows that decode."""
        return self._decoding

    @property
    def cache(self) -> RowsCache:
        """The cache; opened, with a plan for the requests that wait, when it is first needed.

        Raises:
            MemoryBudgetError: not even one of them fits the budgets.
        """
        if self._cache is None:
            self._cache = self._open()
            if self._prefill_tokens is None:
                self._prefill_tokens = self._cache.prefill_tokens
        return self._cache

    def _open(self) -> RowsCache:
        """Open the cache for as many rows as fit, up to those that there will be."""
        waiting = self._waiting
        rows = min(self._rows_at_once, sum(len(sample.indices) for sample in waiting))
        prompt_len = math.ceil(fmean(len(sample.tokens) for sample in waiting))
        generate_len = math.ceil(fmean(sample.job.max_tokens for sample in waiting))
        fewest = max(len(sample.indices) for sample in waiting)
        rows = max(rows, fewest)
        while True:
            try:
                workload = Workload(rows, prompt_len, generate_len)
                return RowsCache(self._model, workload, self._options)
            except MemoryBudgetError:
                if rows <= fewest:
                    raise
                rows = max(fewest, rows // 2)

    # A step

    def step(self) -> Step:
        """Run one forward over some rows, and return what it did.

        A request that does not fit the budgets even by itself ends with its job's ``error``.
        """
        if not self.has_work:
            return Step([], 0)
        try:
            self._admit(self.cache)
        except MemoryBudgetError as error:
            return Step(self._fail_longest(error), 0)
        if not self._samples:
            # Who waits needs more rows at once than the cache was opened for.
            self.close()
            self._admit(self.cache)
        cache = self.cache
        rows, tokens = self._chosen()
        decoded = len(rows) if rows.start < self._decoding else 0
        self._prompts_next = decoded > 0
        following = None if decoded else range(self._decoding) or None
        try:
            logits = cache.forward(rows, tokens, following)
        except MemoryBudgetError as error:
            if cache.broken:
                return Step(self._begin_anew(error), 0)
            return Step(self._make_room(error), 0)
        samples = self._samples[rows.start : rows.stop]
        for sample, some in zip(samples, tokens, strict=True):
            sample.cached += len(some)
        if samples[-1].left:
            return Step([], 0)
        updates = self._choose(rows, logits)
        self._drop_finished()
        return Step(updates, decoded)

    def _admit(self, cache: RowsCache) -> None:
        """Give rows to those who wait, in their order, while there is room."""
        admitted: list[tuple[Sample, Trunk | None]] = []
        while self._waiting:
            sample = self._waiting[0]
            trunk = self._trunk_of(sample, cache)
            if trunk is not None and trunk.left and trunk in self._samples:
                break
            others = [one for one, _ in admitted]
            if trunk is not None and trunk not in self._trunks:
                # It goes through the model first; who begins with it waits until it has.
                if self._has_room(cache, others, trunk, trunk):
                    admitted.append((trunk, None))
                break
            if not self._has_room(cache, others, sample, trunk):
                break
            admitted.append((sample, trunk))
            self._waiting.popleft()
        # Prompts of like lengths go together, with little padding.
        admitted.sort(key=lambda entry: entry[0].left)
        self._give_rows(cache, admitted)

    def _has_room(
        self, cache: RowsCache, admitted: list[Sample], sample: Sample, trunk: Trunk | None
    ) -> bool:
        """Return whether a sample may have its rows now, beside those admitted before it."""
        others = [*self._samples, *admitted]
        rows = sum(max(1, len(one.indices)) for one in (*others, sample)) + len(self._trunks)
        if trunk in self._trunks and self._is_last(trunk):
            # It takes over the trunk's own row.
            rows -= 1
        if rows > cache.capacity:
            return False
        asked = [
            (len(one.job.prompt_token_ids), one.end, len(one.indices)) for one in (*others, sample)
        ]
        return not others or cache.fits(asked)

    def _trunk_of(self, sample: Sample, cache: RowsCache) -> Trunk | None:
        """Return what a sample shares with others: a trunk that there is, a new one, or None."""
        if not self._shares or sample.cached:
            return None
        known = [*self._trunks, *(one for one in self._samples if isinstance(one, Trunk))]
        fitting = [trunk for trunk in known if trunk.begins(sample)]
        if fitting:
            return max(fitting, key=lambda trunk: len(trunk.tokens))
        tokens = common_beginning(sample, list(self._waiting)[1:], cache.block_tokens)
        return Trunk(tokens) if tokens and len(self._samples) + 2 < cache.capacity else None

    def _is_last(self, trunk: Trunk | None) -> bool:
        """Return whether but one of those who wait begins with a trunk."""
        return trunk is not None and sum(trunk.begins(one) for one in self._waiting) == 1

    def _give_rows(self, cache: RowsCache, admitted: list[tuple[Sample, Trunk | None]]) -> None:
        """Add rows behind those of the prompts under way: empty ones, or a trunk's.

        Trunks that nobody waits for are let go of.
        """
        kept = [trunk for trunk in self._trunks if any(map(trunk.begins, self._waiting))]
        if not admitted and len(kept) == len(self._trunks):
            return
        first = len(self._samples)
        of_trunk = {id(trunk): first + place for place, trunk in enumerate(self._trunks)}
        empty = iter(cache.add(sum(trunk is None for _, trunk in admitted)))
        sources = [next(empty) if trunk is None else of_trunk[id(trunk)] for _, trunk in admitted]
        cache.arrange([*range(first), *sources, *(of_trunk[id(trunk)] for trunk in kept)])
        self._trunks = kept
        for sample, trunk in admitted:
            sample.cached = 0 if trunk is None else len(trunk.tokens)
            self.shared_tokens += sample.cached
            self._samples.append(sample)

    def _chosen(self) -> tuple[range, list[list[int]]]:
        """Return the rows of the next forward, and the tokens of each.

        All that decode; or where prompts are under way, in turn, and as long as they are more than
        those that decode, several whole ones if they fit, else a part of the first.
        """
        first, limit = self._decoding, self._prefill_tokens
        assert limit is not None
        prompts = self._samples[first:]
        # A decode step of few rows is hardly shorter than one of many.
        prompts_turn = self._prompts_next or len(prompts) > first
        if first and not (prompts and prompts_turn):
            return range(first), [sample.tokens[-1:] for sample in self._samples[:first]]
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

    def _choose(self, rows: range, logits: Tensor) -> list[Update]:
        """Choose the next token of rows all of whose tokens are in the cache."""
        samples = self._samples[rows.start : rows.stop]
        parts = [part for sample in samples for part in sample.split()]
        if len(parts) != len(samples) or any(isinstance(one, Trunk) for one in samples):
            logits = self._part(rows, logits)
        self._samples[rows.start : rows.stop] = parts
        if rows.start >= self._decoding:
            self._decoding += len(parts)
        if not parts:
            return []
        choices = choose_tokens([part.rows[0].sampler for part in parts], logits)
        updates = []
        for part, choice in zip(parts, choices, strict=True):
            text = part.take(choice)
            updates.append(Update(part.job, part.indices[0], text, part.finished))
        return updates

    def _part(self, rows: range, logits: Tensor) -> Tensor:
        """Give each sample of a prompt a row of its own, which shares the prompt's cache.

        Trunks that are ready go behind all others. Return the logits of the samples.
        """
        assert self._cache is not None
        sources = [row for row in rows for _ in self._samples[row].indices]
        ready = [row for row in rows if isinstance(self._samples[row], Trunk)]
        count = len(self._samples)
        behind = [*range(rows.stop, count + len(self._trunks)), *ready]
        self._cache.arrange([*range(rows.start), *sources, *behind])
        self._trunks += [
            one for one in self._samples[rows.start : rows.stop] if isinstance(one, Trunk)
        ]
        index = torch.tensor([source - rows.start for source in sources], dtype=torch.int64)
        return logits.index_select(0, index.to(logits.device))

    def _drop_finished(self) -> None:
        """Let rows that have ended go; the last ones that decode take their places."""
        samples, first = self._samples, self._decoding
        decoding = [row for row in range(first) if not samples[row].finished]
        prompts = [row for row in range(first, len(samples)) if not samples[row].finished]
        if len(decoding) + len(prompts) == len(samples):
            return
        kept = len(decoding)
        moved = iter([row for row in decoding if row >= kept])
        alive = set(decoding)
        self._arrange([row if row in alive else next(moved) for row in range(kept)] + prompts)
        self._decoding = kept

    def _arrange(self, sources: list[int], trunks: list[Trunk] | None = None) -> None:
        """Let sample i be what sample ``sources[i]`` was, and keep some trunks (None: all)."""
        assert self._cache is not None
        kept = self._trunks if trunks is None else trunks
        first = len(self._samples)
        of_trunk = [first + place for place, one in enumerate(self._trunks) if one in kept]
        self._cache.arrange([*sources, *of_trunk])
        self._samples = [self._samples[source] for source in sources]
        self._trunks = list(kept)

    def _make_room(self, error: MemoryBudgetError) -> list[Update]:
        """Let the last row wait once more; a row that does not even fit alone fails."""
        if self._trunks:
            self._shares = False
            self._arrange(list(range(len(self._samples))), [])
            return []
        last = self._samples[-1]
        self._arrange(list(range(len(self._samples) - 1)))
        self._decoding = min(self._decoding, len(self._samples))
        if isinstance(last, Trunk):
            self._shares = False
            return []
        if self._samples:
            last.cached = 0
            self._waiting.appendleft(last)
            return []
        return self._fail(last, error)

    def _begin_anew(self, error: MemoryBudgetError) -> list[Update]:
        """Let all wait for a new cache of half as many rows: the device's memory was short.

        They keep what they have generated. Where not even the fewest rows that are possible had
        room, the first request fails.
        """
        assert self._cache is not None
        assert self._prefill_tokens is not None
        running = [sample for sample in self._samples if not isinstance(sample, Trunk)]
        rows, self._samples, self._decoding = self._cache.capacity, [], 0
        self.close()
        for sample in running:
            sample.cached = 0
        self._waiting.extendleft(reversed(running))
        first = self._waiting[0]
        if rows <= len(first.indices) and self._prefill_tokens <= _FEWEST_PROMPT_TOKENS:
            return self._fail(first, error)
        self._rows_at_once = max(1, rows // 2)
        self._prefill_tokens = max(_FEWEST_PROMPT_TOKENS, self._prefill_tokens // 2)
        return []

    def _fail_longest(self, error: MemoryBudgetError) -> list[Update]:
        """Let the longest of those who wait fail: not even one row of the usual length fits."""
        longest = max(self._waiting, key=lambda sample: sample.end * len(sample.indices))
        return self._fail(longest, error)

    def _fail(self, sample: Sample, error: MemoryBudgetError) -> list[Update]:
        sample.job.error = error
        for row in sample.job.rows:
            row.cancel()
        self._waiting = deque(one for one in self._waiting if not one.finished)
        return [Update(sample.job, index, "", True) for index in sample.indices]

    def close(self) -> None:
        """Give back all memory; requests under way are left as they are."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None
            self._trunks = []
