"""``LLM``: text in, text out, with the KV cache on the host."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import torch

from headrace.engine.batcher import Batcher, Step
from headrace.engine.calm import calm_collector
from headrace.engine.completion import Completed, Request
from headrace.engine.loading import LoadedModel, load_model
from headrace.engine.prompts import check_tokens, encode_prompt, max_context
from headrace.engine.request import MAX_ROWS, RequestOutput, SamplingParams
from headrace.engine.sample import Job
from headrace.engine.stats import GenerationStats, Stopwatch, recorded
from headrace.engine.streaming import TextStream
from headrace.errors import (
    ConfigurationError,
    ContextLengthError,
    HeadraceError,
    MemoryBudgetError,
    ModelError,
)
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attachment import attach, detach
from headrace.hf.observe import text_config
from headrace.hf.planning import CacheOptions
from headrace.plan.plan import Plan
from headrace.timeline import Timeline

Prompt = str | Sequence[int]
"""Text, or token ids."""


class LLM:
    """A model with its cache on the host.

    Requests are batched continuously: a row's memory is free for the next prompt as soon as it has
    ended. What a row gets depends on its prompt, params and seed alone.

    Args:
        model: ``demo``, a local directory, a hub id, or a model that is loaded already.
        policy: ``auto``, ``resident``, ``stream``, ``kvpr``, ``recompute`` or ``host``.
        gpu_memory: device memory to keep within, such as ``"16GiB"``.
        host_memory: host memory to keep within.
        profile: the machine: a profile, a published name, or a file; None for this machine.
        recompute_fraction: share of each prompt kept as X instead of the planned one, 0 to 1.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16``, ``float16``; None for what the model was saved in.
        max_rows: most rows at once; each of a prompt's samples is one.
        prefill_tokens: most tokens of prompts in a forward; None: what there is memory for.

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
        max_rows: int = MAX_ROWS,
        prefill_tokens: int | None = None,
    ) -> None:
        self._options = CacheOptions.checked(
            policy, gpu_memory, host_memory, recompute_fraction, None, profile, poison=False
        )
        self._limits = max_rows, prefill_tokens
        loaded = (
            load_model(model, device=device, dtype=dtype, options=self._options)
            if isinstance(model, str)
            else model
        )
        if loaded.tokenizer is None:
            raise ModelError(f"model {loaded.name!r} has no tokenizer")
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.stats: GenerationStats | None = None
        """Of the last call."""
        self.plan: Plan | None = None
        """The plan of the last call."""
        self._name = loaded.name
        self._max_context = max_context(self.model)
        self._vocab_size = int(text_config(self.model).vocab_size)
        self._tracing = False
        self._timelines: tuple[Timeline, ...] = ()
        self._new_batcher().close()
        # What was found out about the model, by running it, serves every call.
        attach(self.model)
        weakref.finalize(self, detach, self.model)

    def trace(self, enabled: bool = True) -> None:
        """Record what runs when in the calls that follow, from the first decode step on."""
        self._tracing = enabled

    def timelines(self) -> tuple[Timeline, ...]:
        """Return what the last traced call recorded, with the prediction first if there is one."""
        return self._timelines

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts. A row ends at the latest where the model's context does.

        Args:
            prompts: one or several; each a text, or its token ids.
            params: how to choose tokens: for all prompts, or one each.

        Returns:
            One output a prompt, in their order, with as many samples as its params ask for.

        Raises:
            ConfigurationError: a prompt is empty, or params name a token that the model lacks.
            ContextLengthError: a prompt is as long as the model's context, or longer.
            MemoryBudgetError: a prompt does not fit the budgets even by itself.
        """
        requests = self._requests(prompts, params)
        batcher = self._new_batcher()
        jobs = [self._add(batcher, request) for request in requests]
        for step in self._steps(batcher):
            for update in step.updates:
                if update.job.error is not None:
                    raise update.job.error
        return [self._output(request, job) for request, job in zip(requests, jobs, strict=True)]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> TextStream:
        """Return what is generated as it comes. Whoever stops listening ends it all.

        Args:
            prompts: as ``generate`` takes them.
            params: likewise.

        Returns:
            An iterator of ``StreamedText``, which can also end one of the prompts.

        Raises:
            HeadraceError: as by ``generate``; ``MemoryBudgetError`` when a piece is asked for.
        """
        requests = self._requests(prompts, params)
        batcher = self._new_batcher()
        jobs = [self._add(batcher, request) for request in requests]
        return TextStream(batcher, self._steps(batcher), jobs)

    def complete(self, requests: Iterable[Request]) -> Iterator[Completed]:
        """Complete requests, each of which is yielded once, as it ends.

        Args:
            requests: consumed as there is room, so they may be made while others run. An error of
                one does not stop the others.
        """
        batcher, source = self._new_batcher(), iter(requests)
        under_way: dict[int, tuple[Request, Job]] = {}
        refused: list[Completed] = []

        def refill() -> None:
            while batcher.wants_more and (request := next(source, None)) is not None:
                try:
                    job = self._add(batcher, request)
                except ConfigurationError as error:
                    refused.append(_failed(request, error))
                else:
                    under_way[id(job)] = request, job

        for step in self._steps(batcher, refill):
            yield from refused
            refused.clear()
            for update in step.updates:
                # Of samples that end in the same step, the first one's update ends the job.
                if update.job.finished and id(update.job) in under_way:
                    request, job = under_way.pop(id(update.job))
                    if job.error is None:
                        yield Completed(request.request_id, self._output(request, job), None)
                    else:
                        yield _failed(request, job.error)
        yield from refused

    def _new_batcher(self) -> Batcher:
        ends = _end_tokens(self)
        return Batcher(self.model, self.tokenizer, self._options, ends, *self._limits)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Request]:
        several = _as_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(several)
        if len(params) != len(several):
            raise ConfigurationError(
                f"{len(params)} sampling params were given for {len(several)} prompts; give one, "
                "or one for each prompt"
            )
        return [
            Request(str(place), *both)
            for place, both in enumerate(zip(several, params, strict=True))
        ]

    def _add(self, batcher: Batcher, request: Request) -> Job:
        request.params.check_vocabulary(self._vocab_size)
        tokens = encode_prompt(self.tokenizer, request.prompt, self._max_context)
        check_tokens(tokens, self._vocab_size)
        room = self._max_context - len(tokens)
        return batcher.add(request.request_id, tokens, request.params.within(room))

    def _output(self, request: Request, job: Job) -> RequestOutput:
        prompt = request.prompt
        return RequestOutput(
            prompt=prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt)),
            prompt_token_ids=tuple(job.prompt_token_ids),
            outputs=tuple(row.output(index) for index, row in enumerate(job.rows)),
        )

    def _steps(
        self, batcher: Batcher, refill: Callable[[], None] | None = None
    ) -> Generator[Step, None, None]:
        """Run a batcher until all is done, and note what that took."""
        if next(self.model.parameters()).is_cuda:
            torch.cuda.reset_peak_memory_stats()
        watch, traced = Stopwatch(), not self._tracing
        start_s = time.perf_counter()
        try:
            with calm_collector():
                if refill is not None:
                    refill()
                while batcher.has_work:
                    if not traced and batcher.decoding:
                        batcher.cache.trace()
                        traced = True
                    step = batcher.step()
                    now_s = time.perf_counter()
                    watch.note(now_s - start_s, step.decoded)
                    start_s = now_s
                    yield step
                    if refill is not None:
                        refill()
                if watch.first_s and batcher.opened:
                    self._note(batcher, watch)
        finally:
            batcher.close()

    def _note(self, batcher: Batcher, watch: Stopwatch) -> None:
        """Keep the figures of a call."""
        cache = batcher.cache
        label = f"{self._name}, {cache.policy}"
        predicted = cache.predicted_timeline(label)
        self.plan = cache.plan
        self.stats = watch.stats(cache, predicted)
        if self._tracing:
            self._timelines = recorded(cache, predicted, label)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts: a text, and a list of numbers, are one."""
    if isinstance(prompts, str):
        return [prompts]
    several = list(prompts)
    if several and all(isinstance(token, int) for token in several):
        return [several]  # type: ignore[list-item]
    return several  # type: ignore[return-value]


_CODES: dict[type[HeadraceError], str] = {
    ContextLengthError: "context_length_exceeded",
    MemoryBudgetError: "memory_budget_exceeded",
}


def _failed(request: Request, error: HeadraceError) -> Completed:
    return Completed(request.request_id, None, str(error), _CODES.get(type(error)))


def _end_tokens(llm: LLM) -> set[int]:
    configured = getattr(llm.model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = llm.tokenizer.eos_token_id
    if configured is None:
        return set()
    return set(configured) if isinstance(configured, list) else {int(configured)}
