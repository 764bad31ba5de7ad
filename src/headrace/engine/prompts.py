"""Prompts: those that were given, as tokens, and some for demonstrations and audits.

The latter are this package's own source, new to every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from headrace.errors import ConfigurationError, ContextLengthError
from headrace.hf.observe import text_config

_SOURCES = (
    "runtime/layout.py",
    "plan/operations.py",
    "timeline.py",
    "runtime/attention.py",
    "hardware/profile.py",
    "runtime/conveyor.py",
    "model/shape.py",
    "runtime/store.py",
)


def max_context(model: nn.Module) -> int:
    """Return the tokens that a model has positions for (very many if it does not say)."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return int(limit) if limit else 1 << 30


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], limit: int
) -> list[int]:
    """Return a prompt's tokens.

    Args:
        tokenizer: the model's.
        prompt: text, or tokens already.
        limit: the model's context; a prompt must leave room for one token.

    Raises:
        ConfigurationError: it is empty.
        ContextLengthError: it is as long as the context, or longer.
    """
    tokens = list(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
    if not tokens:
        raise ConfigurationError("a prompt is empty; give each prompt at least one token")
    if len(tokens) >= limit:
        raise ContextLengthError(
            f"a prompt has {len(tokens)} tokens, but the model's context is {limit}; shorten "
            f"the prompt to {limit - 1} or fewer"
        )
    return tokens


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int
) -> list[list[int]]:
    """Return each prompt's tokens; see ``encode_prompt``."""
    return [encode_prompt(tokenizer, text, limit) for text in texts]


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise ``ConfigurationError`` if a prompt has a token that the model lacks."""
    strange = [token for token in tokens if not 0 <= token < vocab_size]
    if strange:
        raise ConfigurationError(
            f"a prompt has token {strange[0]}; the model's vocabulary allows 0 to {vocab_size - 1}"
        )


def source_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: int, tokens: int, ragged: bool = True
) -> list[str]:
    """Return the beginnings of some of our source files, each up to the end of a line.

    Args:
        tokenizer: counts tokens.
        rows: how many prompts.
        tokens: length of the longest, about.
        ragged: whether the others are shorter, each by a little more.
    """
    package = Path(__file__).parent.parent
    prompts = []
    for row in range(rows):
        text = (package / _SOURCES[row % len(_SOURCES)]).read_text("utf-8")
        count = tokens - (row * tokens // (4 * rows) if ragged else 0)
        ids = tokenizer(text)["input_ids"][:count]
        prompt: str = tokenizer.decode(ids)
        prompts.append(prompt[: prompt.rfind("\n") + 1] or prompt)
    return prompts
