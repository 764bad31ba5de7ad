"""Reads the results that an earlier run left behind, also one that was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from headrace.errors import ConfigurationError

RESULT_ID = "batch_req_"
_BEGINNING = f'{{"id": "{RESULT_ID}'.encode()


@dataclass(frozen=True)
class PastResult:
    """A result of an earlier run.

    Attributes:
        line: its place in the file, from 1.
        custom_id: of its request.
        digest: of its request's line, as ``BatchInput.digest`` has it.
        succeeded: whether the request was completed.
        created: when its batch began, in seconds since 1970; None in a result without it.
    """

    line: int
    custom_id: str
    digest: str
    succeeded: bool
    created: int | None


def past_results(path: Path, file: BinaryIO) -> Iterator[PastResult]:
    """Yield the results in a file; a last line that was cut off is cut away.

    Args:
        path: the file's name, for messages.
        file: open for reading and writing, at its beginning.

    Raises:
        ConfigurationError: the file holds something else.
    """
    end = 0
    for number, line in enumerate(file, 1):
        if line.endswith(b"\n"):
            end += len(line)
            yield _result(path, number, line)
        elif _is_torn_result(line):
            file.truncate(end)
            return
        else:
            raise _foreign(path, number)


def _is_torn_result(line: bytes) -> bool:
    """Return whether a line without an end began as ours do.

    After a loss of power a file may also end in zeros: its length was stored, its content was not.
    """
    start = line.rstrip(b"\0")
    return start.startswith(_BEGINNING) or _BEGINNING.startswith(start)


def _result(path: Path, number: int, line: bytes) -> PastResult:
    try:
        fields: dict[str, Any] = json.loads(line)
        response = fields["response"] or {"status_code": 400, "body": {}}
        past = PastResult(
            line=number,
            custom_id=fields["custom_id"],
            digest=fields["id"].removeprefix(RESULT_ID),
            succeeded=response["status_code"] == 200,
            created=response["body"].get("created"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _foreign(path, number) from error
    if not fields["id"].startswith(RESULT_ID) or not isinstance(past.custom_id, str):
        raise _foreign(path, number)
    return past


def _foreign(path: Path, number: int) -> ConfigurationError:
    return ConfigurationError(
        f"OUTPUT is {str(path)!r}, but its line {number} is no result of a batch; give another "
        "file, or --overwrite to replace what it holds"
    )
