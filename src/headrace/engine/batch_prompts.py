"""From a checked request to what the model is given, which takes its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from headrace.engine.batch_fields import RequestError
from headrace.engine.batch_line import BatchRequest
from headrace.engine.batch_messages import Prompt
from headrace.engine.request import SamplingParams
from headrace.errors import ConfigurationError


class PromptReader:
    """Makes prompts and settings that fit one model.

    Args:
        tokenizer: the model's.
        context: tokens that the model has positions for.
        vocab_size: its token ids are below this.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._vocab_size = vocab_size

    def token_text(self, token_id: int) -> str:
        """Return a token's text."""
        text: str = self._tokenizer.decode([token_id])
        return text

    def prompts(
        self, custom_id: str, request: BatchRequest
    ) -> Iterator[tuple[Prompt, SamplingParams]]:
        """Yield a request's prompts, each with how to choose its tokens.

        A request without a seed gets one that is made from its name, so that a batch that was
        stopped and gone on with has the results of one that was not.

        Args:
            custom_id: the request's name.
            request: what it asks for.

        Raises:
            RequestError: the model cannot be given this.
        """
        try:
            request.params.check_vocabulary(self._vocab_size)
        except ConfigurationError as error:
            raise RequestError(str(error), param=str(error).split()[0]) from error
        prompts = (self._chat(request),) if request.is_chat else request.prompts
        for place, prompt in enumerate(prompts):
            params = request.params
            if isinstance(prompt, tuple):
                self._check_tokens(prompt)
                # A prompt that leaves no room is refused by the engine, with its length.
                params = params.within(max(1, self._context - len(prompt)))
            if params.seed is None:
                params = replace(params, seed=_seed(custom_id, place))
            yield prompt, params

    def _check_tokens(self, prompt: tuple[int, ...]) -> None:
        beyond = next((token for token in prompt if token >= self._vocab_size), None)
        if beyond is not None:
            raise RequestError(
                f"prompt has the token id {beyond}; allowed are the model's, 0 to "
                f"{self._vocab_size - 1}",
                param="prompt",
            )

    def _chat(self, request: BatchRequest) -> Prompt:
        if not self._tokenizer.chat_template:
            raise RequestError(
                "the model's tokenizer has no chat template; use /v1/completions with a prompt, or "
                "a model that was made for chats",
                param="messages",
                code="no_chat_template",
            )
        try:
            tokens = self._tokenizer.apply_chat_template(
                list(request.messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except (TemplateError, ValueError, TypeError, LookupError) as error:
            raise RequestError(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error
        return tuple(int(token) for token in tokens)


def _seed(custom_id: str, place: int) -> int:
    named = f"{custom_id}\0{place}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=7).digest(), "big")
