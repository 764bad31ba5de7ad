"""Exact attention by the CPU's cores over keys and values where they lie in host memory.

Shape suffixes: B rows, E entries (a page as one row sees it), P pages, H key/value heads, G query
heads per key/value head times query tokens (``group * q_len``), T tokens of a page, D head width.

Each key and value is read once for all G queries of its head. Scores and sums are float32; so are
weights, but those of ``amx_bf16`` and ``avx512_bf16`` for three queries or more, which are rounded
to bfloat16 as torch's own attention rounds them.

A call's work is divided over rows, heads and tokens, and the parts are merged by log-sum-exp, so
that all cores are busy even with one row. The kernel is native (``native/``); where it cannot be
had, torch's matrix products do the same more slowly, and ``HostAttention.reason`` says why.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import ConfigurationError, HeadraceError
from headrace.runtime.attention import Partial, Scoring
from headrace.runtime.host_entries import DTYPES, LayerPages, RowEntries, check_tensor
from headrace.runtime.host_fallback import attend_with_torch
from headrace.runtime.native.library import (
    LOADER,
    OFF,
    STATUS,
    Call,
    NativeUnavailableError,
    asked_variant,
    runnable_variants,
    torch_team,
)
from headrace.runtime.native_lane import NativeLane, PreparedCall

TORCH = "torch"
"""The variant's name where the native library is not used."""


class HostAttention:
    """Attends on the CPU, with threads of its own that sleep between calls, or with torch's.

    The first one of a process may build the native library, which takes some seconds. Calls are
    synchronous, may come from any thread, and take turns; the interpreter's lock is free meanwhile.
    Several of these may exist at once.

    Args:
        threads: how many attend, the caller's counted; by default as many as this process has
            cores.
        variant: ``amx_bf16``, ``avx512_bf16``, ``avx512``, ``avx2``, ``portable``, or ``off`` for
            torch; by default ``$HEADRACE_NATIVE``, else the best that this machine runs.
        of_torch: whether torch's threads attend, if they are OpenMP's: for a caller in turn with
            whose calls torch uses the same cores. Its threads, still awake, keep others from them.

    Attributes:
        threads: as above.
        variant: what attends: one of those names, or ``torch``.
        reason: why it is torch, in one line, or None.

    Raises:
        ConfigurationError: ``threads`` or the variant is not allowed, or not had here.
    """

    def __init__(
        self, threads: int | None = None, variant: str | None = None, *, of_torch: bool = False
    ) -> None:
        self.threads = _usual_threads() if threads is None else threads
        if self.threads < 1:
            raise ConfigurationError(f"threads is {threads}; it must be at least 1")
        self.reason: str | None = None
        self._library: ctypes.CDLL | None = None
        self._finalizer: weakref.finalize[..., Any]
        asked = asked_variant(variant)
        team = torch_team() if of_torch else None
        try:
            if asked == OFF:
                raise NativeUnavailableError("the native library is switched off")
            self._library = LOADER.load()
        except NativeUnavailableError as error:
            if asked not in (None, OFF):
                raise ConfigurationError(
                    f"the variant {asked!r} is asked for, but {error}; without it, torch attends"
                ) from error
            self.variant, self.reason = TORCH, str(error)
            self._pool = None
            self._finalizer = weakref.finalize(self, _nothing)
            return
        self.variant = _chosen(asked, runnable_variants(self._library))
        created = self.threads, self.variant.encode()
        if team is None:
            self._pool = self._library.headrace_pool_create(*created)
        else:
            self._pool = self._library.headrace_pool_of_team(*created, team)
        if not self._pool:
            raise ConfigurationError(
                f"threads is {self.threads}; the system does not grant so many, choose fewer"
            )
        self._finalizer = weakref.finalize(self, _destroy, self._library, self._pool)
        # A thread may still attend when the interpreter ends; the threads end with the process.
        self._finalizer.atexit = False

    def attend(
        self,
        query: Tensor,
        pages: LayerPages,
        entries: RowEntries,
        scoring: Scoring,
        result: Partial,
    ) -> Partial:
        """Attend each row's queries to the tokens that it sees.

        All tensors are on the CPU and contiguous. They belong to the call until it returns.

        Args:
            query: grouped queries ``[B, H, G, D]``, in the pages' dtype.
            pages: the layer's keys and values.
            entries: which row sees which pages.
            scoring: scale and soft cap. (A window must be part of the entries.)
            result: float32, is written: output ``[B, H, G, D]``, maximum and total ``[B, H, G]``.
                A row without visible tokens gets output and total 0 and maximum ``-inf``.

        Returns:
            ``result``.

        Raises:
            ValueError: a shape, dtype, device or layout is not what it must be.
            HeadraceError: this was closed, or memory for partial results is lacking.
        """
        self._check_open()
        _check_call(query, pages, entries, scoring, result)
        if self._library is None:
            attend_with_torch(query, pages, entries, scoring, result)
            return result
        call = _call(query, pages, entries, scoring, result)
        self._raise_for(self._library.headrace_attend(self._pool, ctypes.byref(call)))
        return result

    def prepare(
        self,
        query: Tensor,
        pages: LayerPages,
        entries: RowEntries,
        scoring: Scoring,
        result: Partial,
    ) -> PreparedCall:
        """Return a call of ``attend`` for a lane; arguments and errors are the same."""
        _check_call(query, pages, entries, scoring, result)
        call = _call(query, pages, entries, scoring, result)
        return PreparedCall(call, (query, pages, entries, result))

    def lane(self) -> NativeLane | None:
        """Return a new lane of these threads, or None where torch attends."""
        self._check_open()
        if self._library is None or self._pool is None:
            return None
        return NativeLane(self._library, self._pool)

    def stream_read(self, *buffers: Tensor) -> None:
        """Read buffers from end to end with all threads, as fast as they can.

        This is what rates of attention are measured against.

        Args:
            buffers: contiguous, on the CPU; of any dtype.

        Raises:
            HeadraceError: this was closed, or the native library is not had.
        """
        self._check_open()
        if self._library is None:
            raise HeadraceError(f"memory is read by the native library, and {self.reason}")
        for buffer in buffers:
            size = buffer.numel() * buffer.element_size()
            self._library.headrace_stream_read(self._pool, buffer.data_ptr(), size)

    def close(self) -> None:
        """End the threads. No call may be under way."""
        self._finalizer()

    def __enter__(self) -> HostAttention:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise HeadraceError("this HostAttention was closed")

    def _raise_for(self, status: int) -> None:
        if status != 0:
            raise HeadraceError(f"host attention failed: {STATUS.get(status, status)}")


