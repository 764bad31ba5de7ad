"""The native library of the host's attention: built on first use, kept, and loaded.

It has a plain C interface (``native/headrace_attention.h``) and needs neither torch's nor Python's
headers, so that any C++17 compiler will do. What was built is kept beside the profiles, under a
name made of the sources, the flags and the compiler, so that a change of any builds it anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from headrace.hardware.store import cache_directory

_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_ABI = 1
_COMPILE_TIMEOUT_S = 300


class NativeUnavailableError(Exception):
    """The library cannot be had; the message says why."""


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL:
    """Return the library, built if need be.

    Raises:
        NativeUnavailableError: there is no compiler, or it fails, or the library is switched off.
    """
    if os.environ.get("HEADRACE_NATIVE") == "off":
        raise NativeUnavailableError("HEADRACE_NATIVE is 'off'")
    compiler = _compiler()
    folder = Path(str(files("headrace").joinpath("runtime", "native")))
    sources = sorted(folder.glob("*.cpp"))
    key = hashlib.sha256(_version(compiler).encode())
    for part in (*sources, *sorted(folder.glob("*.h"))):
        key.update(part.name.encode() + part.read_bytes())
    key.update(" ".join(_FLAGS).encode())
    path = cache_directory().parent / "native" / f"headrace-{key.hexdigest()[:16]}.so"
    if not path.exists():
        _build(compiler, sources, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error
    if library.headrace_abi() != _ABI:
        raise NativeUnavailableError(f"{path} has another interface than {_ABI}")
    library.headrace_pool_create.restype = ctypes.c_void_p
    library.headrace_variants.restype = ctypes.c_char_p
    return library


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise NativeUnavailableError(
        f"there is no C++ compiler ({asked or 'g++, clang++, c++'}); install one, or set CXX"
    )


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _build(compiler: str, sources: list[Path], path: Path) -> None:
    """Build beside the final place and move there, so that two builders do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    command = [compiler, *_FLAGS, *map(str, sources), "-o", made]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
        )
        if done.returncode != 0:
            first = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise NativeUnavailableError(f"{compiler} cannot build the native library: {first}")
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
