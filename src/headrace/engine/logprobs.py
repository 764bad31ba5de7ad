"""Log-probabilities of a token and of the likeliest ones.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits_V: Tensor, token_id: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return how likely a token and the likeliest ones are, by the model itself.

    Args:
        logits_V: the model's logits, float32 on the CPU, as they are before bias, penalties,
            temperature and truncation.
        token_id: whose log-probability is returned first.
        count: how many of the likeliest tokens are returned; at most the vocabulary's.

    Returns:
        The token's natural log-probability, and the likeliest ids with theirs, likeliest first; of
        equal ones the lower id first, so that a greedy choice is the first.
    """
    logprobs_V = logits_V.log_softmax(dim=-1)
    count = min(count, len(logprobs_V))
    if not count:
        return float(logprobs_V[token_id]), ()
    least = logprobs_V.topk(count).values[-1]
    # `topk` takes any of equal values; in bfloat16 even the likeliest tokens are often equal.
    candidates = (logprobs_V >= least).nonzero().squeeze(-1)
    order = torch.argsort(logprobs_V[candidates], descending=True, stable=True)[:count]
    likeliest = candidates[order]
    top = zip(likeliest.tolist(), logprobs_V[likeliest].tolist(), strict=True)
    return float(logprobs_V[token_id]), tuple(top)
