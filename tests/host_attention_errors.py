"""Host attention beside float64, and beside torch's own attention in the same dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tests.host_attention_support import Case
from torch import Tensor

from headrace.runtime.attention import Partial, Scoring

FLOAT32_EPSILON = 2.0**-23


@dataclass(frozen=True)
class Expected:
    """Attention of one row in float64, and how far torch's own is from it.

    Attributes:
        output: ``[H, G, D]``.
        maximum: largest score, ``[H, G]``; ``-inf`` without keys.
        total: sum of ``exp(score - maximum)``, ``[H, G]``.
        largest_score: without its sign.
        mixed: largest weighted mean of values' sizes.
        torchs: largest error of torch's own attention, in the tensors' dtype.
        torchs_mean: root of its mean squared error.
        torchs_on_pages: largest error where torch attends to whole pages and the row's last one is
            masked: products of other sizes take other ways, some of which err more.
    """

    output: Tensor
    maximum: Tensor
    total: Tensor
    largest_score: float
    mixed: float
    torchs: float
    torchs_mean: float
    torchs_on_pages: float


def plain_scores(query_HGD: Tensor, key_HKD: Tensor, scoring: Scoring) -> Tensor:
    """Return scores in the tensors' dtype, operation by operation."""
    scores = query_HGD @ key_HKD.transpose(1, 2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    return scores


def torch_attention(
    query_HGD: Tensor,
    key_HKD: Tensor,
    value_HKD: Tensor,
    scoring: Scoring,
    visible_K: Tensor | None = None,
) -> Tensor:
    """Return torch's own attention in the tensors' dtype, to all keys or to those that are visible.

    It has no soft cap; with one, scores and their softmax are float32, as transformers' are.
    """
    if scoring.softcap is not None:
        scores = plain_scores(query_HGD.float(), key_HKD.float(), scoring)
        if visible_K is not None:
            scores = scores.masked_fill(~visible_K, -math.inf)
        return scores.softmax(-1).to(value_HKD.dtype) @ value_HKD
    mask = None if visible_K is None else visible_K[None, None, None]
    made: Tensor = torch.nn.functional.scaled_dot_product_attention(
        query_HGD[None], key_HKD[None], value_HKD[None], attn_mask=mask, scale=scoring.scale
    )
    return made[0]


def torch_attention_on_pages(
    query_HGD: Tensor, key_HKD: Tensor, value_HKD: Tensor, scoring: Scoring, page_tokens: int
) -> Tensor:
    """Return torch's own attention to whole pages, of whose last one the rest is hidden."""
    tokens = key_HKD.shape[1]
    rest = (0, 0, 0, -tokens % page_tokens)
    key, value = (torch.nn.functional.pad(part, rest) for part in (key_HKD, value_HKD))
    return torch_attention(query_HGD, key, value, scoring, torch.arange(key.shape[1]) < tokens)


def expected_of(case: Case, scoring: Scoring | None = None) -> list[Expected]:
    """Return what each row's result should be; it is made once."""
    scoring = scoring or case.scoring
    if scoring not in case.expected:
        rows = zip(case.query, case.keys, case.values, strict=True)
        case.expected[scoring] = [_expected_row(*row, scoring, case.page_tokens) for row in rows]
    made: list[Expected] = case.expected[scoring]
    return made


def _expected_row(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, page_tokens: int
) -> Expected:
    if key.shape[1] == 0:
        nothing = torch.zeros(query.shape[:2], dtype=torch.float64)
        output = torch.zeros(query.shape, dtype=torch.float64)
        return Expected(output, nothing - math.inf, nothing, 0.0, 0.0, 0.0, 0.0, 0.0)
    scores = plain_scores(query.double(), key.double(), scoring)
    maximum = scores.amax(-1)
    weights = torch.exp(scores - maximum[..., None])
    total = weights.sum(-1)
    weights /= total[..., None]
    output = weights @ value.double()
    wrong = torch_attention(query, key, value, scoring) - output
    return Expected(
        output=output,
        maximum=maximum,
        total=total,
        largest_score=_largest(scores),
        mixed=_largest(weights @ value.double().abs()),
        torchs=_largest(wrong),
        torchs_mean=_mean(wrong),
        torchs_on_pages=_largest(
            torch_attention_on_pages(query, key, value, scoring, page_tokens) - output
        ),
    )


@dataclass(frozen=True)
class Errors:
    """Errors of one row's output against float64, where it is float32 or rounded to the dtype.

    Attributes:
        row: which.
        tokens: that it sees.
        ours: the largest.
        torchs: that of torch's own attention in the dtype.
        floor: what rounding scores and outputs to float32 alone may make.
        chance: what rounding weights and outputs to the dtype may make at worst.
        ours_mean: root of the mean squared error.
        torchs_mean: that of torch's own attention.
    """

    row: int
    tokens: int
    ours: float
    torchs: float
    floor: float
    chance: float
    ours_mean: float
    torchs_mean: float

    @property
    def are_small(self) -> bool:
        """Whether the largest is within twice torch's; where that is nothing, within the floor."""
        return self.ours <= 2 * self.torchs + self.floor

    @property
    def are_near(self) -> bool:
        """Whether it is, or would be where torch's is small by chance, as one number's may be."""
        return self.ours <= 2 * self.torchs + self.chance

    @property
    def are_torchs(self) -> bool:
        """Whether the mean is within twice torch's too, which leaves less to chance."""
        return self.are_small and self.ours_mean <= 2 * self.torchs_mean


def errors_of(
    case: Case, part: Partial, scoring: Scoring | None = None, *, by_torch: bool = False
) -> list[Errors]:
    """Compare a result with attention in float64, row by row; maxima and totals must agree.

    Args:
        case: what was attended to.
        part: the result.
        scoring: the case's, or another.
        by_torch: whether torch attended, page by page: it is then no better than it is on pages.
    """
    errors = []
    for row, expected in enumerate(expected_of(case, scoring)):
        _check_partial(case, part, row, expected)
        total = part.total[row].clamp_min(torch.finfo(torch.float32).tiny)
        made = part.output[row] / total[..., None]
        epsilon = FLOAT32_EPSILON * (1 + expected.largest_score)
        dtype = case.query.dtype
        wrong = [made - expected.output, made.to(dtype) - expected.output]
        errors.append(
            Errors(
                row=row,
                tokens=case.keys[row].shape[1],
                ours=max(map(_largest, wrong)),
                torchs=max(expected.torchs, expected.torchs_on_pages if by_torch else 0.0),
                floor=epsilon * _largest(expected.output),
                chance=(epsilon + torch.finfo(dtype).eps) * expected.mixed,
                ours_mean=max(map(_mean, wrong)),
                torchs_mean=expected.torchs_mean,
            )
        )
    return errors


def assert_small(
    case: Case, part: Partial, scoring: Scoring | None = None, *, by_torch: bool = False
) -> None:
    """Fail unless each row's largest error is within twice torch's."""
    errors = errors_of(case, part, scoring, by_torch=by_torch)
    assert all(each.are_small for each in errors), [each for each in errors if not each.are_small]


def assert_near(case: Case, part: Partial, scoring: Scoring | None = None) -> None:
    """Fail unless each row's largest error is within twice torch's, or near it by chance."""
    errors = errors_of(case, part, scoring)
    assert all(each.are_near for each in errors), [each for each in errors if not each.are_near]


def assert_torchs(case: Case, part: Partial, scoring: Scoring | None = None) -> None:
    """Fail unless each row's errors, the largest and the mean, are within twice torch's."""
    errors = errors_of(case, part, scoring)
    assert all(each.are_torchs for each in errors), [each for each in errors if not each.are_torchs]


def _check_partial(case: Case, part: Partial, row: int, expected: Expected) -> None:
    """Fail unless maximum and total of a row are those of its scores."""
    maximum, total = part.maximum[row].double(), part.total[row].double()
    if case.keys[row].shape[1] == 0:
        assert torch.equal(maximum, expected.maximum)
        assert not total.any()
        assert not part.output[row].any()
        return
    close = 1e-5 * (1 + expected.largest_score)
    torch.testing.assert_close(maximum, expected.maximum, rtol=0.0, atol=close)
    # Weights may be rounded to bfloat16; what total means depends on the maximum that was found.
    weights = 5e-3 if case.query.dtype is torch.bfloat16 else 0.0
    relative = expected.total * torch.exp(expected.maximum - maximum)
    torch.testing.assert_close(total, relative, rtol=close + weights, atol=0.0)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().amax().item() if tensor.numel() else 0.0


def _mean(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0
