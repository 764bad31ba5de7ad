"""Prompts that begin alike: their common part goes through the model once, and is stored once.

Such a part is a trunk: a row of the cache without a request of its own. Whoever begins with its
tokens gets a row that shares its pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.engine.sample import Job, Sample

_WINDOW = 64
"""Requests that are looked at for a common beginning."""


class Trunk(Sample):
    """The common beginning of several prompts.

    Args:
        tokens: of the beginning.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(Job("", [], [], 0), [], list(tokens))

    @property
    def finished(self) -> bool:
        """A trunk stays until it is of no more use."""
        return False

    def split(self) -> list[Sample]:
        """Nothing is generated from a trunk itself."""
        return []

    def begins(self, sample: Sample) -> bool:
        """Return whether a sample's tokens begin with the trunk's, and go on after them."""
        count = len(self.tokens)
        return len(sample.tokens) > count and sample.tokens[:count] == self.tokens


def common_beginning(first: Sample, others: Iterable[Sample], block_tokens: int) -> list[int]:
    """Return the beginning that a sample best shares with others, or nothing.

    It is the one that spares most tokens: its length, times those who share it besides the first.
    It ends with a block, so that all of it is in pages that can be shared.

    Args:
        first: who is next.
        others: who waits behind it.
        block_tokens: tokens of a page.
    """
    own = np.asarray(first.tokens)
    lengths = sorted(
        (
            _alike(own, np.asarray(other.tokens)) // block_tokens * block_tokens
            for _, other in zip(range(_WINDOW), others, strict=False)
        ),
        reverse=True,
    )
    spared = [length * (place + 1) for place, length in enumerate(lengths)]
    best = max(range(len(spared)), key=spared.__getitem__, default=-1)
    return first.tokens[: lengths[best]] if best >= 0 and lengths[best] else []


def _alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Return how many tokens two prompts begin alike with, less one that must follow in each."""
    count = min(len(one), len(other)) - 1
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else max(0, count)
