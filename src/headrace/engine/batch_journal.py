"""The output of a batch: results are added one by one, and none is lost when the run is killed."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from headrace.engine.batch_recovery import PastResult, past_results
from headrace.errors import ConfigurationError, HeadraceError

SYNC_EVERY_S = 1.0


class ResultWriteError(HeadraceError):
    """A result could not be written. Those before it are whole, and a rerun goes on after them."""


class Journal:
    """A file of results that only grows, locked against other processes while it is open.

    A result is one line, written by one call to a descriptor that appends, so a killed process
    leaves at most its last line cut off. A thread brings what was written to the disk now and then.

    Args:
        path: the file; made if it does not exist.
        overwrite: whether to drop what it holds.
        sync_every_s: seconds between two writes to the disk, at most.
        write: stands in for ``os.write``.

    Raises:
        ConfigurationError: it is not a file, or another process writes to it.
        OSError: it cannot be made, read or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        sync_every_s: float = SYNC_EVERY_S,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.path = path
        self._write = write
        self._descriptor = _open(path)
        try:
            _lock(path, self._descriptor)
            if overwrite:
                os.ftruncate(self._descriptor, 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._syncer = _Syncer(self._descriptor, sync_every_s)

    def status(self) -> os.stat_result:
        """Return the file's status."""
        return os.fstat(self._descriptor)

    def past_results(self) -> Iterator[PastResult]:
        """Yield what earlier runs wrote, and cut away a line that was cut off.

        Raises:
            ConfigurationError: the file holds something else.
        """
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "r+b", closefd=False) as file:
            yield from past_results(self.path, file)

    def append(self, result: Mapping[str, Any]) -> None:
        """Add a result.

        Raises:
            ResultWriteError: it could not be written, as where the disk is full.
        """
        words = json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"
        # Half a surrogate pair, quoted in a message, becomes the escape that JSON has for it.
        line = words.encode("utf-8", "backslashreplace")
        size = self.status().st_size
        try:
            self._syncer.check()
            rest = line
            while rest:
                # One call takes all of it; where it does not, the next one says why.
                rest = rest[self._write(self._descriptor, rest) :]
        except OSError as error:
            self._cut(size)
            raise self._failed(error) from error
        self._syncer.dirty()

    def _cut(self, size: int) -> None:
        """Take back what was written of a line; where even that fails, the next run does it."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, size)

    def _failed(self, error: OSError) -> ResultWriteError:
        return ResultWriteError(
            f"OUTPUT {str(self.path)!r} cannot be written: {error.strerror or error}; the results "
            "in it are whole, so make room and give the same command again, which goes on from them"
        )

    def close(self) -> None:
        """Bring everything to the disk, and close the file.

        Raises:
            ResultWriteError: the disk did not take it.
        """
        try:
            self._syncer.close()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Syncer:
    """A thread that brings a file to the disk at most every so often, while it is written."""

    def __init__(self, descriptor: int, every_s: float) -> None:
        self._descriptor = descriptor
        self._every_s = every_s
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="batch-sync", daemon=True)
        self._thread.start()

    def dirty(self) -> None:
        """Note that something was written."""
        self._dirty.set()

    def check(self) -> None:
        """Raise the error that the disk gave, if it gave one."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; bring the rest to the disk, and raise what it says."""
        self._closing.set()
        self._thread.join()
        if self._error is None:
            self._sync()
        self.check()

    def _run(self) -> None:
        while self._error is None and not self._closing.wait(self._every_s):
            if self._dirty.is_set():
                self._dirty.clear()
                self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._error = error


def _open(path: Path) -> int:
    """Return a descriptor that reads, and appends; a new file's name is on the disk, too."""
    new = not path.exists()
    if not new and not stat.S_ISREG(path.stat().st_mode):
        raise ConfigurationError(
            f"OUTPUT is {str(path)!r}, which is no regular file; results are read again when a "
            "batch goes on, so give a file"
        )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    if new:
        _sync_folder(path.parent)
    return descriptor


def _sync_folder(folder: Path) -> None:
    # Not every file system can, and not everyone who may write to a folder may read it. It matters
    # only where the power is lost in the first moments.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"OUTPUT is {str(path)!r}, which another process writes to at this moment; wait until "
            "it has ended, or give another file"
        ) from error
