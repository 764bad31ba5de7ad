"""Requests, and samples of them, on their way through a batcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.engine.row import Row
from headrace.engine.sampling import Choice
from headrace.errors import HeadraceError
from headrace.plan.policies import Split
from headrace.runtime.capacity import RowNeed


@dataclass(eq=False)
class Job:
    """A request under way: a prompt and its samples.

    Attributes:
        request_id: whose.
        prompt_token_ids: its tokens.
        rows: what is generated, sample by sample.
        max_tokens: most tokens that a sample generates.
        error: why it cannot be completed, or None.
    """

    request_id: str
    prompt_token_ids: list[int]
    rows: list[Row]
    max_tokens: int
    error: HeadraceError | None = None

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        return all(row.finished for row in self.rows)


@dataclass(eq=False)
class Sample:
    """One or several samples of a job that have one row of the cache between them.

    While the prompt goes through the model they are all of the job's; then each has its own row.

    Attributes:
        job: the request.
        indices: which of its samples.
        tokens: prompt and generated tokens.
        cached: how many of them are in the cache.
        begun_again: whether it had to begin anew in a new cache.
    """

    job: Job
    indices: list[int]
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    begun_again: bool = False

    @property
    def left(self) -> int:
        """Tokens that have still to go through the model."""
        return len(self.tokens) - self.cached

    @property
    def rows(self) -> list[Row]:
        """What is generated."""
        return [self.job.rows[index] for index in self.indices]

    @property
    def finished(self) -> bool:
        """Whether all have ended."""
        return all(row.finished for row in self.rows)

    @property
    def end(self) -> int:
        """Tokens of each when it has ended, at most."""
        return len(self.job.prompt_token_ids) + self.job.max_tokens

    def need(self, split: Split | None = None) -> RowNeed:
        """Return what its row of the cache will have.

        Args:
            split: how its prompt is divided; None: as is planned.
        """
        # Who had to begin anew goes through the model with what it has generated.
        prompt_len = len(self.tokens) if self.left > 1 else len(self.job.prompt_token_ids)
        return RowNeed(prompt_len, self.end, len(self.indices), self.cached, split)

    def split(self) -> list[Sample]:
        """Return one sample each, with what is in the cache so far."""
        if len(self.indices) == 1:
            return [self]
        return [Sample(self.job, [index], list(self.tokens), self.cached) for index in self.indices]

    def take(self, choice: Choice) -> None:
        """Add the one sample's next token."""
        (row,) = self.rows
        self.tokens.append(choice.token_id)
        row.take(choice)
