"""Whether attention over pages runs in kernels of our own on a GPU, and if not, why.

They are written in Triton (``page_kernels``), which comes with torch's CUDA builds and wants a C
compiler the first time. Without them torch's own operations do the same with more launches.
"""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

SWITCH = "HEADRACE_TRITON"
"""Environment variable; ``off`` leaves the kernels unused."""

MOST_QUERIES = 64
"""Queries of a key/value head up to which they are made for: a decode step's."""


def kernels_for(query_BHGD: Tensor) -> ModuleType | None:
    """Return ``page_kernels`` if it is to be used for queries like these, else None."""
    if not query_BHGD.is_cuda or query_BHGD.shape[2] > MOST_QUERIES:
        return None
    return _loaded(query_BHGD.device)[0]


def has_kernels(device: torch.device) -> bool:
    """Return whether there are kernels on a device."""
    return device.type == "cuda" and _loaded(device)[0] is not None


def reason_without(device: torch.device) -> str | None:
    """Return why there are no kernels on a device, in one line, or None if there are."""
    return _loaded(device)[1] if device.type == "cuda" else None


@lru_cache(maxsize=8)
def _loaded(device: torch.device) -> tuple[ModuleType | None, str | None]:
    if os.environ.get(SWITCH) == "off":
        return None, f"{SWITCH} is off"
    try:
        kernels = importlib.import_module("headrace.runtime.page_kernels")
        _try(kernels, device)
    except Exception as error:  # whatever is missing or broken: compiler, driver, Triton itself
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return kernels, None


def _try(kernels: ModuleType, device: torch.device) -> None:
    """Attend to one page, which fails where kernels cannot be compiled."""
    from headrace.runtime.attention import Scoring, empty_partial

    page = torch.zeros((1, 1, 16, 16), dtype=torch.float16, device=device)
    query = page[:, :, :1]
    result = empty_partial(query.shape, device)
    kernels.attend_pages(query, page, page, Scoring(1.0), result)
    torch.cuda.synchronize(device)
