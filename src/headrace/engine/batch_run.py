"""Works off a batch: what is not done yet goes through an engine, and results into the journal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.engine.batch_fields import RequestError
from headrace.engine.batch_input import BatchInput
from headrace.engine.batch_journal import Journal
from headrace.engine.batch_line import BatchRequest
from headrace.engine.batch_messages import Prompt
from headrace.engine.batch_results import answer, error_line, result_line
from headrace.engine.completion import Completed, CompletionEngine, Request
from headrace.engine.request import RequestOutput, SamplingParams
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.engine.batch_recovery import PastResult


class ReadsPrompts(Protocol):
    """What a run needs to know of the model; ``PromptReader`` is one."""

    def prompts(
        self, custom_id: str, request: BatchRequest
    ) -> Iterator[tuple[Prompt, SamplingParams]]:
        """Yield a request's prompts, or raise ``RequestError``."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return a token's text."""
        ...


@dataclass
class BatchCounts:
    """What a run has done so far.

    Attributes:
        total: requests of the input.
        skipped: those that earlier runs have done.
        skipped_failed: those of them with an error as their result.
        completed: those that this run completed.
        failed: those that this run answered with an error.
        prompt_tokens: of the completed ones.
        generated_tokens: of the completed ones.
        refused: those of the failed ones that no model was needed for.
        start_s: when the engine began, by ``time.perf_counter``; None before.
        engine_s: seconds that it took, once it has ended.
    """

    total: int = 0
    skipped: int = 0
    skipped_failed: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    refused: int = 0
    start_s: float | None = None
    engine_s: float = 0.0

    @property
    def done(self) -> int:
        """Requests that have their result."""
        return self.skipped + self.completed + self.failed


class BatchRun:
    """One run over a batch.

    Args:
        batch: the requests.
        journal: the results; those that it has are not made again.
        on_progress: is called with the counts after each result.

    Raises:
        ConfigurationError: the journal is of another input.
    """

    def __init__(
        self,
        batch: BatchInput,
        journal: Journal,
        on_progress: Callable[[BatchCounts], None] = lambda counts: None,
    ) -> None:
        self.counts = BatchCounts(total=len(batch))
        self._batch = batch
        self._journal = journal
        self._on_progress = on_progress
        self._done = bytearray(len(batch))
        self._created = int(time.time())
        self._open: dict[int, _Open] = {}
        self._refused: deque[tuple[int, RequestError]] = deque()
        for past in journal.past_results():
            self._skip(past)

    def _skip(self, past: PastResult) -> None:
        """Take note of a result that is there."""
        place = self._batch.find(past.custom_id)
        where = f"OUTPUT {str(self._journal.path)!r} has on line {past.line} a result of"
        change = "give another file, or --overwrite to start over"
        if place is None:
            raise ConfigurationError(
                f"{where} {past.custom_id!r}, which {str(self._batch.path)!r} does not ask for; "
                f"it belongs to another input, so {change}"
            )
        if past.digest != self._batch.digest(place):
            raise ConfigurationError(
                f"{where} {past.custom_id!r}, whose request in {str(self._batch.path)!r} was "
                f"another then; {change}"
            )
        if self._done[place]:
            raise ConfigurationError(f"{where} {past.custom_id!r} for the second time; {change}")
        self._done[place] = True
        self.counts.skipped += 1
        self.counts.skipped_failed += not past.succeeded
        if past.created is not None:
            # A batch that goes on began when its first run did.
            self._created = past.created

    def refuse_invalid(self) -> None:
        """Write the results of the requests that did not pass the checks; it takes no model."""
        for place in self._batch.places(valid=False):
            if not self._done[place]:
                error = self._batch.read(place).error
                assert error is not None
                self._fail(place, error)

    @property
    def needs_engine(self) -> bool:
        """Whether there is a request to complete."""
        return any(not self._done[place] for place in self._batch.places(valid=True))

    def complete(self, engine: CompletionEngine, reader: ReadsPrompts, model: str) -> None:
        """Complete what is left.

        Args:
            engine: the model's.
            reader: makes the model's prompts.
            model: the name that is echoed where a request gives none.

        Raises:
            ResultWriteError: a result could not be written.
        """
        self.counts.refused = self.counts.failed
        start_s = self.counts.start_s = time.perf_counter()
        ended = engine.complete(self._requests(reader))
        try:
            for completed in ended:
                self._write_refused()
                self._take(completed, reader, model)
        finally:
            close = getattr(ended, "close", None)
            if close is not None:
                close()
            self.counts.engine_s = time.perf_counter() - start_s
        self._write_refused()
        if not all(self._done):
            raise RuntimeError(f"the engine left {self._done.count(0)} requests without an answer")

    def _requests(self, reader: ReadsPrompts) -> Iterator[Request]:
        """Yield what is left, read from the input as the engine asks for it."""
        for place in self._batch.places(valid=True):
            if self._done[place]:
                continue
            request = self._batch.read(place).request
            assert request is not None
            try:
                prompts = list(reader.prompts(self._batch.custom_ids[place], request))
            except RequestError as error:
                # Written later: the engine may be asking from a thread of its own.
                self._refused.append((place, error))
                continue
            self._open[place] = _Open(request, len(prompts))
            for number, (prompt, params) in enumerate(prompts):
                yield Request(f"{place}.{number}", prompt, params)

    def _take(self, completed: Completed, reader: ReadsPrompts, model: str) -> None:
        """Note a completed prompt; with its request's last one the result is written."""
        place, number = map(int, completed.request_id.split("."))
        opened = self._open[place]
        opened.take(number, completed)
        if opened.waiting:
            return
        del self._open[place]
        if opened.error is not None:
            self._fail(place, opened.error)
            return
        outputs = opened.outputs()
        digest = self._batch.digest(place)
        body = answer(
            opened.request,
            outputs,
            digest=digest,
            created=self._created,
            model=model,
            token_text=reader.token_text,
        )
        self._journal.append(result_line(digest, self._batch.custom_ids[place], 200, body))
        self.counts.completed += 1
        self.counts.prompt_tokens += body["usage"]["prompt_tokens"]
        self.counts.generated_tokens += body["usage"]["completion_tokens"]
        self._finish(place)

    def _write_refused(self) -> None:
        while self._refused:
            self._fail(*self._refused.popleft())

    def _fail(self, place: int, error: RequestError) -> None:
        custom_id = self._batch.custom_ids[place]
        self._journal.append(error_line(self._batch.digest(place), custom_id, error))
        self.counts.failed += 1
        self._finish(place)

    def _finish(self, place: int) -> None:
        self._done[place] = True
        self._on_progress(self.counts)


class _Open:
    """A request that the engine has, perhaps in several prompts."""

    def __init__(self, request: BatchRequest, prompts: int) -> None:
        self.request = request
        self.waiting = prompts
        self.error: RequestError | None = None
        self._outputs: dict[int, RequestOutput] = {}

    def take(self, number: int, completed: Completed) -> None:
        """Note the end of a prompt."""
        self.waiting -= 1
        if completed.output is not None:
            self._outputs[number] = completed.output
            return
        message = completed.error or "the engine gave neither output nor error"
        self.error = self.error or RequestError(message, code=completed.code)

    def outputs(self) -> list[RequestOutput]:
        """Return the outputs in the order of the prompts."""
        return [self._outputs[number] for number in sorted(self._outputs)]
