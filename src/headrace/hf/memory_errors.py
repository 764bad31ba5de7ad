"""Memory that an allocator does not grant, as an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.errors import MemoryBudgetError

_OF_THE_HOST = "can't allocate memory"
"""How torch says that the host has none."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise ``MemoryBudgetError`` where torch raises that memory is short.

    The traceback of torch's error is dropped: its frames hold what the forward had allocated, which
    whoever tries again needs.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryBudgetError(
            f"the device is out of memory ({_first_line(error)}); give a lower gpu_memory, "
            "max_rows or prefill_tokens, or end what else uses the device"
        ) from error.with_traceback(None)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _OF_THE_HOST not in str(error):
            raise
        raise MemoryBudgetError(
            f"the host is out of memory ({_first_line(error)}); give a lower host_memory or "
            "max_rows, or end what else runs"
        ) from error.with_traceback(None)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__
