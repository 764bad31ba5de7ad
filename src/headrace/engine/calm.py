"""Keeps Python's garbage collector from stopping a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def calm_collector() -> Iterator[None]:
    """Let the collector leave alone, for a while, everything that exists now.

    A full collection looks at every object of torch and transformers; one of half a second was seen
    in the middle of steps of 0.3 s. What is made meanwhile is still collected.
    """
    gc.collect(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
