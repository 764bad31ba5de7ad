"""A batch of rows that stay together: their prompts in groups, then one token a row and step.

Shape suffixes: B rows, S columns of the padded prompts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from headrace.hf.rows_cache import RowsCache


class RowsBatch:
    """Runs a batch with a cache for rows.

    Column-by-column, a step is one forward over all rows, so that a layer's weights are brought in
    once for all of them. Row-by-row, it is one for each of several batches, one after the other.

    Args:
        ids: token ids of the prompts ``[B, S]``, padded on the left.
        mask: their attention mask.
        cache: an empty cache with room for the rows.
        batches: forwards of a step.
    """

    def __init__(self, ids: Tensor, mask: Tensor, cache: RowsCache, batches: int = 1) -> None:
        self._cache = cache
        self._prompts: list[list[int]] = [
            row[seen.bool()].tolist() for row, seen in zip(ids.cpu(), mask.cpu(), strict=True)
        ]
        rows = len(self._prompts)
        bounds = [rows * batch // batches for batch in range(batches + 1)]
        self._batches = [range(*both) for both in pairwise(bounds)]
        self.forward_s: list[float] = []
        """Seconds of each step, up to when its logits were there: the prompts first."""

    @property
    def link_bytes(self) -> int:
        """Bytes that a step brings to the device."""
        paged = self._cache.paged
        return sum(paged.decode_program(rows).link_bytes for rows in self._batches)

    def prefill(self) -> Tensor:
        """Run the prompts; return the logits of the next token, float32 ``[B, V]``."""
        start_s = time.perf_counter()
        rows = self._cache.add(len(self._prompts))
        forwards = [(group, part) for group in self._groups(rows) for part in self._parts(group)]
        first_step = self._batches[0], [[0]]
        logits: dict[int, Tensor] = {}
        for (group, part), (after, inputs) in pairwise([*forwards, first_step]):
            longest = max(map(len, inputs))
            logits[group.start] = self._cache.forward(group, part, after, longest)
        return self._noted(torch.cat([*logits.values()]), start_s)

    def _groups(self, rows: range) -> Iterator[range]:
        longest = max(len(prompt) for prompt in self._prompts)
        at_once = max(1, self._cache.prefill_tokens // longest)
        for first in range(rows.start, rows.stop, at_once):
            yield range(first, min(first + at_once, rows.stop))

    def _parts(self, rows: range) -> Iterator[list[list[int]]]:
        """Yield some rows' prompts: all at once, or a single one in parts."""
        prompts = self._prompts[rows.start : rows.stop]
        limit = self._cache.prefill_tokens
        if len(prompts) > 1:
            yield prompts
            return
        for start in range(0, len(prompts[0]), limit):
            yield [prompts[0][start : start + limit]]

    def step(self, tokens: Tensor) -> Tensor:
        """Run one token a row, int64 ``[B]``; return the logits of the next."""
        start_s = time.perf_counter()
        new = [[token] for token in tokens.tolist()]
        following = [*self._batches[1:], self._batches[0]]
        logits = torch.cat(
            [
                self._cache.forward(rows, new[rows.start : rows.stop], after)
                for rows, after in zip(self._batches, following, strict=True)
            ]
        )
        return self._noted(logits, start_s)

    def _noted(self, logits: Tensor, start_s: float) -> Tensor:
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
        self.forward_s.append(time.perf_counter() - start_s)
        return logits
