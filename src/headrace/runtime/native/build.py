"""Builds the native library with whatever C++ compiler there is.

The library has a plain C interface and needs neither torch's nor Python's headers. ``setup.py``
uses the same sources and flags, so this module imports nothing beyond the standard library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread")
COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 600


class NativeBuildError(Exception):
    """The library cannot be built; the message, one line, says why and what to change."""


def source_files() -> list[Path]:
    """Return what is compiled."""
    return sorted(FOLDER.glob("*.cpp"))


def header_files() -> list[Path]:
    """Return what the sources include."""
    return sorted(FOLDER.glob("*.h"))


def source_hash() -> str:
    """Return a hash of sources, headers and flags, by which a library is known to be up to date."""
    state = hashlib.sha256(" ".join(FLAGS).encode())
    for path in (*source_files(), *header_files()):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()[:16]


def compile_flags() -> list[str]:
    """Return the flags of each source file."""
    return [*FLAGS, f'-DHEADRACE_SOURCE_HASH="{source_hash()}"']


def find_compiler() -> list[str]:
    """Return the compiler's command: ``$CXX``, else the first of ``COMPILERS`` that exists.

    Raises:
        NativeBuildError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise NativeBuildError(
                f"CXX names {named[0]!r}, which is no program; set it to a C++17 compiler, or "
                "leave it unset"
            )
        return named
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise NativeBuildError(
        f"there is no C++ compiler ({', '.join(COMPILERS)}); install one, or set CXX to one"
    )


def compiler_version(compiler: list[str]) -> str:
    """Return what the compiler says of itself.

    Raises:
        NativeBuildError: it does not run.
    """
    return _run([*compiler, "--version"]).stdout


def library_path(folder: Path, compiler: list[str]) -> Path:
    """Return where a compiler's library is kept: its name changes with all that it is made of."""
    made_by = " ".join(compiler) + compiler_version(compiler) + platform.machine()
    suffix = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    return folder / f"headrace-{source_hash()}-{suffix}.so"


def build(compiler: list[str], path: Path) -> None:
    """Build the library.

    It is built beside its final place and then moved there, so that other processes see a whole
    library or none, even when several build at once.

    Args:
        compiler: its command.
        path: the library.

    Raises:
        NativeBuildError: the compiler fails, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
            made = Path(folder) / path.name
            sources = [str(source) for source in source_files()]
            _run([*compiler, *compile_flags(), "-shared", *sources, "-o", str(made)])
            os.replace(made, path)
    except OSError as error:
        raise NativeBuildError(
            f"{path.parent} cannot be written ({error.strerror}); set HEADRACE_CACHE to a folder "
            "that can"
        ) from error


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    name = command[0]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except OSError as error:
        raise NativeBuildError(f"the compiler {name} does not run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise NativeBuildError(f"the compiler {name} took longer than {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise NativeBuildError(
            f"the compiler {name} failed ({_first_error(done.stderr) or f'exit {done.returncode}'})"
        )
    return done


def _first_error(text: str) -> str:
    """Return the first line that tells of an error, or else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
