"""Are the first tokens of every run those of the plain model?

All runs are fed the tokens that the first run chose, so that a near tie that falls otherwise does
not make everything after it differ. The rules are the audit's (``engine/audit.py``).

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headrace.bench.measurement import Agreement
from headrace.engine.agreement import (
    FLOAT32_TOLERANCE,
    HALF_FLOOR,
    HALF_SPREADS,
    choices_agree,
    logit_error,
    other_attention,
)
from headrace.engine.decoding import StaticBatch, plain_cache

_SPREAD_ROWS, _SPREAD_TOKENS, _SPREAD_STEPS = 4, 2048, 3
_SCORE_BYTES = 1 << 30


@dataclass
class Comparison:
    """The logits of the run that came first, and how those of the others compare.

    Args:
        tolerance: largest allowed difference of logits, as a share of their range.
    """

    tolerance: float
    _reference: str | None = None
    _logits: list[Tensor] = field(default_factory=list)
    _seen: dict[str, list[tuple[float, bool, bool]]] = field(default_factory=dict)

    def follow(self, name: str, logits: Tensor) -> Tensor:
        """Note a run's next logits, float32 ``[B, V]``; return the tokens it is to go on with."""
        if self._reference in (None, name):
            self._reference = name
            self._logits.append(logits.detach().clone())
            return logits.argmax(dim=-1)
        seen = self._seen.setdefault(name, [])
        if len(seen) >= len(self._logits):
            return logits.argmax(dim=-1)
        expected = self._logits[len(seen)]
        same, near = choices_agree(logits, expected, self.tolerance)
        seen.append((logit_error(logits, expected), same, near))
        return expected.argmax(dim=-1)

    def forget(self, name: str) -> None:
        """Drop a run that failed; if the others were compared with it, the next one takes over."""
        self._seen.pop(name, None)
        if self._reference == name:
            self._reference, self._logits = None, []
            self._seen = {}

    def agreement(self, name: str) -> Agreement | None:
        """Return how a run compares; None for the one that the others are compared with."""
        seen = self._seen.get(name)
        if not seen or self._reference is None:
            return None
        errors, same, near = zip(*seen, strict=True)
        strict = self.tolerance == FLOAT32_TOLERANCE
        return Agreement(
            compared_with=self._reference,
            steps=len(seen),
            tokens_identical=all(same),
            max_logit_error=max(errors),
            tolerance=self.tolerance,
            passed=max(errors) <= self.tolerance
            and (all(same) if strict else all(s or n for s, n in zip(same, near, strict=True))),
        )


def allowed_error(model: nn.Module, ids: Tensor, mask: Tensor) -> float:
    """Return the largest difference of logits that is allowed for a batch.

    In half precision it is twice what the plain model differs from itself by when it runs with its
    other attention implementation, over the begin of a few rows.

    Args:
        model: the model, without a cache of ours under way.
        ids: token ids ``[B, S]``, padded on the left.
        mask: their attention mask.
    """
    if next(model.parameters()).dtype == torch.float32:
        return FLOAT32_TOLERANCE
    part = slice(_SPREAD_ROWS), slice(_SPREAD_TOKENS)
    ids, mask = ids[part], mask[part]
    rows, length = ids.shape
    heads = int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    chunk = max(1, _SCORE_BYTES // (rows * heads * length * 4))
    plain, tokens = _logits(model, ids, mask, chunk, None)
    with other_attention(model):
        others, _ = _logits(model, ids, mask, chunk, tokens)
    spread = max(logit_error(other, one) for one, other in zip(plain, others, strict=True))
    return max(HALF_SPREADS * spread, HALF_FLOOR)


def _logits(
    model: nn.Module, ids: Tensor, mask: Tensor, chunk: int, forced: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each step's logits, and the tokens that were fed."""
    batch = StaticBatch(model, ids, mask, plain_cache(model))
    logits, tokens = [batch.prefill(chunk)], []
    for step in range(_SPREAD_STEPS):
        tokens.append(logits[-1].argmax(dim=-1) if forced is None else forced[step])
        logits.append(batch.step(tokens[-1]))
    return logits, tokens
