"""The native thread that attends for a GPU: it needs neither the interpreter nor its lock.

The thread that launches the device's work holds that lock most of the time. Whoever needed it
between the device's signal and the cores' work would be late in every layer.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.runtime.native.library import STATUS, Call, Done, Word

_PENDING = -1


@dataclass(frozen=True)
class PreparedCall:
    """A call whose memory is kept for as long as this is.

    Attributes:
        call: what the library is told.
        keeps: owners of the memory that it names.
    """

    call: Call
    keeps: tuple[object, ...]


class NativeLane:
    """Attends call by call, each as soon as the device has written a number.

    Args:
        library: the native library.
        pool: the threads that attend, of which this one takes part.

    Raises:
        HeadraceError: the system does not grant the thread.
    """

    def __init__(self, library: ctypes.CDLL, pool: int) -> None:
        self._library = library
        self._lane = library.headrace_lane_create(pool)
        if not self._lane:
            raise HeadraceError("the system does not grant a thread for the host's attention")
        self._under_way: deque[tuple[Done, PreparedCall]] = deque()
        self._finalizer = weakref.finalize(self, library.headrace_lane_destroy, self._lane)
        # The device may never ask for what was pushed; the thread ends with the process.
        self._finalizer.atexit = False

    def push(self, prepared: PreparedCall, signal: tuple[int, int], flag: tuple[int, int]) -> Done:
        """Attend as soon as a signal is reached, and raise a flag.

        Args:
            prepared: the call.
            signal: address of an int32, and the number that the device will write there.
            flag: address of an int32, and the number to which it is raised.

        Returns:
            How it ended, once its status is not negative any more.
        """
        while self._under_way and self._under_way[0][0].status != _PENDING:
            self._under_way.popleft()
        done = Done(_PENDING)
        status = self._library.headrace_lane_push(
            self._lane,
            ctypes.byref(prepared.call),
            ctypes.byref(Word(*signal)),
            ctypes.byref(Word(*flag)),
            ctypes.byref(done),
        )
        if status != 0:
            raise HeadraceError(f"the host's attention failed: {STATUS.get(status, status)}")
        self._under_way.append((done, prepared))
        return done

    def close(self) -> None:
        """End the thread, once it has done what the device has asked for."""
        self._finalizer()
        self._under_way.clear()
