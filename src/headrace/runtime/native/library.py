"""Finds, builds and loads the native library, and describes its functions to ``ctypes``.

The library that was installed with the package is used if it was made of the sources that lie
beside it. Otherwise, as in a source tree, it is built on first use and kept in the folder
``native`` beside the stored profiles.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from pathlib import Path
from typing import ClassVar

import torch

from headrace.errors import ConfigurationError
from headrace.runtime.native import build

ABI = 2
"""``HEADRACE_NATIVE_ABI`` of ``headrace_attention.h``."""

VARIANTS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "portable")
"""Names of all variants; a machine has some of them."""

OFF = "off"

_LOG = logging.getLogger(__name__)


class NativeUnavailableError(Exception):
    """The library cannot be had; the message, one line, says why."""


class Call(ctypes.Structure):
    """``headrace_call``, field by field."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("query", "output", "maximum", "total")),
        *((name, ctypes.c_void_p) for name in ("key_extents", "value_extents", "extent_first")),
        *((name, ctypes.c_void_p) for name in ("row_entry", "entry_page", "entry_token")),
        *((name, ctypes.c_void_p) for name in ("entry_mask", "mask_words")),
        *((name, ctypes.c_int64) for name in ("extents", "rows", "heads", "grouped")),
        *((name, ctypes.c_int64) for name in ("width", "page_tokens")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    ]


class Word(ctypes.Structure):
    """``headrace_word``: a number in memory that device and host both reach."""

    _fields_: ClassVar = [("address", ctypes.c_void_p), ("number", ctypes.c_int32)]


class Done(ctypes.Structure):
    """``headrace_done``: how a call of a lane ended."""

    _fields_: ClassVar = [
        ("status", ctypes.c_int32),
        ("start_s", ctypes.c_double),
        ("finish_s", ctypes.c_double),
        ("ahead_s", ctypes.c_double),
    ]


STATUS = {
    1: "a size is not allowed",
    2: "there is not enough host memory",
    3: "the device made no queries within two minutes",
    4: "an earlier layer failed, or the cache was closed",
}
"""What a ``headrace_status`` other than 0 says."""


def torch_team() -> ctypes.c_void_p | None:
    """Return OpenMP's function that runs work on torch's threads, or None where torch has none."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p)


def asked_variant(variant: str | None = None) -> str | None:
    """Return the variant that is asked for, by argument or by ``$HEADRACE_NATIVE``, or None.

    Raises:
        ConfigurationError: there is no such variant.
    """
    where = "HEADRACE_NATIVE" if variant is None else "variant"
    asked = variant or os.environ.get("HEADRACE_NATIVE") or None
    if asked is not None and asked not in (*VARIANTS, OFF):
        allowed = ", ".join((*VARIANTS, OFF))
        raise ConfigurationError(f"{where} is {asked!r}; allowed are {allowed}")
    return asked


class Loader:
    """Loads the library once, or remembers why it cannot be had.

    Args:
        cache: where built libraries are kept; by default ``native`` beside the profiles.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._reason = ""

    def load(self) -> ctypes.CDLL:
        """Return the library; the first call may build it, which takes some seconds.

        Raises:
            NativeUnavailableError: it cannot be had.
        """
        with self._lock:
            if self._library is None and not self._reason:
                try:
                    self._library = self._installed() or self._built()
                except build.NativeBuildError as error:
                    self._reason = str(error)
            if self._library is None:
                raise NativeUnavailableError(self._reason)
            return self._library

    def _installed(self) -> ctypes.CDLL | None:
        for path in sorted(build.FOLDER.glob("_headrace_native*.so")):
            library = _open(path)
            if library is not None:
                return library
        return None

    def _built(self) -> ctypes.CDLL:
        compiler = build.find_compiler()
        path = build.library_path(self._cache or _cache_folder(), compiler)
        # One that cannot be opened is damaged, or of another machine: it is built anew.
        library = _open(path) if path.exists() else None
        if library is None:
            _LOG.info("building the native library of host attention into %s", path)
            build.build(compiler, path)
            library = _open(path)
        if library is None:
            raise build.NativeBuildError(f"{path} was built but cannot be loaded")
        return library


def _cache_folder() -> Path:
    # Imported here: probes of the hardware are much to load for a path.
    from headrace.hardware.store import cache_directory

    return cache_directory().parent / "native"


def _open(path: Path) -> ctypes.CDLL | None:
    """Return a library, or None if it cannot be loaded or is of other sources."""
    try:
        library = ctypes.CDLL(str(path))
        library.headrace_source_hash.restype = ctypes.c_char_p
        if library.headrace_abi() != ABI:
            return None
        if library.headrace_source_hash().decode() != build.source_hash():
            return None
    except (OSError, AttributeError):
        return None
    library.headrace_variants.restype = ctypes.c_char_p
    library.headrace_pool_create.restype = ctypes.c_void_p
    library.headrace_pool_create.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.headrace_pool_of_team.restype = ctypes.c_void_p
    library.headrace_pool_of_team.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    library.headrace_pool_destroy.restype = None
    library.headrace_pool_destroy.argtypes = [ctypes.c_void_p]
    library.headrace_attend.argtypes = [ctypes.c_void_p, ctypes.POINTER(Call)]
    library.headrace_lane_create.restype = ctypes.c_void_p
    library.headrace_lane_create.argtypes = [ctypes.c_void_p]
    library.headrace_lane_destroy.restype = None
    library.headrace_lane_destroy.argtypes = [ctypes.c_void_p]
    library.headrace_lane_push.argtypes = [
        ctypes.c_void_p,
        *(ctypes.POINTER(part) for part in (Call, Word, Word, Done)),
    ]
    library.headrace_stream_read.restype = ctypes.c_uint64
    library.headrace_stream_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return library


def runnable_variants(library: ctypes.CDLL) -> tuple[str, ...]:
    """Return the variants that this machine runs, best first."""
    return tuple(library.headrace_variants().decode().split(","))


LOADER = Loader()
"""The process's own."""
