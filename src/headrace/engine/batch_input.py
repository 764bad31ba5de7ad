"""The input of a batch: every line is checked once, and read again when its turn comes."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from headrace.engine.batch_line import BatchLine, read_line
from headrace.errors import ConfigurationError

_LISTED = 5
_DIGEST_BYTES = 12


class BatchInput:
    """An input file, with where its requests are; the requests themselves stay in the file.

    Requests are numbered from 0, without the empty lines. In memory each takes its ``custom_id``
    and some dozens of bytes.

    Args:
        path: the file, one JSON object a line; empty lines are passed over.

    Raises:
        ConfigurationError: there is no request in it, or a ``custom_id`` is there twice.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.custom_ids: list[str] = []
        """Of each request."""
        self.valid = bytearray()
        """Of each request, whether it passed the checks: 1 or 0."""
        self._starts = array("q")
        self._line_numbers = array("q")
        self._digests = bytearray()
        self._places: dict[str, int] = {}
        self._file = path.open("rb")
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    def _scan(self) -> None:
        twice: dict[str, list[int]] = {}
        start = 0
        for number, raw in enumerate(self._file, 1):
            line = raw.strip()
            if line:
                place = len(self.custom_ids)
                read = read_line(line, number)
                first = self._places.setdefault(read.custom_id, place)
                if first != place:
                    lines = twice.setdefault(read.custom_id, [self._line_numbers[first]])
                    lines.append(number)
                self.custom_ids.append(read.custom_id)
                self.valid.append(read.error is None)
                self._starts.append(start)
                self._line_numbers.append(number)
                self._digests += _digest(read.custom_id, line)
            start += len(raw)
        if twice:
            raise ConfigurationError(_said_twice(self.path, twice))
        if not self.custom_ids:
            raise ConfigurationError(
                f"{str(self.path)!r} holds no request; give a file with one JSON object a line: "
                '{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}'
            )

    def __len__(self) -> int:
        return len(self.custom_ids)

    def find(self, custom_id: str) -> int | None:
        """Return a request's number, or None if there is no such request."""
        return self._places.get(custom_id)

    def digest(self, place: int) -> str:
        """Return a number, in hexadecimal, that is of this ``custom_id`` and this line alone."""
        return self._digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES].hex()

    def read(self, place: int) -> BatchLine:
        """Read a request again.

        Raises:
            ConfigurationError: the file was changed since it was checked.
        """
        self._file.seek(self._starts[place])
        line = self._file.readline().strip()
        if _digest(self.custom_ids[place], line).hex() != self.digest(place):
            raise ConfigurationError(
                f"{str(self.path)!r} was changed while it was worked on (line "
                f"{self._line_numbers[place]}); let it be, and start the batch again"
            )
        return read_line(line, self._line_numbers[place])

    def is_file(self, status: os.stat_result) -> bool:
        """Return whether a status is of this very file, by whatever name it was found."""
        return os.path.samestat(status, os.fstat(self._file.fileno()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> BatchInput:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def places(self, *, valid: bool) -> Iterator[int]:
        """Yield the numbers of the requests that passed the checks, or of those that did not."""
        return (place for place, passed in enumerate(self.valid) if passed == valid)


def _digest(custom_id: str, line: bytes) -> bytes:
    # Lines that are not JSON may be equal; what names them differs.
    named = custom_id.encode() + b"\0" + line
    return hashlib.blake2b(named, digest_size=_DIGEST_BYTES).digest()


def _said_twice(path: Path, twice: dict[str, list[int]]) -> str:
    listed = "; ".join(
        f"{custom_id!r} on lines {', '.join(map(str, lines[:_LISTED]))}"
        + (" and more" if len(lines) > _LISTED else "")
        for custom_id, lines in list(twice.items())[:_LISTED]
    )
    more = f"; and {len(twice) - _LISTED} more" if len(twice) > _LISTED else ""
    return (
        f"{str(path)!r} has requests with the same custom_id: {listed}{more}; give each its own, "
        "as results are told apart by it"
    )
