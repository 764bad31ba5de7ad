"""The native kernel over the pages of a store.

Shape suffixes: B rows, E entries, H key/value heads, G queries per key/value head, T tokens of a
page, D head width.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import HeadraceError
from headrace.runtime.attention import Partial, Scoring
from headrace.runtime.host_pages import HostPages
from headrace.runtime.native_library import NativeUnavailableError, native_library
from headrace.runtime.pages import PageKind
from headrace.runtime.store import PageStore

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_WORD_BITS = 64
_CORES_PER_SPARE = 8
"""Of so many cores one is left to the link and to the thread that launches the device's work."""


class _Call(ctypes.Structure):
    """``headrace_call`` of ``native/headrace_attention.h``, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "output", "maximum", "total")),
        *((name, ctypes.c_void_p) for name in ("key_extents", "value_extents", "extent_first")),
        *((name, ctypes.c_void_p) for name in ("row_entry", "entry_page", "entry_token")),
        *((name, ctypes.c_void_p) for name in ("entry_mask", "mask_words")),
        *((name, ctypes.c_int64) for name in ("extents", "rows", "heads", "grouped")),
        *((name, ctypes.c_int64) for name in ("width", "page_tokens")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


@dataclass(frozen=True, eq=False)
class _Entries:
    """A set of pages as the library takes them; the arrays live as long as this."""

    row_entry: NDArray[np.int64]
    page: NDArray[np.int64]
    token: NDArray[np.int64]
    mask: NDArray[np.int64] | None
    words: NDArray[np.uint64] | None

    @classmethod
    def of(cls, pages: HostPages) -> _Entries:
        """Return pages as the library takes them."""
        token = np.concatenate([[0], np.cumsum(pages.length)]).astype(np.int64)
        if pages.visible is None:
            return cls(pages.row_entry, pages.page, token, None, None)
        words_each = -(-pages.visible.shape[1] // _WORD_BITS)
        padded = np.zeros((len(pages.page), words_each * _WORD_BITS), dtype=np.bool_)
        padded[:, : pages.visible.shape[1]] = pages.visible
        words = np.packbits(padded, axis=1, bitorder="little").view(np.uint64)
        mask = np.arange(len(pages.page), dtype=np.int64) * words_each
        return cls(
            pages.row_entry, pages.page, token, mask, np.ascontiguousarray(words).reshape(-1)
        )


class ThreadPool:
    """Threads of the library, which wait for calls.

    Args:
        threads: how many attend, the caller's counted; by default seven eighths of the cores, or
            all of fewer than eight.

    Raises:
        NativeUnavailableError: the library cannot be had.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._library = native_library()
        cores = len(os.sched_getaffinity(0))
        self.threads = cores - cores // _CORES_PER_SPARE if threads is None else threads
        self.variant = _variant(self._library)
        self._pool = self._library.headrace_pool_create(self.threads, self.variant.encode())
        if not self._pool:
            raise NativeUnavailableError(
                f"the native library starts no {self.threads} threads of {self.variant!r}"
            )

    def attend(self, call: _Call) -> None:
        """Run a call; the interpreter's lock is free meanwhile.

        Raises:
            HeadraceError: sizes or the dtype are not allowed, or there is no memory.
        """
        pool = ctypes.c_void_p(self._pool)
        status = self._library.headrace_attend(pool, ctypes.byref(call))
        if status != 0:
            raise HeadraceError(f"the native attention ended with status {status}")

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._library.headrace_pool_destroy(ctypes.c_void_p(self._pool))
            self._pool = None


def _variant(library: ctypes.CDLL) -> str:
    runs = library.headrace_variants().decode().split(",")
    asked = os.environ.get("HEADRACE_NATIVE")
    if asked and asked not in runs:
        raise NativeUnavailableError(f"HEADRACE_NATIVE is {asked!r}; here run {', '.join(runs)}")
    return asked or str(runs[0])


class NativeHostKernel:
    """Attends to pages of a store with the native library.

    Args:
        store: the pages.
        pool: the threads.
    """

    def __init__(self, store: PageStore, pool: ThreadPool) -> None:
        self._store = store
        self._pool = pool
        self._entries: WeakKeyDictionary[HostPages, _Entries] = WeakKeyDictionary()
        self._extents: dict[int, tuple[int, Sequence[NDArray[np.int64]]]] = {}

    def attend(
        self, layer: int, query: Tensor, entries: HostPages, scoring: Scoring, result: Partial
    ) -> None:
        """Attend a layer's queries ``[B, H, G, D]`` to their entries; write into ``result``."""
        prepared = self._entries.get(entries)
        if prepared is None:
            prepared = self._entries[entries] = _Entries.of(entries)
        keys, values, first = self._extents_of(layer)
        rows, heads, grouped, width = query.shape
        self._pool.attend(
            _Call(
                query.data_ptr(),
                result.output.data_ptr(),
                result.maximum.data_ptr(),
                result.total.data_ptr(),
                keys.ctypes.data,
                values.ctypes.data,
                first.ctypes.data,
                prepared.row_entry.ctypes.data,
                prepared.page.ctypes.data,
                prepared.token.ctypes.data,
                None if prepared.mask is None else prepared.mask.ctypes.data,
                None if prepared.words is None else prepared.words.ctypes.data,
                len(keys),
                rows,
                heads,
                grouped,
                width,
                self._store.block_tokens,
                scoring.scale,
                scoring.softcap or 0.0,
                _DTYPES[query.dtype],
            )
        )

    def _extents_of(self, layer: int) -> Sequence[NDArray[np.int64]]:
        """Return the addresses of the layer's extents of keys and of values, and their pages."""
        known = self._extents.get(layer)
        if known is None or known[0] != self._store.growths:
            extents = self._store.extents(PageKind.KV)
            known = (
                self._store.growths,
                (
                    np.array([one.tensors[layer][0].data_ptr() for one in extents], dtype=np.int64),
                    np.array([one.tensors[layer][1].data_ptr() for one in extents], dtype=np.int64),
                    np.array(
                        [*(one.first for one in extents), sum(one.count for one in extents)],
                        dtype=np.int64,
                    ),
                ),
            )
            self._extents[layer] = known
        return known[1]
