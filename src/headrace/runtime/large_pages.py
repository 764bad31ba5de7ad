"""Memory in large pages, which the cores read faster.

Host attention reads each byte once, in strips that are scattered over a pool. With pages of 4 KiB
the processor looks up an address for every 64 lines; with pages of 2 MiB hardly ever.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache

from torch import Tensor

_SMALLEST_BYTES = 1 << 22
"""Buffers below this hardly hold a whole large page."""


def prefer_large_pages(buffer: Tensor) -> bool:
    """Ask the system to back a buffer with large pages.

    It must be asked before the buffer is first written. Nothing but speed depends on the answer.

    Args:
        buffer: contiguous, on the CPU, just allocated.

    Returns:
        Whether the system took note.
    """
    size = buffer.numel() * buffer.element_size()
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < _SMALLEST_BYTES:
        return False
    first = -(-buffer.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (buffer.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
    status: int = _madvise()(first, end - first, advice)
    return status == 0


@lru_cache(maxsize=1)
def _madvise() -> ctypes._FuncPtr:  # type: ignore[name-defined]
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
