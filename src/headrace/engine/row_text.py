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
        self._tokenizer = tokenizer
        self._decoded = IncrementalText(tokenizer)
        self._stops = StopStrings(params.stop)
        self._tokens: list[int] = []
        self._shown_tokens = 0
        """Of the tokens, those that the text is of: all but one that ended the row."""
        self._read = 0
        """Of those, how many have been turned into text."""
        self._pieces: list[str] = []
        self._given = 0
        """Of the pieces, how many ``news`` has returned."""
        self._closed = False
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
        """What is certain so far; all of it once the row has ended."""
        if self.finished and not self._read and not self._params.stop:
            # Nobody has asked before: all at once costs what one token does.
            return self._decode(self._tokens[: self._shown_tokens])
        self._read_on()
        return "".join(self._pieces)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens, with the one that ended the row."""
        return tuple(self._tokens)

    def take(self, token_id: int) -> None:
        """Add a token, which may end the row; a row that has ended takes no more."""
        if self.finished:
            return
        self._tokens.append(token_id)
        if len(self._tokens) > self._params.min_tokens and token_id in self._ends:
            self.finish("stop")
            return
        self._shown_tokens += 1
        if self._params.stop:
            self._read_on()
            if self._stops.found:
                self.finish("stop")
        if len(self._tokens) >= self._params.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the row, unless it has ended."""
        if self.finished:
            return
        self._reason = reason
        if self._params.stop:
            # What was held back may end with a stop string.
            self._read_on()
            if self._stops.found:
                self._reason = "stop"

    def news(self) -> str:
        """Return the text that may be shown and that this has not returned yet.

        Held back are incomplete characters, and an end that may become a stop string, until the
        row ends.
        """
        self._read_on()
        new = "".join(self._pieces[self._given :])
        self._given = len(self._pieces)
        return new

    def _read_on(self) -> None:
        """Turn tokens into text that have not been yet; the rest, too, once the row has ended."""
        for token in self._tokens[self._read : self._shown_tokens]:
            self._read += 1
            self._give(self._decoded.take(token))
        if self.finished and not self._closed:
            self._closed = True
            self._give(self._decoded.finish())
            self._pieces.append(self._stops.finish())

    def _give(self, text: str) -> None:
        counts = self._read > self._params.min_tokens
        self._pieces.append(self._stops.take(text, counts=counts))

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens)
        return text
