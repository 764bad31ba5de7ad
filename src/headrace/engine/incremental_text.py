"""Turns tokens into text one by one, at a cost that does not grow with the text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
_CHARACTER_TOKENS = 3
"""A character of four bytes may lack its last one: so many tokens may be of an incomplete one."""

_LONG = 16
"""Tokens of a window that is shortened, where a character begins, to ``_CONTEXT`` or more."""

_CONTEXT = 4
_TOO_LONG = 48
"""Tokens of a window that is shortened wherever it may be, to ``_TOO_LONG_CONTEXT``."""

_TOO_LONG_CONTEXT = 8


class IncrementalText:
    """The text of a growing sequence of tokens, of which only the last few are decoded again.

    Text is given once it is certain: an incomplete character is held back, which `decode` shows as
    a replacement character at the end. What was given stays. It adds up to what decoding all tokens
    at once gives, where a tokenizer's text only grows with its tokens; a tokenizer that tidies up
    spaces, or that spells invalid bytes differently when more of them follow, may differ there.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._text = ""
        self._given = 0
        self._incomplete_tokens = 0
        self._ends: list[int] = []

    def take(self, token_id: int) -> str:
        """Add a token; return the text that is certain and was not given yet."""
        self._window.append(token_id)
        self._text = self._decode(self._window)
        if self._text.endswith(_INCOMPLETE):
            self._incomplete_tokens += 1
        else:
            self._incomplete_tokens = 0
            self._ends.append(len(self._window))
        new = self._text[self._given : self._certain()]
        self._given += len(new)
        if len(self._window) >= _LONG:
            self._shorten()
        return new

    def finish(self) -> str:
        """Return the text that was held back."""
        rest = self._text[self._given :]
        self._given += len(rest)
        return rest

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens)
        return text

    def _certain(self) -> int:
        """Return how many characters of the window will stay as they are."""
        if self._incomplete_tokens > _CHARACTER_TOKENS:
            # These bytes are no character, or else end one and begin the next again and again. One
            # replacement character at most is of bytes that the next token may complete.
            return len(self._text) - 1
        return len(self._text.rstrip(_INCOMPLETE))

    def _shorten(self) -> None:
        """Forget all but the window's last tokens, from a token that begins with a character.

        Some are kept because decoders treat the first token differently. A window without such a
        token (of bytes that are no text) is cut anywhere once it is too long: what state its end
        leaves a decoder in depends on the last three bytes only.
        """
        start = max((end for end in self._ends if end <= len(self._window) - _CONTEXT), default=0)
        if not start and len(self._window) >= _TOO_LONG:
            start = len(self._window) - _TOO_LONG_CONTEXT
        if not start:
            return
        text, rest = self._decode(self._window[start:]), self._text[self._given :]
        if text.endswith(rest):
            self._window = self._window[start:]
            self._text = text
            self._given = len(text) - len(rest)
            self._ends = [end - start for end in self._ends if end > start]
