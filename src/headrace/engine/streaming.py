"""What is generated, piece by piece as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from headrace.engine.batcher import Batcher, Step, Update
from headrace.engine.request import FinishReason, TokenLogprob
from headrace.engine.sample import Job
from headrace.errors import ConfigurationError


@dataclass(frozen=True)
class StreamedText:
    """What a step added to a sample.

    Of all pieces of a sample, ``text`` joined is its text, ``token_ids`` joined are its tokens, and
    the last one has ``finished``. Text may come later than its tokens: what may still change is
    held back.

    Attributes:
        prompt: number of the prompt.
        index: which of its samples.
        text: what comes next; may be empty.
        finished: whether the sample has ended.
        token_ids: the tokens that came; none where a sample is cancelled.
        finish_reason: why it has ended, as in ``CompletionOutput``; None before.
        logprobs: one entry for each of ``token_ids``, or None if they were not asked for.
    """

    prompt: int
    index: int
    text: str
    finished: bool
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class TextStream(Iterator[StreamedText]):
    """The pieces of a call of ``LLM.stream``; nothing runs but while one is asked for.

    All of it ends with ``close``, or when nobody has the stream any more, as after a loop over it.

    Args:
        batcher: what runs.
        steps: runs it, and ends with it.
        jobs: the prompts' requests.
    """

    def __init__(
        self, batcher: Batcher, steps: Generator[Step, None, None], jobs: Sequence[Job]
    ) -> None:
        self._batcher = batcher
        self._steps = steps
        self._jobs = jobs
        self._number = {id(job): place for place, job in enumerate(jobs)}
        self._pending: deque[Update] = deque()

    def __next__(self) -> StreamedText:
        while not self._pending:
            self._pending.extend(next(self._steps).updates)
        update = self._pending.popleft()
        if update.job.error is not None:
            self.close()
            raise update.job.error
        return StreamedText(
            prompt=self._number[id(update.job)],
            index=update.index,
            text=update.news(),
            finished=update.finished,
            token_ids=update.token_ids,
            finish_reason=update.finish_reason,
            logprobs=update.logprobs,
        )

    def cancel(self, prompt: int) -> None:
        """End a prompt; the others go on, and may have its memory.

        Each of its samples that has not ended gets one more piece, with the text that was held
        back, and ``cancelled`` as its ``finish_reason``. Nothing happens if all have ended. May be
        called between two pieces, by the thread that reads them.

        Args:
            prompt: its number.

        Raises:
            ConfigurationError: there is no such prompt.
        """
        if not 0 <= prompt < len(self._jobs):
            raise ConfigurationError(
                f"prompt is {prompt}; the stream has {len(self._jobs)} prompts, numbered from 0"
            )
        self._pending.extend(self._batcher.cancel(self._jobs[prompt]))

    def close(self) -> None:
        """End all prompts, and give back all memory; there are no more pieces."""
        self._pending.clear()
        self._steps.close()
