"""Partial attention in one call of torch's fused CUDA kernels, which also tell the log-sum-exp.

They launch one kernel where the plain way (``attention.attend``) launches a dozen, and launching is
what limits a step of many small pieces. Outputs are rounded to the cache's dtype before they are
merged; so they are used in half precision only, where the model's own attention rounds alike.

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


def attend_visible(
    query_NHGD: Tensor, key_NHKD: Tensor, value_NHKD: Tensor, scale: float, bias_NHGK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the keys whose bias is 0; see ``attend_all``.

    Args:
        query_NHGD: queries.
        key_NHKD: keys.
        value_NHKD: values.
        scale: factor on the products.
        bias_NHGK: from ``visible_bias``.
    """
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query_NHGD, key_NHKD, value_NHKD, bias_NHGK, True, 0.0, False, scale=scale
    )
    # The kernel pads the queries.
    logsumexp = logsumexp[..., : query_NHGD.shape[2]]
    return output.float(), logsumexp, _ones(output.device).expand(logsumexp.shape)


def visible_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 for visible keys, and for others next to minus infinity.

    It is finite, so that a row that sees nothing has an output, whose weight is then 0.
    """
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min / 2)


@lru_cache(maxsize=8)
def _ones(device: torch.device) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=device)
