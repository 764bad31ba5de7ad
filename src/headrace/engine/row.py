"""One sample of a prompt while it is generated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from headrace.engine.request import (
    CompletionOutput,
    FinishReason,
    SamplingParams,
    TokenLogprob,
)
from headrace.engine.row_text import RowText
from headrace.engine.sampling import Choice, RowSampler


class Row:
    """Chooses a row's tokens and keeps what comes of them.

    Args:
        tokenizer: the model's.
        params: of this sample (see ``SamplingParams.of_sample``).
        prompt_token_ids: the prompt.
        end_tokens: the model's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        end_tokens: Collection[int],
    ) -> None:
        self.sampler = RowSampler(params, prompt_token_ids, end_tokens)
        self._text = RowText(tokenizer, params, end_tokens)
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []

    @property
    def finished(self) -> bool:
        """Whether the row has ended."""
        return self._text.finished

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended; None if it has not."""
        return self._text.finish_reason

    @property
    def newest_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """The newest token's, none before the first; or None if they were not asked for."""
        return None if self._logprobs is None else tuple(self._logprobs[-1:])

    def take(self, choice: Choice) -> None:
        """Add a token, unless the row has ended."""
        if self.finished:
            return
        if self._logprobs is not None:
            assert choice.logprob is not None
            self._logprobs.append(TokenLogprob(choice.token_id, choice.logprob, choice.top))
        self._text.take(choice.token_id)

    def news(self) -> str:
        """Return the text that may be shown and that this has not returned yet."""
        return self._text.news()

    def cancel(self) -> None:
        """End the row, unless it has ended."""
        self._text.finish("cancelled")

    def output(self, index: int) -> CompletionOutput:
        """Return what was generated, as sample ``index``; a row under way counts as cancelled."""
        self.cancel()
        assert self._text.finish_reason is not None
        return CompletionOutput(
            index=index,
            text=self._text.text,
            token_ids=self._text.token_ids,
            finish_reason=self._text.finish_reason,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
        )
