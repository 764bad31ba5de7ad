"""The work that a plan is made for: how many rows, how long, and how many tokens to generate."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ConfigurationError


@dataclass(frozen=True)
class Workload:
    """A batch of equal rows.

    The first generated token comes from the prefill; each decode step after it adds one token to
    the cache and makes one more.

    Attributes:
        rows: sequences in the batch.
        prompt_len: tokens of each prompt.
        generate_len: tokens to generate for each row.
        batches: groups of about equal size in which the rows are worked on; in a decode step each
            row gets one token, whichever the group.

    Raises:
        ConfigurationError: one of them is not a whole number of at least 1, or there are more
            batches than rows.
    """

    rows: int
    prompt_len: int
    generate_len: int
    batches: int = 1

    def __post_init__(self) -> None:
        for setting in ("rows", "prompt_len", "generate_len", "batches"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"{setting} is {value!r}; allowed are whole numbers from 1; change {setting}"
                )
        if self.batches > self.rows:
            raise ConfigurationError(
                f"batches is {self.batches}, but there are {self.rows} rows; use at most as many "
                "batches as rows"
            )

    @property
    def batch_rows(self) -> tuple[int, ...]:
        """Rows of each batch."""
        rows, batches = self.rows, self.batches
        return tuple(
            rows * (batch + 1) // batches - rows * batch // batches for batch in range(batches)
        )

    @property
    def decode_steps(self) -> int:
        """Steps after the prefill."""
        return self.generate_len - 1

    @property
    def max_context(self) -> int:
        """Tokens of a row when it is finished."""
        return self.prompt_len + self.generate_len

    @property
    def mean_context(self) -> int:
        """Tokens in a row's cache in the middle of the decoding, to the nearest below."""
        return self.prompt_len + max(self.decode_steps - 1, 0) // 2

    def context_at(self, step: int) -> int:
        """Return the tokens in a row's cache when decode step ``step`` (from 0) begins."""
        return self.prompt_len + step
