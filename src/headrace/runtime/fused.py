"""Partial attention in one call of torch's fused CUDA kernel, which also tells the log-sum-exp.

It serves many queries, for which ``page_kernels`` are not made. Outputs are rounded to the cache's
dtype before they are merged; so it is used in half precision only, where the model's own attention
rounds alike.

Shape suffixes: as in ``attention``.
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
    width = query_NHGD.shape[3]
    return (
        query_NHGD.is_cuda
        and query_NHGD.dtype in _HALF
        and width <= _WIDEST
        and width % _ALIGNMENT == 0
    )


def attend_all(
    query_NHGD: Tensor, key_NHKD: Tensor, value_NHKD: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to all keys.

    Returns:
        Output, maximum and total as in ``Partial``: the output is normalised, and the log-sum-exp
        stands for the maximum of one key.
    """
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query_NHGD, key_NHKD, value_NHKD, 0.0, False, return_debug_mask=False, scale=scale
    )
    return output.float(), logsumexp, _ones(output.device).expand(logsumexp.shape)


@lru_cache(maxsize=8)
def _ones(device: torch.device) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=device)
