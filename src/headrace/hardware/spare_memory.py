"""Gives back memory that torch keeps for later use, though nobody uses it."""

from __future__ import annotations

import gc

import torch


def release_spare_memory() -> None:
    """Collect garbage, and give back what torch's allocators keep of the GPU's and pinned memory.

    Torch never gives pinned memory back by itself, and rounds each piece up to a power of two. An
    asynchronous copy from the GPU to the host makes such a piece, so that a cache offloaded in
    this way can take from the machine, for as long as the process lives, more than it ever held.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        _release_pinned()


def _release_pinned() -> None:
    # ``torch.accelerator.empty_host_cache`` is younger than the oldest torch that will do.
    for module, name in (
        (torch.accelerator, "empty_host_cache"),
        (torch._C, "_host_emptyCache"),
    ):
        release = getattr(module, name, None)
        if release is not None:
            release()
            return
