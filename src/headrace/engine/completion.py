"""Requests in, completed ones out, in any order: what a batch asks of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.engine.request import RequestOutput, SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt to complete.

    Attributes:
        request_id: names it among the requests of a call.
        prompt: text, or token ids.
        params: how to choose tokens.
    """

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class Completed:
    """A request that has ended, well or not.

    Attributes:
        request_id: the request's.
        output: what was generated; None where the request failed.
        error: why it failed, in a sentence for its author; None where it did not.
        code: the same in a word for programs, such as ``context_length_exceeded``, if there is one.
    """

    request_id: str
    output: RequestOutput | None
    error: str | None
    code: str | None = None


class CompletionEngine(Protocol):
    """Completes requests, as many at once as there is room for."""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completed]:
        """Complete requests.

        Args:
            requests: consumed as there is room, so they may be made while others run.

        Yields:
            Each request once, as it ends. An error of one request does not stop the others.
        """
        ...
