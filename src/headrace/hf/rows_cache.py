"""``RowsCache``: a cache whose rows come and go, and the forwards of a model over some of them.

Shape suffixes: B rows of a forward, q inputs, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import ConfigurationError, UnsupportedModelError
from headrace.hf.attached_cache import AttachedCache
from headrace.hf.attachment import Attachment, DecodeLayer
from headrace.hf.memory_errors import memory_errors
from headrace.hf.planning import PROMPT_TOKENS_WITHOUT_BUDGET, CacheOptions
from headrace.hf.replay import RecordedForward, Replays
from headrace.plan.policies import Split
from headrace.plan.workload import Workload
from headrace.runtime.attention import Scoring
from headrace.runtime.capacity import RowNeed


@dataclass(frozen=True)
class _Forward:
    """What the forward that is about to begin is for.

    Attributes:
        rows: the rows that take part.
        new: for each of them, the indices of the inputs that are tokens.
        first_columns: for each of them, the number within the row that an input of index 0 has.
        next_rows: the rows that will probably take part in the forward after it; None: the same.
        next_inputs: that forward's tokens of each row.
    """

    rows: range
    new: list[range]
    first_columns: list[int]
    next_rows: range | None
    next_inputs: int


class RowsCache(AttachedCache):
    """A KV cache for a changing set of rows, each with its own length.

    Rows are numbered from 0, without gaps. A forward concerns rows that follow each other: whoever
    batches keeps those together that decode, and those whose prompts are under way.

    Args:
        model: a `transformers` decoder-only model, on its device and in its dtype.
        workload: the most rows there will be at once, and the usual lengths of their prompts and
            of what they generate: what is planned for, and what memory is taken for now.
        options: what is asked of the cache.
        record: whether forwards may be recorded, to be replayed.
        prefill_tokens: most tokens of prompts in a forward, for which memory is planned; None: as
            many as the plan chooses.

    Raises:
        MemoryBudgetError: the workload does not fit the budgets.
        UnsupportedModelError: the model cannot be served.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        options: CacheOptions,
        *,
        record: bool = True,
        prefill_tokens: int | None = None,
    ) -> None:
        accepted = inspect.signature(model.forward).parameters
        if "position_ids" not in accepted:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not take position_ids, so its rows must all have "
                "come equally far; run it with a HostCache"
            )
        with memory_errors():
            super().__init__(model, options)
        self._workload = workload
        self._asked_tokens = prefill_tokens
        self._device = next(model.parameters()).device
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._forward: _Forward | None = None
        self._instead: DecodeLayer | None = None
        reason = "its weights move" if self._attachment.placed is not None else None
        if not record:
            reason = "it was not to be recorded"
        self._replays = Replays(self._run_instead, self._device, workload.rows, reason)
        self._replayed = self._replays.reason is None
        self.capacity = workload.rows
        """Rows that there is room for on the device."""
        try:
            with torch.inference_mode(False), torch.no_grad(), memory_errors():
                self._open(workload, self._device, prefill_tokens)
                self.paged.select([])
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided differently from what was asked, or changed since, and why."""
        if self._device.type == "cuda" and self._replays.reason is not None:
            words = f"decode steps are launched kernel by kernel: {self._replays.reason}"
            return (*super().notes, words)
        return super().notes

    @property
    def broken(self) -> bool:
        """Whether a forward has failed half-way."""
        return self._broken

    @property
    def uneven(self) -> bool:
        """Whether pools have grown for rows that were not divided as is planned."""
        return self.replanning is not None and self.replanning.divided > 0

    @property
    def block_tokens(self) -> int:
        """Tokens of a page."""
        return self.paged.layout.block_tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each row."""
        return self.paged.layout.lengths

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: rows have their own lengths, and their positions are given."""
        return 0

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts that there is memory for in a forward: under a budget, as planned.

        Without one, as many as were asked for.
        """
        planned = 0 if self.plan is None else self.plan.prefill_tokens
        if self.plan is not None and self._options.gpu_memory_bytes is not None:
            return max(1, planned)
        return self._asked_tokens or max(PROMPT_TOKENS_WITHOUT_BUDGET, planned)

    def fits(self, rows: Sequence[RowNeed]) -> bool:
        """Return whether host memory suffices for all of some rows until all of them have ended."""
        return self.paged.capacity.fits(rows)

    def split_of(self, row: int) -> Split:
        """Return how a row's prompt is divided."""
        return self.paged.layout.rows[row].split

    def add(
        self, rows: int, needs: Sequence[RowNeed] = (), others: Sequence[RowNeed] = ()
    ) -> range:
        """Add empty rows behind the others; return their numbers.

        Args:
            rows: how many.
            needs: what each of them will have. Their prompts are divided as suits the batch as it
                is then, if the split may change; without it, as is planned.
            others: what all other rows will have.
        """
        if len(self.lengths) + rows > self.capacity:
            raise ConfigurationError(
                f"{rows} rows were to be added to {len(self.lengths)}, but there is room for "
                f"{self.capacity}"
            )
        split = None
        if self.replanning is not None:
            split = self.replanning.of_arriving(needs, others)
        return self.paged.add(rows, split)

    @torch.inference_mode(False)
    @torch.no_grad()
    def arrange(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was.

        Rows that are not named end, and their memory is free at once. Rows that are named several
        times share what they have so far.
        """
        self.paged.select(sources)

    def forward(
        self,
        rows: range,
        tokens: Sequence[Sequence[int]],
        next_rows: range | None = None,
        next_inputs: int = 1,
    ) -> Tensor:
        """Run the model on further tokens of some rows.

        Args:
            rows: rows that follow each other.
            tokens: for each, its next tokens, one or more.
            next_rows: the rows that will probably take part in the forward after this one, so that
                their loads may start ahead; None: the same; empty: none shall.
            next_inputs: how many tokens of each that will be, padding included.

        Returns:
            The logits of each row's next token, float32 ``[B, V]``, on the model's device.

        Raises:
            MemoryBudgetError: memory does not suffice. If ``broken`` says so, the cache is of no
                more use; else nothing has changed.
            ConfigurationError: the cache is broken.
        """
        if self._broken:
            raise ConfigurationError(
                "an earlier forward with this cache failed half-way; close it and make a new one"
            )
        longest = max(len(some) for some in tokens)
        before = [row.length for row in self.paged.layout.of(rows)]
        padding = [longest - len(some) for some in tokens]
        new = [range(count, longest) for count in padding]
        first = [length - count for length, count in zip(before, padding, strict=True)]
        if self.replanning is not None:
            with torch.inference_mode(False), torch.no_grad():
                self.replanning.before_forward(rows, longest)
        self.paged.reserve(new, rows)
        self._forward = _Forward(rows, new, first, next_rows, next_inputs)
        with torch.inference_mode(), memory_errors():
            if longest == 1 and (recorded := self._replays.of_rows(len(rows))) is not None:
                return self._replay(recorded, [some[0] for some in tokens], first)
            ids = [[0] * count + list(some) for count, some in zip(padding, tokens, strict=True)]
            positions = torch.tensor(first)[:, None] + torch.arange(longest)
            logits = self._run(
                torch.tensor(ids).to(self._device), positions.clamp_min(0).to(self._device)
            )
            return logits[:, -1].float()

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Run the model with this cache; return logits ``[B, q, V]``, or of the last input."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self,
            use_cache=True,
            **self._extra,
        )
        logits: Tensor = output.logits
        return logits

    def _run_instead(self, ids: Tensor, positions: Tensor, attend: DecodeLayer) -> Tensor:
        """Run the model on one token a row, without the cache: something else attends."""
        self._instead = attend
        try:
            return self._run(ids, positions)
        finally:
            self._instead = None

    def _replay(self, recorded: RecordedForward, tokens: list[int], first: list[int]) -> Tensor:
        """Run a forward that was recorded; return logits, float32 ``[B, V]``."""
        failed = True
        try:
            self.begin_forward(self._attachment, {"position_ids": torch.tensor(first)[:, None]})
            logits = recorded.run(tokens, first, self._attend_generated)
            failed = False
        finally:
            self.end_forward(failed)
        return logits[:, -1].float()

    def _attend_generated(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        output: Tensor,
    ) -> None:
        """Attend one layer's new tokens, of which no X is kept, and write the output."""
        # What is made meanwhile serves forwards in any mode.
        with torch.inference_mode(False), torch.no_grad():
            found = self.paged.attend(layer, None, query, key, value, scoring, output)
        if found.data_ptr() != output.data_ptr():
            output.copy_(found)

    @property
    def decode(self) -> DecodeLayer | None:
        """What attends instead of ``attend_layer`` in the forward that has begun, if it may."""
        return self._instead or super().decode

    @property
    def needs_activations(self) -> bool:
        """Whether X is kept of some tokens."""
        return self._instead is None and super().needs_activations

    def end_forward(self, failed: bool) -> None:
        """Finish the forward (called by the model's hook)."""
        if self._instead is None:
            super().end_forward(failed)
        else:
            self._running = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin_forward(self, attachment: Attachment, inputs: dict[str, Any]) -> None:
        """Place a forward's tokens (called by the model's hook)."""
        self._check_owner(attachment)
        if self._instead is not None:
            self._running = True
            return
        forward, self._forward = self._forward, None
        if forward is None:
            raise ConfigurationError("a RowsCache is for its own forward(); use a HostCache")
        positions: Tensor = inputs["position_ids"]
        if positions.shape[1] > 1:
            # Only a prompt's tokens are kept as X, whose keys are rotated by these positions later.
            self._reserve_rotary(max(forward.first_columns) + positions.shape[1])
        # From here on things change.
        self._broken = self._running = True
        self.paged.begin_step(
            forward.new,
            positions.shape[1],
            forward.first_columns,
            positions,
            forward.rows,
            forward.next_rows,
            forward.next_inputs,
        )
