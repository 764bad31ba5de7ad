"""From a model and a caller's wishes to the settings of a cache."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import nn

from headrace.errors import ConfigurationError, MemoryBudgetError
from headrace.hardware.catalog import resolve
from headrace.hardware.identity import available_host_memory_bytes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attachment import Attachment
from headrace.hf.machine import machine_profile
from headrace.hf.set_aside import SetAside, results_bytes, scores_bytes, set_aside
from headrace.hf.shape import model_shape
from headrace.model.shape import ModelShape
from headrace.plan.demands import PATHS
from headrace.plan.geometry import choose_geometry, prompt_granule_bytes
from headrace.plan.options import PlanOptions
from headrace.plan.plan import Plan, make_plan
from headrace.plan.policies import Policy, Split, recompute_split, resident_split, stream_split
from headrace.plan.replan import Replanner
from headrace.plan.workload import Workload
from headrace.runtime.settings import CacheSettings
from headrace.runtime.store import LayerWidths
from headrace.units import format_bytes, parse_bytes

PROMPT_TOKENS_WITHOUT_BUDGET = 1024
"""Tokens of prompts that go through the model at once where no budget of memory says less."""

_REBUILDING = (Policy.RECOMPUTE, Policy.KVPR)


@dataclass(frozen=True)
class CacheOptions:
    """What a caller asks of a cache; see ``HostCache`` for the meaning of each."""

    policy: Policy
    gpu_memory_bytes: int | None
    host_memory_bytes: int | None
    recompute_fraction: float | None
    host_fraction: float | None
    profile: HardwareProfile | None
    poison: bool = False

    @classmethod
    def checked(
        cls,
        policy: str,
        gpu_memory: str | int | None,
        host_memory: str | int | None,
        recompute_fraction: float | None,
        host_fraction: float | None,
        profile: HardwareProfile | str | None,
        poison: bool,
    ) -> CacheOptions:
        """Return the options, or raise ``ConfigurationError`` for one that is not allowed."""
        if policy not in list(Policy):
            raise ConfigurationError(f"policy is {policy!r}; allowed are {', '.join(Policy)}")
        chosen = Policy(policy)
        for setting, fraction in (
            ("recompute_fraction", recompute_fraction),
            ("host_fraction", host_fraction),
        ):
            if fraction is not None and not 0.0 <= fraction <= 1.0:
                raise ConfigurationError(
                    f"{setting} is {fraction}; allowed are fractions from 0 to 1"
                )
        if (recompute_fraction or 0.0) + (host_fraction or 0.0) > 1.0:
            raise ConfigurationError(
                f"recompute_fraction is {recompute_fraction} and host_fraction {host_fraction}; "
                "together they may be at most 1, so lower one of them"
            )
        if host_fraction and chosen not in (Policy.AUTO, Policy.HOST, Policy.RECOMPUTE):
            raise ConfigurationError(
                f"host_fraction is {host_fraction}, but with policy {policy!r} the host does not "
                "attend; use policy 'host', 'auto' or 'recompute', or leave host_fraction out"
            )
        if recompute_fraction and chosen not in (*_REBUILDING, Policy.AUTO, Policy.HOST):
            raise ConfigurationError(
                f"recompute_fraction is {recompute_fraction}, but policy {policy!r} rebuilds "
                "nothing; use policy 'recompute' or 'kvpr', or leave recompute_fraction out"
            )
        return cls(
            chosen,
            None if gpu_memory is None else parse_bytes(gpu_memory, setting="gpu_memory"),
            None if host_memory is None else parse_bytes(host_memory, setting="host_memory"),
            recompute_fraction,
            host_fraction,
            resolve(profile) if isinstance(profile, str) else profile,
            poison,
        )


@dataclass(frozen=True)
class CachePlan:
    """What is decided for a batch.

    Attributes:
        settings: for the runtime.
        plan: the plan with its prediction, or None where no profile was needed.
        profile: the machine that it was made for, if any.
        notes: what was decided differently from what was asked, and why.
        replanner: what predicts other splits while rows run; None where the split is to stay.
    """

    settings: CacheSettings
    plan: Plan | None
    profile: HardwareProfile | None
    notes: tuple[str, ...]
    replanner: Replanner | None = None


def plan_cache(
    model: nn.Module,
    attachment: Attachment,
    options: CacheOptions,
    workload: Workload,
    device: torch.device,
    dtype: torch.dtype,
    prefill_tokens: int | None,
    *,
    replayed: bool = False,
) -> CachePlan:
    """Decide how a batch's cache is laid out.

    Args:
        model: the model.
        attachment: what is known of it.
        options: what is asked.
        workload: the batch.
        device: the model's.
        dtype: of the cache.
        prefill_tokens: tokens of prompts that go through the model at once; None: as planned.
        replayed: whether forwards of decode steps are replayed, on a GPU.

    Raises:
        MemoryBudgetError: it does not fit the budgets.
    """
    shape = model_shape(model, attachment, dtype)
    policy, notes = options.policy, []
    reason = attachment.why_not_rebuilt
    paths: tuple[str, ...] = PATHS
    if reason is not None:
        paths = tuple(path for path in paths if path != "recompute")
        if policy in _REBUILDING or options.recompute_fraction:
            notes.append(f"policy {policy.value!r} is replaced by 'stream': {reason}")
            warnings.warn(notes[-1], stacklevel=2)
            policy = Policy.STREAM
        options = replace(options, recompute_fraction=None)
    streamed = 0.0 if attachment.placed is None else attachment.placed.share
    plan, profile, resident_pages, host_share = None, options.profile, None, 0.0
    if _needs_profile(policy, options):
        profile = profile or machine_profile(model)
        profile = profile if replayed else profile.without_replays()
        aside = set_aside(model, attachment, shape, workload, device)
        plan = _fitting_plan(
            shape, workload, profile, policy, options, paths, streamed, prefill_tokens, aside
        )
        policy, split, geometry = plan.policy, plan.admission, plan.geometry
        resident_pages, host_share = plan.placement.resident_pages, plan.placement.host
    else:
        policy, split = _plain_split(policy, options)
        on_host = split.stream + split.host
        host_share = split.host / on_host if on_host else 0.0
        part = prefill_tokens or PROMPT_TOKENS_WITHOUT_BUDGET
        geometry = choose_geometry(
            *(shape, workload.rows, workload.mean_context, split),
            policy=policy,
            least_bytes=prompt_granule_bytes(shape, part) if part < workload.prompt_len else 0.0,
        )
    settings = CacheSettings(
        shape=shape,
        dtype=dtype,
        policy=policy,
        split=split,
        geometry=geometry,
        widths=_widths(attachment, windowed=False),
        windows={
            layer: (widths, _window(attachment, layer))
            for layer, widths in _widths(attachment, windowed=True).items()
        },
        resident_pages=resident_pages,
        host_share=host_share,
        workspace_bytes=scores_bytes(options.gpu_memory_bytes),
        results_bytes=results_bytes(options.gpu_memory_bytes),
        host_memory_bytes=_left_on_host(attachment, options),
        poison=options.poison,
    )
    replanner = None
    if _may_change(options, policy, settings, streamed) and plan is not None:
        assert profile is not None
        asked = PlanOptions.checked(paths=_measured(paths, profile), weights_streamed=streamed)
        replanner = Replanner(shape, profile, asked, geometry)
    return CachePlan(settings, plan, profile, tuple(notes), replanner)


def _may_change(
    options: CacheOptions, policy: Policy, settings: CacheSettings, streamed: float
) -> bool:
    """Return whether the split may change while rows run.

    Only ``auto`` leaves it open. Under ``kvpr`` loads have an order of their own, and without the
    weights that stay on the device no page of X can be rebuilt between steps.
    """
    free = options.policy is Policy.AUTO and options.recompute_fraction is None
    return free and policy is not Policy.KVPR and not settings.all_resident and streamed == 0


def _left_on_host(attachment: Attachment, options: CacheOptions) -> int:
    """Return the host memory that the cache may take: what is free, and weights have left of it."""
    free = available_host_memory_bytes()
    if options.host_memory_bytes is None:
        return free
    weights = 0 if attachment.placed is None else attachment.placed.streamed.host_bytes
    weights += 0 if attachment.embedding is None else attachment.embedding.size_bytes
    return max(0, min(free, options.host_memory_bytes - weights))


def _needs_profile(policy: Policy, options: CacheOptions) -> bool:
    """Return whether anything has to be predicted: else no machine need be measured."""
    if options.host_fraction is not None:
        return False
    if options.profile is not None or options.gpu_memory_bytes is not None:
        return True
    if policy is Policy.AUTO:
        return options.recompute_fraction is None
    return policy in _REBUILDING and options.recompute_fraction is None


def _plain_split(policy: Policy, options: CacheOptions) -> tuple[Policy, Split]:
    """Return the split that the options give, without any planning."""
    if options.host_fraction is not None or policy is Policy.HOST:
        rebuilt = options.recompute_fraction or 0.0
        host = 1.0 - rebuilt if options.host_fraction is None else options.host_fraction
        return policy, Split(0.0, max(0.0, 1.0 - rebuilt - host), rebuilt, host)
    if options.recompute_fraction is not None and policy in (*_REBUILDING, Policy.AUTO):
        chosen = Policy.RECOMPUTE if policy is Policy.AUTO else policy
        return chosen, recompute_split(options.recompute_fraction)
    return policy, resident_split() if policy is Policy.RESIDENT else stream_split()


def _fitting_plan(
    shape: ModelShape,
    workload: Workload,
    profile: HardwareProfile,
    policy: Policy,
    options: CacheOptions,
    paths: tuple[str, ...],
    weights_streamed: float,
    prefill_tokens: int | None,
    aside: SetAside,
) -> Plan:
    # What the model's positions allow is the caller's business: a cache does not limit it.
    roomy = replace(shape, max_context=max(shape.max_context, workload.max_context))
    budget = options.gpu_memory_bytes
    plan = make_plan(
        roomy,
        workload,
        profile,
        policy=policy,
        gpu_memory_bytes=aside.left_of(budget),
        host_memory_bytes=options.host_memory_bytes,
        recompute_fraction=options.recompute_fraction,
        paths=_measured(paths, profile),
        weights_streamed=weights_streamed,
        prefill_tokens=prefill_tokens,
        embedding_on_host=shape.embedding_on_host,
    )
    if not plan.feasible:
        limit = "" if budget is None else f" (gpu_memory is {format_bytes(budget)})"
        raise MemoryBudgetError(f"the cache does not fit{limit}: {'; '.join(plan.reasons[:1])}")
    return plan


def _measured(paths: tuple[str, ...], profile: HardwareProfile) -> tuple[str, ...]:
    """Return the paths of which the profile says how fast they are."""
    if profile.host_attend_bytes_per_s is None:
        return tuple(path for path in paths if path != "host")
    return paths


def _widths(attachment: Attachment, windowed: bool) -> dict[int, LayerWidths]:
    widths = {}
    for index, layer in enumerate(attachment.layers):
        if (layer.scoring.window is not None) is windowed:
            seen = layer.observation
            widths[index] = LayerWidths(
                seen.key.shape[1], seen.key.shape[3], seen.activations.shape[2]
            )
    return widths


def _window(attachment: Attachment, layer: int) -> int:
    window = attachment.layers[layer].scoring.window
    assert window is not None
    return window
