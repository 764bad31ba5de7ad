"""The device memory, and the share of streamed weights, that a case is run with.

A case that is run smaller than asked gets a smaller budget, for otherwise everything would fit: the
same share of the weights is streamed, and ``auto`` has room for the same share of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from headrace.bench.catalogue import Case
from headrace.bench.sizes import Fitted, Sizes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.embedding import host_embedding
from headrace.hf.placing import Placing, choose_placing
from headrace.hf.planning import CacheOptions
from headrace.hf.set_aside import set_aside_of
from headrace.hf.weights import placed_weights
from headrace.plan.plan import Plan, make_plan
from headrace.plan.workload import Workload
from headrace.units import format_bytes, parse_bytes

_AMPLE_BYTES = 2**50
_SPARE_BYTES = 256 << 20
"""Device memory that weights leave free, for what a model has beside its matrices."""

_SEARCH_STEPS = 16
_NEAR = 0.02
"""How much more of the cache than intended may stay on the device."""


@dataclass(frozen=True)
class Budget:
    """What a case is run with.

    Attributes:
        gpu_bytes: device memory to keep within; None: all of it.
        weights_on_host: share of the layers' weights that is streamed.
        words: what was changed, and why; empty if nothing.
        only_auto: whether the budget is for ``auto`` alone. In a small slice, buffers of full
            transfer may take more than all of the cache does; the policies that keep nothing of the
            cache on the device then run without a budget.
    """

    gpu_bytes: int | None
    weights_on_host: float
    words: str = ""
    only_auto: bool = False

    def of(self, policy: str) -> int | None:
        """Return the bytes that a policy keeps within; None: all that there are."""
        return None if self.only_auto and policy != "auto" else self.gpu_bytes


@dataclass(frozen=True)
class Wanted:
    """What is to be kept where.

    Attributes:
        placing: of the weights.
        resident: share of the cache for which ``auto`` has room on the device; None: what the
            budget that was asked for gives.
    """

    placing: Placing
    resident: float | None


def choose_wanted(
    case: Case, fitted: Fitted, model: nn.Module, profile: HardwareProfile, steps: int
) -> Wanted:
    """Return what is to be kept where.

    Args:
        case: what is asked for.
        fitted: the sizes at which it is run.
        model: the model, all of it on its device.
        profile: this machine.
        steps: steps that each run takes.
    """
    share = case.weights_on_host
    if fitted.asked == fitted.sizes or case.gpu_memory is None:
        return Wanted(_placing(case, fitted.sizes, model, profile, steps), None)
    asked = parse_bytes(case.gpu_memory, setting="gpu_memory")
    best = _plan(fitted.asked, steps, _ample(profile), asked, share)
    placing = Placing(best.weights_streamed, None, profile, best.embedding_on_host)
    return Wanted(placing, best.split.resident)


def choose_budget(
    case: Case,
    fitted: Fitted,
    wanted: Wanted,
    model: nn.Module,
    profile: HardwareProfile,
    steps: int,
) -> Budget:
    """Return what a case is run with, once the model's weights are where they are to be.

    Args:
        case: what is asked for.
        fitted: the sizes at which it is run.
        wanted: what is to be kept where.
        model: the model, with its weights placed.
        profile: this machine.
        steps: steps that each run takes.
    """
    placed = placed_weights(model)
    share = 0.0 if placed is None else placed.share
    if wanted.resident is None:
        asked = parse_bytes(case.gpu_memory, setting="gpu_memory") if case.gpu_memory else None
        return Budget(asked, share)
    sizes, on_host = fitted.sizes, host_embedding(model) is not None
    found = _budget_for(sizes, steps, _ample(profile), share, on_host, wanted.resident)
    work = Workload(sizes.rows, sizes.prompt_len, steps + 1)
    gpu_bytes = set_aside_of(model, work).budget_for(found)
    return Budget(
        gpu_bytes,
        share,
        f"device memory {case.gpu_memory} asked, for auto {format_bytes(gpu_bytes)} given: room "
        f"for the same share of the cache ({wanted.resident:.0%}), with {share:.0%} of the weights "
        "on the host",
        only_auto=True,
    )


def _ample(profile: HardwareProfile) -> HardwareProfile:
    """Return a machine that has memory without end."""
    return replace(profile, device_memory_bytes=_AMPLE_BYTES, host_memory_bytes=_AMPLE_BYTES)


def _budget_for(
    sizes: Sizes,
    steps: int,
    profile: HardwareProfile,
    share: float,
    embedding_on_host: bool,
    kept: float,
) -> int:
    """Return the most device memory with which no more of the cache stays there than ``kept``.

    Where nothing of the kind fits, the least that fits at all.
    """
    low, high = 0, _plan(sizes, steps, profile, None, share, embedding_on_host).gpu_bytes
    best = None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) // 2
        plan = _plan(sizes, steps, profile, max(1, middle), share, embedding_on_host)
        if not plan.feasible:
            low = middle
        elif plan.split.resident > kept + _NEAR:
            high = middle
        else:
            low, best = middle, middle
    return high if best is None else best


def _plan(
    sizes: Sizes,
    steps: int,
    profile: HardwareProfile,
    gpu_bytes: int | None,
    share: float | None,
    embedding_on_host: bool | None = None,
) -> Plan:
    """Return the plan of ``auto``, whatever the context that the model has positions for."""
    work = Workload(sizes.rows, sizes.prompt_len, steps + 1)
    shape = sizes.shape
    return make_plan(
        replace(shape, max_context=max(shape.max_context, work.max_context)),
        work,
        profile,
        gpu_memory_bytes=gpu_bytes,
        weights_streamed=share,
        embedding_on_host=embedding_on_host,
    )


def _placing(
    case: Case, sizes: Sizes, model: nn.Module, profile: HardwareProfile, steps: int
) -> Placing:
    """Return where a model's weights go, so that a budget has room for them under any policy.

    All policies run with the same weights, and one whose buffers are larger leaves less room. Where
    the case says how much is streamed, the embedding goes along.
    """
    if case.weights_on_host is not None:
        own = not sizes.shape.tied_embeddings
        return Placing(case.weights_on_host, None, profile, own and case.weights_on_host > 0)
    parameter = next(model.parameters())
    dtype: torch.dtype = parameter.dtype
    config: Any = model.config
    work = Workload(sizes.rows, sizes.prompt_len, steps + 1)
    room = None
    if case.gpu_memory is not None:
        room = parse_bytes(case.gpu_memory, setting="gpu_memory") - _SPARE_BYTES
    placings = [
        choose_placing(
            config,
            dtype,
            parameter.device,
            CacheOptions.checked(policy, room, None, None, None, profile, poison=False),
            work,
        )
        for policy in case.policies
    ]
    return max(placings, key=lambda one: (one.share, one.embedding_on_host))
