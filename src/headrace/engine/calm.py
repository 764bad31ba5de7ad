"""Keeps Python's garbage collector from stopping a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def calm_collector(*, tidy: bool = False) -> Iterator[None]:
    """Let the collector leave alone, for a while, everything that exists now.

    A full collection looks at every object of torch and transformers; one of half a second was seen
    in the middle of steps of 0.3 s. What is made meanwhile is still collected.

    Args:
        tidy: whether everything that nobody needs any more is collected before: models and caches
            of earlier work, whose memory would count. That takes some tenths of a second.
    """
    gc.collect(2 if tidy else 1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
