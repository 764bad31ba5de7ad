"""The audit: is the output that of the plain model?

The plain model generates greedily, and its tokens are then fed to the model with a ``HostCache``.
Each step's logits are compared, and so is the token that they would choose: if it is the plain
model's in every step, then generating freely would have given the same tokens.

In float32 the logits must agree within 1e-4 of their range, and every token. In half precision no
two ways of running a model agree that well; there the limit is what the plain model's own two
attention implementations (eager and SDPA) differ by, and a token may only differ where the plain
model's own choice is closer than that.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.engine.agreement import (
    FLOAT32_TOLERANCE,
    HALF_FLOOR,
    HALF_SPREADS,
    choices_agree,
    logit_error,
    other_attention,
)
from headrace.engine.decoding import StaticBatch, plain_cache
from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.hf.cache import HostCache


@dataclass(frozen=True)
class Reference:
    """What the plain model does with some prompts.

    Attributes:
        tokens: int64 ``[steps, B]``, the greedy tokens.
        logits: float32 ``[B, V]`` of each step.
        tolerance: largest allowed difference of logits, as a share of their range.
        why: where the tolerance comes from.
    """

    tokens: Tensor
    logits: tuple[Tensor, ...]
    tolerance: float
    why: str


@dataclass(frozen=True)
class AuditResult:
    """How one way of running the model compares with the plain model.

    Attributes:
        policy: the policy.
        recompute_fraction: share of the prompts that is kept as X.
        tokens_identical: whether every step chooses the plain model's token.
        max_logit_error: largest difference of logits, as a share of their range in that step;
            infinite where any is not a number.
        tolerance: what is allowed; nothing passes if it is infinite.
        passed: whether the logits agree, and the tokens (in half precision: but for near ties).
        notes: what was decided differently from what was asked, and why.
    """

    policy: str
    recompute_fraction: float
    tokens_identical: bool
    max_logit_error: float
    tolerance: float
    passed: bool
    notes: tuple[str, ...]


def reference(model: nn.Module, ids: Tensor, mask: Tensor, steps: int) -> Reference:
    """Run the plain model greedily.

    Args:
        model: the model, without a cache of ours open.
        ids: token ids ``[B, S]``, padded on the left.
        mask: their attention mask.
        steps: tokens to generate.

    Raises:
        ConfigurationError: there is no step.
    """
    if steps < 1:
        raise ConfigurationError(f"an audit of {steps} tokens was asked for; allowed is 1 or more")
    logits, tokens = _run(model, ids, mask, plain_cache(model), steps, None)
    if logits[0].dtype == torch.float32 and next(model.parameters()).dtype == torch.float32:
        return Reference(tokens, logits, FLOAT32_TOLERANCE, "1e-4 of the range, in float32")
    others, way = _another_way(model, ids, mask, tokens)
    spread = max(logit_error(mine, other) for mine, other in zip(logits, others, strict=True))
    return Reference(
        tokens,
        logits,
        max(HALF_SPREADS * spread, HALF_FLOOR),
        f"{HALF_SPREADS:g} times what the plain model differs from itself by when {way} "
        f"({spread:.2g} of the range)",
    )


def _another_way(
    model: nn.Module, ids: Tensor, mask: Tensor, tokens: Tensor
) -> tuple[tuple[Tensor, ...], str]:
    """Return the plain model's logits for the same tokens, computed another way, and which."""
    try:
        with other_attention(model) as name:
            logits, _ = _run(model, ids, mask, plain_cache(model), len(tokens), tokens)
        return logits, f"run with {name} attention"
    except ValueError:  # some architectures have but one implementation
        precise = copy.deepcopy(model).float()
        logits, _ = _run(precise, ids, mask, plain_cache(model), len(tokens), tokens)
        return logits, "run in float32"


def audit(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    expected: Reference,
    *,
    policy: str,
    recompute_fraction: float | None = None,
    profile: HardwareProfile | str | None = None,
) -> AuditResult:
    """Compare the model under a policy with the plain model.

    Args:
        model: the model.
        ids: token ids ``[B, S]``, padded on the left.
        mask: their attention mask.
        expected: of the same prompts.
        policy: see ``HostCache``.
        recompute_fraction: see ``HostCache``.
        profile: see ``HostCache``.
    """
    steps = expected.tokens.shape[0]
    with HostCache(
        model,
        policy=policy,
        recompute_fraction=recompute_fraction,
        profile=profile,
        reserve_tokens=steps,
    ) as cache:
        made, _ = _run(model, ids, mask, cache, steps, expected.tokens)
        chosen, fraction, notes = cache.policy, cache.recompute_fraction, cache.notes
    error = max(logit_error(mine, plain) for mine, plain in zip(made, expected.logits, strict=True))
    same = [
        choices_agree(mine, plain, expected.tolerance)
        for mine, plain in zip(made, expected.logits, strict=True)
    ]
    identical = all(exact for exact, _ in same)
    near = all(exact or close for exact, close in same)
    strict = expected.tolerance == FLOAT32_TOLERANCE
    return AuditResult(
        policy=chosen,
        recompute_fraction=fraction,
        tokens_identical=identical,
        max_logit_error=error,
        tolerance=expected.tolerance,
        passed=error <= expected.tolerance < math.inf and (identical if strict else near),
        notes=notes,
    )


def _run(
    model: nn.Module, ids: Tensor, mask: Tensor, cache: Any, steps: int, forced: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return each step's logits, and the tokens: the greedy ones, or those that were forced."""
    batch = StaticBatch(model, ids, mask, cache)
    logits, tokens = [batch.prefill()], []
    for step in range(steps):
        tokens.append(logits[-1].argmax(dim=-1) if forced is None else forced[step])
        if step + 1 < steps:
            logits.append(batch.step(tokens[-1]))
    return tuple(logits), torch.stack(tokens)


def audit_all(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    steps: int,
    ways: Sequence[tuple[str, float | None]],
    profile: HardwareProfile | str | None = None,
) -> tuple[Reference, list[AuditResult]]:
    """Audit several (policy, recompute fraction) on the same prompts."""
    expected = reference(model, ids, mask, steps)
    results = [
        audit(
            model,
            ids,
            mask,
            expected,
            policy=policy,
            recompute_fraction=fraction,
            profile=profile,
        )
        for policy, fraction in ways
    ]
    return expected, results
