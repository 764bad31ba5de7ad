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

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from headrace.engine.request import FinishReason, SamplingParams, TokenLogprob
from headrace.engine.roster import Roster
from headrace.engine.row import Row
from headrace.engine.sample import Job, Sample
from headrace.engine.sampling import Choice, choose_tokens
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
        token_ids: the tokens that came.
        logprobs: one entry for each of them, or None if they were not asked for.
        finish_reason: why the sample has ended; None before.
    """

    job: Job
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None

    @property
    def finished(self) -> bool:
        """Whether the sample has ended."""
        return self.finish_reason is not None

    def news(self) -> str:
        """Return the text that may be shown, and that was not returned yet.

        Tokens become text only where somebody asks, for that takes time.
        """
        return self.job.rows[self.index].news()


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
        self._asked_tokens = prefill_tokens
        self._cache: RowsCache | None = None
        self._waiting: deque[Sample] = deque()
        self._roster = Roster()
        self._shares = share_prompts
        self.shared_tokens = 0
        """Tokens of prompts that did not go through the model, for others began with them."""
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

    def cancel(self, job: Job) -> list[Update]:
        """End a request; what its samples have made stays.

        Returns:
            The end of each sample that had not ended.
        """
        ended = [_cancelled(job, index) for index, row in enumerate(job.rows) if not row.finished]
        self._waiting = deque(sample for sample in self._waiting if not sample.finished)
        if self._cache is not None:
            self._roster.drop_finished(self._cache)
        return ended

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended."""
        return bool(self._waiting or self._roster.samples)

    @property
    def wants_more(self) -> bool:
        """Whether further requests would soon find room."""
        taken = sum(len(sample.indices) for sample in (*self._roster.samples, *self._waiting))
        return taken < 2 * self._max_rows

    @property
    def opened(self) -> bool:
        """Whether there is a cache: not before the first step, nor if none fits the budgets."""
        return self._cache is not None

    @property
    def decoding(self) -> int:
        """Rows that decode."""
        return self._roster.decoding

    @property
    def cache(self) -> RowsCache:
        """The cache; opened, with a plan for the requests that wait, when it is first needed.

        Raises:
            MemoryBudgetError: not even one of them fits the budgets.
        """
        if self._cache is None:
            self._cache = self._open()
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
                asked = self._asked_tokens
                return RowsCache(self._model, workload, self._options, prefill_tokens=asked)
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
            if not self._roster.samples:
                # Who waits needs more rows at once than the cache was opened for, or than are left
                # beside trunks, which would be there again.
                self._shares = self._shares and not self._roster.trunks
                self.close()
                self._admit(self.cache)
        except MemoryBudgetError as error:
            return Step(self._fail_longest(error), 0)
        cache = self.cache
        roster = self._roster
        rows, tokens = roster.next_forward(cache.prefill_tokens, self._prompts_next)
        decoded = len(rows) if rows.start < roster.decoding else 0
        self._prompts_next = decoded > 0
        try:
            logits = cache.forward(rows, tokens, *roster.following(rows, tokens))
        except MemoryBudgetError as error:
            if cache.broken:
                return Step(self._begin_anew(error), 0)
            return Step(self._make_room(cache, error), 0)
        samples = roster.samples[rows.start : rows.stop]
        for sample, some in zip(samples, tokens, strict=True):
            sample.cached += len(some)
        if samples[-1].left:
            return Step([], 0)
        updates = self._choose(cache, rows, logits)
        roster.drop_finished(cache)
        return Step(updates, decoded)

    def _admit(self, cache: RowsCache) -> None:
        """Give rows to those who wait, in their order, while there is room."""
        admitted: list[tuple[Sample, Trunk | None]] = []
        while self._waiting:
            sample = self._waiting[0]
            trunk = self._trunk_of(sample, cache)
            if trunk is not None and trunk.left and trunk in self._roster.samples:
                break
            others = [one for one, _ in admitted]
            if trunk is not None and trunk not in self._roster.trunks:
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
        # Trunks that nobody waits for are let go of.
        kept = [one for one in self._roster.trunks if any(map(one.begins, self._waiting))]
        self._roster.admit(cache, admitted, kept)
        self.shared_tokens += sum(sample.cached for sample, _ in admitted)

    def _has_room(
        self, cache: RowsCache, admitted: list[Sample], sample: Sample, trunk: Trunk | None
    ) -> bool:
        """Return whether a sample may have its rows now, beside those admitted before it."""
        others = [*self._roster.samples, *admitted]
        rows = sum(max(1, len(one.indices)) for one in (*others, sample)) + len(self._roster.trunks)
        if trunk in self._roster.trunks and self._is_last(trunk):
            # It takes over the trunk's own row.
            rows -= 1
        if rows > cache.capacity:
            return False
        asked = [*self._roster.needs(cache), *(one.need() for one in (*admitted, sample))]
        return not others or cache.fits(asked)

    def _trunk_of(self, sample: Sample, cache: RowsCache) -> Trunk | None:
        """Return what a sample shares with others: a trunk that there is, a new one, or None."""
        if not self._shares or sample.cached:
            return None
        fitting = [trunk for trunk in self._roster.known_trunks if trunk.begins(sample)]
        if fitting:
            return max(fitting, key=lambda trunk: len(trunk.tokens))
        tokens = common_beginning(sample, list(self._waiting)[1:], cache.block_tokens)
        return Trunk(tokens) if tokens and len(self._roster.samples) + 2 < cache.capacity else None

    def _is_last(self, trunk: Trunk | None) -> bool:
        """Return whether but one of those who wait begins with a trunk."""
        return trunk is not None and sum(trunk.begins(one) for one in self._waiting) == 1

    def _choose(self, cache: RowsCache, rows: range, logits: Tensor) -> list[Update]:
        """Choose the next token of rows all of whose tokens are in the cache."""
        parts, logits = self._roster.part(cache, rows, logits)
        if not parts:
            return []
        choices = choose_tokens([part.rows[0].sampler for part in parts], logits)
        return [_taken(part, choice) for part, choice in zip(parts, choices, strict=True)]

    def _make_room(self, cache: RowsCache, error: MemoryBudgetError) -> list[Update]:
        """Let the last row wait once more; a row that does not even fit alone fails."""
        roster = self._roster
        if roster.trunks:
            self._shares = False
            roster.drop_trunks(cache)
            return []
        last = roster.drop_last(cache)
        if isinstance(last, Trunk):
            self._shares = False
            return []
        if roster.samples:
            last.cached = 0
            self._waiting.appendleft(last)
            return []
        if cache.uneven and not last.begun_again:
            # The pools are as rows before it needed them; those of a new cache are not.
            last.cached, last.begun_again = 0, True
            self._waiting.appendleft(last)
            self.close()
            return []
        return self._fail(last, error)

    def _begin_anew(self, error: MemoryBudgetError) -> list[Update]:
        """Let all wait for a new cache of half as many rows: the device's memory was short.

        They keep what they have generated. Where not even the fewest rows that are possible had
        room, the first request fails.
        """
        assert self._cache is not None
        rows, tokens = self._cache.capacity, self._cache.prefill_tokens
        running = self._roster.clear()
        self.close()
        for sample in running:
            sample.cached = 0
        self._waiting.extendleft(reversed(running))
        first = self._waiting[0]
        if rows <= len(first.indices) and tokens <= _FEWEST_PROMPT_TOKENS:
            return self._fail(first, error)
        self._rows_at_once = max(1, rows // 2)
        self._asked_tokens = max(_FEWEST_PROMPT_TOKENS, tokens // 2)
        return []

    def _fail_longest(self, error: MemoryBudgetError) -> list[Update]:
        """Let the longest of those who wait fail: not even one row of the usual length fits."""
        longest = max(self._waiting, key=lambda sample: sample.end * len(sample.indices))
        return self._fail(longest, error)

    def _fail(self, sample: Sample, error: MemoryBudgetError) -> list[Update]:
        sample.job.error = error
        rows = sample.job.rows
        ended = [
            _cancelled(sample.job, index) for index, row in enumerate(rows) if not row.finished
        ]
        self._waiting = deque(one for one in self._waiting if not one.finished)
        return ended

    def close(self) -> None:
        """Give back all memory; requests under way are left as they are."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None
            self._roster.trunks = []


def _taken(sample: Sample, choice: Choice) -> Update:
    """Add the next token to one sample."""
    sample.take(choice)
    (index,), (row,) = sample.indices, sample.rows
    tokens = (choice.token_id,)
    return Update(sample.job, index, tokens, row.newest_logprobs, row.finish_reason)


def _cancelled(job: Job, index: int) -> Update:
    """End a sample."""
    row = job.rows[index]
    row.cancel()
    logprobs = None if row.newest_logprobs is None else ()
    return Update(job, index, (), logprobs, row.finish_reason)
