"""How long some work takes: warmed up, repeated, and, where that is how it comes, after a wait."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

REPEATS = 7
WAIT_S = 0.01
"""About as long as a layer waits for emulated cores: threads fall asleep, caches cool."""


def median_s(
    work: Callable[[], object],
    device: torch.device,
    in_a_row: int = 1,
    *,
    wait_s: float = 0.0,
) -> float:
    """Return the median seconds of some work, after a warm-up.

    Args:
        work: what is done.
        device: where it is done.
        in_a_row: how often, each time that is timed; one of them counts.
        wait_s: pause before each time.
    """
    seconds = []
    with no_collection():
        for _ in range(REPEATS + 1):
            if wait_s:
                time.sleep(wait_s)
            start_s = time.perf_counter()
            for _ in range(in_a_row):
                work()
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            seconds.append((time.perf_counter() - start_s) / in_a_row)
    return statistics.median(seconds[1:])


@contextmanager
def no_collection() -> Iterator[None]:
    """Put off garbage collections, which would be counted as work; decoding runs without, too."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
