"""What `transformers` itself offers: its cache on the device, and its two that offload it.

A rival's cache never goes over an emulated link: where no real device is beside the host, those
that offload cannot run at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from headrace.bench.catalogue import OFFLOADED, PLAIN, STATIC
from headrace.bench.counts import EnergyCount, MemoryCount
from headrace.bench.measurement import RivalMeasurement, Steps
from headrace.bench.policies import BatchWork, MeasureOptions
from headrace.engine.decoding import StaticBatch, plain_cache
from headrace.errors import MemoryBudgetError
from headrace.hardware.identity import available_host_memory_bytes
from headrace.hf.embedding import bytes_on_host
from headrace.hf.machine import shape_of
from headrace.hf.observe import text_config
from headrace.hf.weights import device_bytes, placed_weights
from headrace.model.cost import kv_bytes_per_token
from headrace.plan.memory import hidden_bytes_per_token
from headrace.timeline import Origin
from headrace.units import format_bytes

_PREFILL_TOKENS = 32768
_SLOW_STEP_S = 1.5
"""From here on a turn is of one step only."""

_SHORT_PROMPT_STEPS = 0.05
"""Share of a prompt that a run's steps may be before it matters how many of them a rival takes."""


@dataclass(frozen=True)
class Rival:
    """A way to run a model without headrace.

    Attributes:
        name: what it is called.
        words: what it is.
        make: makes its cache, given a model and the tokens of the longest row.
        offloads: whether the cache is in host memory.
    """

    name: str
    words: str
    make: Callable[[nn.Module, int], Any]
    offloads: bool


def _offloaded(model: nn.Module, length: int) -> Any:
    return DynamicCache(config=text_config(model), offloading=True)


def _static(model: nn.Module, length: int) -> Any:
    return StaticCache(config=text_config(model), max_cache_len=length, offloading=True)


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(
            PLAIN,
            "transformers, DynamicCache on the device",
            lambda model, length: plain_cache(model),
            offloads=False,
        ),
        Rival(
            OFFLOADED,
            "transformers, DynamicCache(offloading=True)",
            _offloaded,
            offloads=True,
        ),
        Rival(
            STATIC,
            "transformers, StaticCache(offloading=True)",
            _static,
            offloads=True,
        ),
    )
}
"""The rivals by name."""


def all_kv_bytes(model: nn.Module, tokens: int) -> int:
    """Return the bytes of keys and values of some tokens, in all layers."""
    groups = shape_of(model).all_groups
    return tokens * sum(group.layers * kv_bytes_per_token(group.shape) for group in groups)


def why_not(rival: Rival, work: BatchWork, options: MeasureOptions) -> str | None:
    """Return why a rival cannot run a batch here, or None if it can."""
    model, device = work.model, work.device
    placed = placed_weights(model)
    if placed is not None and placed.share > 0:
        return (
            f"{placed.share:.0%} of the layers' weights are on the host, and transformers alone "
            "does not bring them to the device"
        )
    if rival.offloads and device.type != "cuda":
        return "its cache is offloaded by CUDA streams, and the model is on a CPU"
    rows, prompt_len = work.ids.shape
    needed = all_kv_bytes(model, rows * (prompt_len + options.all_steps + 1))
    if rival.offloads or device.type != "cuda":
        free, where = available_host_memory_bytes(), "host"
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        forward = min(_PREFILL_TOKENS, rows * prompt_len) * hidden_bytes_per_token(shape_of(model))
        weights = device_bytes(model, device) + bytes_on_host(model)
        free, where = total - weights - forward, "device"
    if needed > 0.95 * free:
        return (
            f"its cache takes {format_bytes(needed)}, and the {where} has "
            f"{format_bytes(max(0, free))} for it"
        )
    return None


class RivalRun:
    """A rival's cache, its batch, and what was measured so far."""

    def __init__(self, work: BatchWork, rival: Rival, options: MeasureOptions) -> None:
        self.name = rival.name
        self._work = work
        self._rival = rival
        self._options = options
        self._batch: StaticBatch | None = None
        self._steps_s: list[float] = []
        self._energy = EnergyCount(work.device)
        self._memory = MemoryCount(work.model)
        self._slow = False
        self._turns = 0
        self._result: RivalMeasurement | None = None

    def open(self) -> None:
        """Run the prompts, in parts of some columns, and the first steps."""
        work, options = self._work, self._options
        reason = why_not(self._rival, work, options)
        if reason is not None:
            raise MemoryBudgetError(reason)
        rows, prompt_len = work.ids.shape
        self._memory.start()
        cache = self._rival.make(work.model, prompt_len + options.all_steps + 1)
        self._batch = StaticBatch(work.model, work.ids, work.mask, cache)
        first = self._batch.prefill(max(1, _PREFILL_TOKENS // rows))
        self._tokens = work.follow(self.name, first)
        for _ in range(options.first_steps):
            if not self._slow:
                start_s = time.perf_counter()
                logits = self._batch.step(self._tokens)
                self._slow = time.perf_counter() - start_s > _SLOW_STEP_S
                self._tokens = work.follow(self.name, logits)
        self._memory.note()

    def _step(self) -> float:
        assert self._batch is not None
        start_s = time.perf_counter()
        self._tokens = self._batch.step(self._tokens).argmax(dim=-1)
        self._tokens.tolist()
        return time.perf_counter() - start_s

    def take_turn(self) -> None:
        """Take a turn of steps, one if they are slow.

        Where prompts are short, as many steps that are not timed come after or before, in turns, as
        a policy's are recorded: contexts are then as long in all runs.
        """
        options = self._options
        together = options.warmup_steps + options.steps_per_round
        short = options.all_steps > _SHORT_PROMPT_STEPS * self._work.ids.shape[1]
        others = together if short and not self._slow else 0
        before = others if self._turns % 2 else 0
        self._turns += 1
        for _ in range(before + (0 if self._slow else options.warmup_steps)):
            self._step()
        timed = 1 if self._slow else options.steps_per_round
        with self._energy:
            self._steps_s += [self._step() for _ in range(timed)]
        for _ in range(others - before):
            self._step()

    def finish(self) -> None:
        """Note the result and close."""
        assert self._batch is not None
        kv_bytes = all_kv_bytes(self._work.model, self._work.ids.numel())
        step_s = statistics.median(self._steps_s)
        self._result = RivalMeasurement(
            rival=self.name,
            origin=Origin.MEASURED,
            steps=Steps(
                prefill_s=self._batch.forward_s[0],
                step_s=step_s,
                step_s_range=(min(self._steps_s), max(self._steps_s)),
                tokens_per_s=self._work.ids.shape[0] / step_s,
                peak_gpu_bytes=self._peak_bytes(kv_bytes),
                energy_j=self._energy.per_step(len(self._steps_s)),
            ),
        )
        self.close()

    def _peak_bytes(self, kv_bytes: int) -> int:
        """Return the peak of device memory, with the embedding that transformers has there."""
        model = self._work.model
        counted = self._memory.peak_bytes(device_bytes(model, self._work.device) + kv_bytes)
        return counted + bytes_on_host(model)

    @property
    def result(self) -> RivalMeasurement | None:
        """What was measured, once it has finished; None if it could not run."""
        return self._result

    def close(self) -> None:
        """Let go of cache and batch."""
        self._batch = None
