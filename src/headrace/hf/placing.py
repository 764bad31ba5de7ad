"""Decides where a model's weights are kept, from its configuration alone, and puts them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig

from headrace.errors import ConfigurationError, MemoryBudgetError, UnsupportedModelError
from headrace.hardware.identity import available_host_memory_bytes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attached_cache import open_backend
from headrace.hf.embedding import HostEmbedding, has_own_table, host_embedding
from headrace.hf.machine import machine_profile
from headrace.hf.planning import CacheOptions
from headrace.hf.set_aside import LIBRARY_BYTES, scratch_bytes
from headrace.hf.slice import small_model
from headrace.hf.weights import PlacedWeights
from headrace.model.config import from_config
from headrace.model.shape import ModelShape
from headrace.plan.embedding import belongs_on_host
from headrace.plan.memory import device_weight_bytes
from headrace.plan.plan import Plan, make_plan
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload
from headrace.units import format_bytes

_USUAL_ROWS, _USUAL_PROMPT, _USUAL_NEW_TOKENS = 16, 1024, 128

_SHORTEST = 128
"""Tokens of the shortest prompts for which a model is placed."""

_ROOM_FOR_CACHE = 0.8
"""A model that takes no more than this share of the device's budget is put there as a whole."""


@dataclass(frozen=True)
class Placing:
    """Where a model's weights are to be kept.

    Attributes:
        share: share of the layers' weights that is streamed from the host; 0 for none.
        plan: what says so; None where all of them fit easily.
        profile: the machine that it was made for.
        embedding_on_host: whether the input embedding stays on the host.
    """

    share: float
    plan: Plan | None
    profile: HardwareProfile | None
    embedding_on_host: bool = False


def choose_placing(
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    options: CacheOptions,
    workload: Workload | None = None,
    emulate: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Placing:
    """Return where a model's weights are best kept for some work.

    Args:
        config: the model's.
        dtype: of its weights.
        device: where it runs.
        options: budgets, policy, machine.
        workload: the rows that there will be at once; None: a few of a usual length, which under a
            budget may become as long as the model allows.
        emulate: a published machine that is emulated, or None.
        progress: is called with a line of text for each figure that is measured.

    Raises:
        MemoryBudgetError: even with all layers on the host it does not fit.
    """
    budget = _device_budget(device, options)
    if budget is not None and options.gpu_memory_bytes is not None:
        budget -= scratch_bytes(options.gpu_memory_bytes)
    shape = _shape(config, dtype)
    if budget is None or shape is None:
        return Placing(0.0, None, options.profile)
    usual = _usual(shape)
    fullest = usual if options.gpu_memory_bytes is None else _fullest(shape)
    on_host = belongs_on_host(shape, workload or fullest, budget, _host_budget(options))
    if device_weight_bytes(replace(shape, embedding_on_host=on_host)) <= _ROOM_FOR_CACHE * budget:
        return Placing(0.0, None, options.profile, on_host)
    profile = options.profile
    if profile is None:
        small = small_model(config, device, dtype)
        profile = machine_profile(small, emulate=emulate, progress=progress)
    reasons: tuple[str, ...] = ()
    for lighter in _lighter(workload or usual):
        plan = make_plan(
            shape,
            lighter,
            profile,
            policy=Policy.AUTO if options.policy is Policy.RESIDENT else options.policy,
            gpu_memory_bytes=budget,
            host_memory_bytes=_host_budget(options),
            embedding_on_host=on_host or None,
        )
        if plan.feasible:
            return Placing(plan.weights_streamed, plan, profile, plan.embedding_on_host)
        reasons = tuple(plan.reasons[:1])
    allowed = "the device has" if options.gpu_memory_bytes is None else "gpu_memory is"
    gpu = format_bytes(options.gpu_memory_bytes or int(budget))
    raise MemoryBudgetError(
        f"the model does not fit, even with all of its layers' weights on the host ({allowed} "
        f"{gpu}, the host {format_bytes(_host_budget(options))}): {'; '.join(reasons)}"
    )


def place(
    model: nn.Module, placing: Placing, device: torch.device, profile: HardwareProfile | None
) -> None:
    """Put a model's weights where they are to be kept.

    Args:
        model: on any device.
        placing: what goes where.
        device: where it is to run.
        profile: the machine, whose link may be emulated.

    Raises:
        ConfigurationError: the share is none, or the weights are placed already.
    """
    if placing.embedding_on_host and has_own_table(model) and host_embedding(model) is None:
        HostEmbedding(model, open_backend(device, profile))
    if placing.share != 0:
        PlacedWeights(model, open_backend(device, profile), placing.share)
    else:
        model.to(device)


def _usual(shape: ModelShape) -> Workload:
    """Return the work that weights are placed for, unless it is known better."""
    prompt_len = max(1, min(_USUAL_PROMPT, shape.max_context // 2))
    return Workload(_USUAL_ROWS, prompt_len, _USUAL_NEW_TOKENS)


def _fullest(shape: ModelShape) -> Workload:
    """Return the same rows, as long as the model allows."""
    return Workload(_USUAL_ROWS, max(1, shape.max_context - _USUAL_NEW_TOKENS), _USUAL_NEW_TOKENS)


def _lighter(workload: Workload) -> Iterator[Workload]:
    """Yield some work, then less and less of it: whoever has little memory has short rows."""
    rows, prompt_len = workload.rows, workload.prompt_len
    while rows > 1 or prompt_len > _SHORTEST:
        yield Workload(rows, prompt_len, workload.generate_len)
        rows, prompt_len = max(1, rows // 2), max(min(_SHORTEST, prompt_len), prompt_len // 2)
    yield Workload(1, prompt_len, workload.generate_len)


def _device_budget(device: torch.device, options: CacheOptions) -> float | None:
    """Return the device memory that may be used; None for a CPU without a budget."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return float(min(total, options.gpu_memory_bytes or total) - LIBRARY_BYTES)
    return None if options.gpu_memory_bytes is None else float(options.gpu_memory_bytes)


def _host_budget(options: CacheOptions) -> int:
    free = available_host_memory_bytes()
    return min(free, options.host_memory_bytes or free)


def _shape(config: PretrainedConfig, dtype: torch.dtype) -> ModelShape | None:
    """Return a model's shape, or None where its configuration does not say it."""
    text = config.get_text_config(decoder=True)
    name = str(getattr(config, "_name_or_path", "")) or type(config).__name__
    try:
        shape = from_config(text.to_dict(), name=name)
    except (UnsupportedModelError, ConfigurationError):
        return None
    return replace(shape, dtype=str(dtype).removeprefix("torch."))
