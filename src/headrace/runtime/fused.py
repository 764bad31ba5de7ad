"""Partial attention in one call of torch's fused kernels, which also tell the log-sum-exp.

They serve many queries, for which ``page_kernels`` are not made. Outputs are rounded to the cache's
dtype before they are merged, as the model's own attention rounds its only one.

Shape suffixes: as in ``attention``; Q queries, which need not be grouped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_WIDEST = 256
_ALIGNMENT = 8


def is_fused(query_NHGD: Tensor) -> bool:
    """Return whether there is a kernel for queries like these."""
    if not query_NHGD.is_cuda:
        return query_NHGD.device.type == "cpu" and query_NHGD.dtype in (*_HALF, torch.float32)
    width = query_NHGD.shape[3]
    return query_NHGD.dtype in _HALF and width <= _WIDEST and width % _ALIGNMENT == 0


def attend_all(
    query_NHQD: Tensor,
    key_NHKD: Tensor,
    value_NHKD: Tensor,
    scale: float,
    *,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to all keys, or of as many keys as queries to those that are not later.

    Returns:
        Output, maximum and total as in ``Partial``: the output is normalised, and the log-sum-exp
        stands for the maximum of one key.
    """
    query_NHQD, key_NHKD, value_NHKD = map(_in_one, (query_NHQD, key_NHKD, value_NHKD))
    if query_NHQD.is_cuda:
        output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query_NHQD,
            key_NHKD,
            value_NHKD,
            0.0,
            is_causal,
            return_debug_mask=False,
            scale=scale,
        )
    else:
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_NHQD, key_NHKD, value_NHKD, 0.0, is_causal, scale=scale
        )
    return output.float(), logsumexp, _ones(output.device).expand(logsumexp.shape)


def _in_one(part: Tensor) -> Tensor:
    """Return a tensor whose heads are each contiguous: the kernels do not look."""
    return part if part.stride(-1) == 1 else part.contiguous()


@lru_cache(maxsize=8)
def _ones(device: torch.device) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=device)
