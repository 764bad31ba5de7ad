"""Prompts for demonstrations and audits: this package's own source, new to every model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

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
