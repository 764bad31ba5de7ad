"""``LLM``: text in, text out, with the KV cache on the host.

All prompts of one call go through the model together, as a static batch.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.engine.calm import calm_collector
from headrace.engine.decoding import StaticBatch, pad_left
from headrace.engine.loading import LoadedModel, load_model
from headrace.engine.measure import without_first
from headrace.engine.prompts import encode_prompts, max_context
from headrace.engine.request import RequestOutput, SamplingParams
from headrace.engine.row import Row
from headrace.engine.sampling import choose_tokens
from headrace.errors import ConfigurationError, ModelError
from headrace.hardware.profile import HardwareProfile
from headrace.hf.cache import HostCache
from headrace.hf.observe import text_config
from headrace.hf.planning import CacheOptions
from headrace.plan.plan import Plan
from headrace.plan.simulate import steady_step_s
from headrace.timeline import Origin, Timeline


@dataclass(frozen=True)
class GenerationStats:
    """What a call of ``generate`` took.

    Attributes:
        origin: measured, or emulated when the link was slowed down on purpose.
        prefill_s: seconds from the call to the first token.
        step_s: median seconds of a decode step, from token to token (0 if there was none).
        tokens_per_s: generated tokens a second, over all rows, while decoding.
        predicted_step_s: what the plan's program takes by simulation; None without a profile.
        link_bytes_per_step: bytes that a step brings to the device, at the end.
        peak_gpu_bytes: peak device memory: CUDA's own count, or on a CPU weights and cache buffers.
        host_bytes: host memory of the cache.
        policy: the policy that was used.
        recompute_fraction: share of each prompt's tokens that was kept as X.
        notes: what was decided differently from what was asked, and why.
    """

    origin: Origin
    prefill_s: float
    step_s: float
    tokens_per_s: float
    predicted_step_s: float | None
    link_bytes_per_step: int
    peak_gpu_bytes: int
    host_bytes: int
    policy: str
    recompute_fraction: float
    notes: tuple[str, ...]


class LLM:
    """A model with its cache on the host.

    Args:
        model: ``demo``, a local directory, a hub id, or a model that is loaded already.
        policy: ``auto``, ``resident``, ``stream``, ``kvpr`` or ``recompute``.
        gpu_memory: device memory to keep within, such as ``"16GiB"``.
        host_memory: host memory to keep within.
        profile: the machine: a profile, a published name, or a file; None for this machine.
        recompute_fraction: share of each prompt kept as X instead of the planned one, 0 to 1.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16``, ``float16``; None for what the model was saved in.

    Raises:
        HeadraceError: a setting is not allowed, or the model cannot be loaded or served.
    """

    def __init__(
        self,
        model: str | LoadedModel,
        *,
        policy: str = "auto",
        gpu_memory: str | int | None = None,
        host_memory: str | int | None = None,
        profile: HardwareProfile | str | None = None,
        recompute_fraction: float | None = None,
        device: str = "auto",
        dtype: str | None = None,
    ) -> None:
        CacheOptions.checked(
            policy, gpu_memory, host_memory, recompute_fraction, None, profile, poison=False
        )
        loaded = load_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
        if loaded.tokenizer is None:
            raise ModelError(f"model {loaded.name!r} has no tokenizer")
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.stats: GenerationStats | None = None
        """Of the last call of ``generate``."""
        self.plan: Plan | None = None
        """The plan of the last call of ``generate``."""
        self._name = loaded.name
        self._max_context = max_context(self.model)
        self._vocab_size = int(text_config(self.model).vocab_size)
        self._tracing = False
        self._timelines: tuple[Timeline, ...] = ()
        self._cache_options = {
            "policy": policy,
            "gpu_memory": gpu_memory,
            "host_memory": host_memory,
            "profile": profile,
            "recompute_fraction": recompute_fraction,
        }

    def trace(self, enabled: bool = True) -> None:
        """Record what runs when in the decode steps of the calls that follow."""
        self._tracing = enabled

    def timelines(self) -> tuple[Timeline, ...]:
        """Return what the last traced call recorded, with the prediction first if there is one."""
        return self._timelines

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts. A row ends at the latest where the model's context does.

        Args:
            prompts: one or several texts.
            params: how to choose tokens: for all prompts, or one each.

        Returns:
            One output a prompt, in their order, with as many samples as its params ask for.

        Raises:
            ConfigurationError: a prompt is empty, or params name a token that the model lacks.
            ContextLengthError: a prompt is as long as the model's context, or longer.
            MemoryBudgetError: the batch does not fit the budgets.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        each = self._params_of_each(params, len(texts))
        if not texts:
            return []
        tokens = encode_prompts(self.tokenizer, texts, self._max_context)
        samples = self._samples(each, tokens)
        ids, mask = pad_left([prompt for prompt, _ in samples], self.tokenizer.pad_token_id or 0)
        longest = max(params.max_tokens for _, params in samples)
        with (
            calm_collector(),
            HostCache(self.model, reserve_tokens=longest, **self._cache_options) as cache,  # type: ignore[arg-type]
        ):
            batch = StaticBatch(self.model, ids, mask, cache)
            ends = _end_tokens(self)
            rows = [Row(self.tokenizer, one, prompt, ends) for prompt, one in samples]
            self._run(batch, rows, cache)
        remaining = iter(rows)
        return [
            RequestOutput(
                prompt=text,
                prompt_token_ids=tuple(prompt),
                outputs=tuple(next(remaining).output(index) for index in range(one.n)),
            )
            for text, prompt, one in zip(texts, tokens, each, strict=True)
        ]

    def _samples(
        self, each: list[SamplingParams], tokens: list[list[int]]
    ) -> list[tuple[list[int], SamplingParams]]:
        """Return the prompt and the params of each row: ``n`` rows for a prompt, side by side."""
        for one in each:
            one.check_vocabulary(self._vocab_size)
        return [
            (prompt, one.of_sample(index).within(self._max_context - len(prompt)))
            for one, prompt in zip(each, tokens, strict=True)
            for index in range(one.n)
        ]

    @staticmethod
    def _params_of_each(
        params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise ConfigurationError(
                f"{len(params)} sampling params were given for {count} prompts; give one, or one "
                "for each prompt"
            )
        return list(params)

    def _run(self, batch: StaticBatch, rows: list[Row], cache: HostCache) -> None:
        """Generate until every row is finished."""
        if next(self.model.parameters()).is_cuda:
            torch.cuda.reset_peak_memory_stats()
        moments_s = [time.perf_counter()]
        logits = batch.prefill()
        cache.trace(self._tracing)
        samplers = [row.sampler for row in rows]
        generated = 0
        while True:
            choices = choose_tokens(samplers, logits)
            moments_s.append(time.perf_counter())
            for row, choice in zip(rows, choices, strict=True):
                row.take(choice)
            running = torch.tensor([not row.finished for row in rows])
            if not running.any():
                break
            generated += int(running.sum())
            logits = batch.step(torch.tensor([choice.token_id for choice in choices]), running)
        first_s, *step_s = [later - earlier for earlier, later in itertools.pairwise(moments_s)]
        self._note(cache, first_s, step_s, generated)

    def _note(
        self, cache: HostCache, prefill_s: float, step_s: list[float], generated: int
    ) -> None:
        """Keep the figures of a call."""
        label = f"{self._name}, {cache.policy}"
        predicted = cache.predicted_timeline(label)
        self.plan = cache.plan
        self.stats = GenerationStats(
            origin=cache.origin,
            prefill_s=prefill_s,
            step_s=statistics.median(step_s) if step_s else 0.0,
            tokens_per_s=generated / sum(step_s) if step_s else 0.0,
            predicted_step_s=None if predicted is None else steady_step_s(predicted),
            link_bytes_per_step=cache.link_bytes_per_step,
            peak_gpu_bytes=cache.peak_gpu_bytes,
            host_bytes=cache.paged.host_bytes,
            policy=cache.policy,
            recompute_fraction=cache.recompute_fraction,
            notes=cache.notes,
        )
        if self._tracing:
            # Numbered from 0, as predicted ones are: a page lays steps of a number over each other.
            measured = without_first(cache.timeline(label), 0)
            self._timelines = (measured,) if predicted is None else (predicted, measured)


def _end_tokens(llm: LLM) -> set[int]:
    configured = getattr(llm.model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = llm.tokenizer.eos_token_id
    if configured is None:
        return set()
    return set(configured) if isinstance(configured, list) else {int(configured)}
