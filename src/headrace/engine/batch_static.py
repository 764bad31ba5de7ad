"""The plain engine of a batch: chunk after chunk, each a call of ``LLM.generate``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from headrace.engine.batch_engine import Completed, Request
from headrace.engine.llm import LLM
from headrace.engine.request import RequestOutput
from headrace.errors import ConfigurationError, ContextLengthError, MemoryBudgetError

_CODES = {
    ContextLengthError: "context_length_exceeded",
    MemoryBudgetError: "memory_budget_exceeded",
}


class StaticEngine:
    """Completes requests in chunks. The next chunk begins when a chunk's last row has ended.

    Args:
        llm: the model.
        max_rows: most rows in a chunk; a request has one for each of its ``n`` samples, and one
            with more than this is a chunk of its own.

    Raises:
        ConfigurationError: ``max_rows`` is below 1.
    """

    def __init__(self, llm: LLM, max_rows: int) -> None:
        if max_rows < 1:
            raise ConfigurationError(f"max_rows is {max_rows}; allowed is 1 or more")
        self._llm = copy.copy(llm)
        self._llm.tokenizer = _TokensPass(llm.tokenizer)
        self._max_rows = max_rows

    def complete(self, requests: Iterable[Request]) -> Iterator[Completed]:
        """Complete requests, as ``CompletionEngine`` has it.

        Raises:
            ModelError: the model cannot be served, whatever is asked of it.
        """
        chunk: list[Request] = []
        rows = 0
        for request in requests:
            if chunk and rows + request.params.n > self._max_rows:
                yield from self._chunk(chunk)
                chunk, rows = [], 0
            chunk.append(request)
            rows += request.params.n
        if chunk:
            yield from self._chunk(chunk)

    def _chunk(self, chunk: list[Request]) -> Iterator[Completed]:
        """Complete a chunk; where it is refused, its halves, so that who is at fault stands alone.

        Halves also help where a chunk needs more memory than there is.
        """
        try:
            outputs = self._generate(chunk)
        except (ConfigurationError, MemoryBudgetError) as error:
            if len(chunk) == 1:
                code = _CODES.get(type(error))
                yield Completed(chunk[0].request_id, None, str(error), code)
                return
            middle = len(chunk) // 2
            yield from self._chunk(chunk[:middle])
            yield from self._chunk(chunk[middle:])
            return
        for request, output in zip(chunk, outputs, strict=True):
            yield Completed(request.request_id, output, None)

    def _generate(self, chunk: list[Request]) -> list[RequestOutput]:
        prompts: list[Any] = [request.prompt for request in chunk]
        outputs = self._llm.generate(prompts, [request.params for request in chunk])
        return [
            output
            if isinstance(prompt, str)
            else replace(output, prompt=self._llm.tokenizer.decode(list(prompt)))
            for prompt, output in zip(prompts, outputs, strict=True)
        ]


class _TokensPass:
    """A tokenizer that hands on a prompt which is tokens already, as ``LLM`` takes texts only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompt: str | Sequence[int]) -> Any:
        if isinstance(prompt, str):
            return self._tokenizer(prompt)
        return {"input_ids": list(prompt)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
