"""Holding a lane to an emulated rate: pieces of work that take as long as they shall."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Pacer:
    """Lets pieces of work seem to take as long as they would on another machine.

    The real work is quicker, and is done at once; then the thread sleeps, which costs no core. A
    piece begins when it is ready or when the one before has ended, whichever is later, however late
    its thread wakes up: what is emulated has no wake-up latency of its own. Several threads may use
    one pacer; their pieces follow each other in the order of the calls.

    Args:
        clock: returns the time in seconds.
        sleep: sleeps for so many seconds, or fewer.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._free_s = -math.inf
        self._lock = threading.Lock()

    def hold(
        self, ready_s: float, seconds: float, done_s: float = -math.inf
    ) -> tuple[float, float]:
        """Sleep until a piece of work has ended; return its start and finish, by the clock.

        Args:
            ready_s: when it could have begun, had nothing been before it.
            seconds: how long it shall take.
            done_s: when the real work was done, before which it cannot have ended.
        """
        with self._lock:
            start_s = max(self._free_s, ready_s)
            finish_s = self._free_s = max(start_s + seconds, done_s)
        while (left_s := finish_s - self._clock()) > 0:
            self._sleep(left_s)
        return start_s, finish_s
