"""Turns a row's tokens into text as they come, and finds where the row ends."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from headrace.engine.incremental_text import IncrementalText
from headrace.engine.request import FinishReason, SamplingParams
from headrace.engine.stop_strings import StopStrings


class RowText:
    """A row's tokens and text, up to its end.

    The text is that of the tokens before an end token or stop token, cut before the first stop
    string. The first ``min_tokens`` tokens neither end the row nor complete a stop string.

    Args:
        tokenizer: the model's.
        params: where the row ends.
        end_tokens: the model's; they end the row unless ``params`` ignores them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        end_tokens: Iterable[int] = (),
    ) -> None:
        self._params = params
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else end_tokens)}
        self._decoded = IncrementalText(tokenizer)
        self._stops = StopStrings(params.stop)
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        """Whether the row has ended."""
        return self._reason is not None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended; None if it has not."""
        return self._reason

    @property
    def text(self) -> str:
        """What was given out so far; all of it once the row has ended."""
        return "".join(self._pieces)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens, with the one that ended the row."""
        return tuple(self._tokens)

    def take(self, token_id: int) -> str:
        """Add a token; return the text that is now certain and may be shown.

        Held back are incomplete characters, and an end that may become a stop string, until the
        row ends. A row that has ended takes no more.
        """
        if self.finished:
            return ""
        self._tokens.append(token_id)
        counts = len(self._tokens) > self._params.min_tokens
        if counts and token_id in self._ends:
            return self.finish("stop")
        shown = self._give(self._stops.take(self._decoded.take(token_id), counts=counts))
        if self._stops.found:
            return shown + self.finish("stop")
        if len(self._tokens) >= self._params.max_tokens:
            return shown + self.finish("length")
        return shown

    def finish(self, reason: FinishReason) -> str:
        """End the row, unless it has ended; return the text that was held back."""
        if self.finished:
            return ""
        rest = self._stops.take(
            self._decoded.finish(), counts=len(self._tokens) > self._params.min_tokens
        )
        self._reason = "stop" if self._stops.found else reason
        return self._give(rest + self._stops.finish())

    def _give(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text