def _nothing() -> None:
    """End no threads, where there are none."""


def _destroy(library: ctypes.CDLL, pool: int) -> None:
    library.headrace_pool_destroy(pool)


def _usual_threads() -> int:
    return len(os.sched_getaffinity(0))


def _chosen(asked: str | None, runnable: Sequence[str]) -> str:
    if asked is not None and asked not in runnable:
        raise ConfigurationError(
            f"the variant {asked!r} is asked for; this machine runs {', '.join(runnable)}"
        )
    return asked or runnable[0]


def _call(
    query: Tensor, pages: LayerPages, entries: RowEntries, scoring: Scoring, result: Partial
) -> Call:
    rows, heads, grouped, width = query.shape
    return Call(
        query.data_ptr(),
        result.output.data_ptr(),
        result.maximum.data_ptr(),
        result.total.data_ptr(),
        *pages.addresses,
        *entries.addresses,
        len(pages.keys),
        rows,
        heads,
        grouped,
        width,
        pages.page_tokens,
        scoring.scale,
        scoring.softcap or 0.0,
        DTYPES[pages.dtype],
    )


def _check_call(
    query: Tensor, pages: LayerPages, entries: RowEntries, scoring: Scoring, result: Partial
) -> None:
    grouped = query.shape[2] if query.dim() == 4 else 0
    shape = [entries.rows, pages.heads, max(1, grouped), pages.width]
    check_tensor("query", query, shape, pages.dtype)
    check_tensor("result.output", result.output, shape, torch.float32)
    check_tensor("result.maximum", result.maximum, shape[:3], torch.float32)
    check_tensor("result.total", result.total, shape[:3], torch.float32)
    if scoring.window is not None:
        raise ValueError(
            f"scoring.window is {scoring.window}; expected None, with the window in the entries"
        )
    if scoring.softcap is not None and not scoring.softcap > 0:
        raise ValueError(f"scoring.softcap is {scoring.softcap}; expected None or above 0")
    if entries.pages_needed > pages.count:
        raise ValueError(
            f"entries names page {entries.pages_needed - 1}; pages has {pages.count} pages"
        )
    if entries.page_tokens_needed > pages.page_tokens:
        raise ValueError(
            f"entries has a page of {entries.page_tokens_needed} tokens; pages holds "
            f"{pages.page_tokens} each"
        )
