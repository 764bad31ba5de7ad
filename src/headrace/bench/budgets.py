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
from headrace.hf.placing import choose_placing
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
        weights_on_host: share of the layers' weights that is streamed.
        resident: share of the cache for which ``auto`` has room on the device; None: what the
            budget that was asked for gives.
    """

    weights_on_host: float
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
        if share is None:
            share = _placed_share(case, fitted.sizes, model, profile, steps)
        return Wanted(share, None)
    asked = parse_bytes(case.gpu_memory, setting="gpu_memory")
    best = _plan(fitted.asked, steps, _ample(profile), asked, share)
    return Wanted(best.weights_streamed, best.split.resident)


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
    found = _budget_for(fitted.sizes, steps, _ample(profile), share, wanted.resident)
    work = Workload(fitted.sizes.rows, fitted.sizes.prompt_len, steps + 1)
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
    sizes: Sizes, steps: int, profile: HardwareProfile, share: float, kept: float
) -> int:
    """Return the most device memory with which no more of the cache stays there than ``kept``.

    Where nothing of the kind fits, the least that fits at all.
    """
    low, high = 0, _plan(sizes, steps, profile, None, share).gpu_bytes
    best = None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) // 2
        plan = _plan(sizes, steps, profile, max(1, middle), share)
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
    )


def _placed_share(
    case: Case, sizes: Sizes, model: nn.Module, profile: HardwareProfile, steps: int
) -> float:
    """Return the share of a model's weights for which a budget has no room under some policy.

    All policies run with the same weights, and one whose buffers are larger leaves less room.
    """
    parameter = next(model.parameters())
    dtype: torch.dtype = parameter.dtype
    config: Any = model.config
    work = Workload(sizes.rows, sizes.prompt_len, steps + 1)
    room = None
    if case.gpu_memory is not None:
        room = parse_bytes(case.gpu_memory, setting="gpu_memory") - _SPARE_BYTES
    return max(
        choose_placing(
            config,
            dtype,
            parameter.device,
            CacheOptions.checked(policy, room, None, None, None, profile, poison=False),
            work,
        ).share
        for policy in case.policies
    )
