"""Runs a case: fits it to the machine, says the bound, lets everything take turns, keeps it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from headrace.bench.budgets import Budget, choose_budget, choose_wanted
from headrace.bench.catalogue import PLAIN, Case
from headrace.bench.comparison import Comparison, allowed_error
from headrace.bench.measurement import Agreement, PolicyMeasurement, RivalMeasurement, Unable
from headrace.bench.policies import BatchWork, MeasureOptions, PolicyRun
from headrace.bench.rivals import RIVALS, RivalRun
from headrace.bench.sizes import Fitted, Limits, Most, fit
from headrace.bench.turns import Run, take_turns
from headrace.engine.loading import LoadedModel, dummy_model, resolve_device
from headrace.errors import HeadraceError
from headrace.hardware.catalog import machine
from headrace.hardware.emulation import emulated_link_rate
from headrace.hardware.identity import available_host_memory_bytes
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.spare_memory import release_spare_memory
from headrace.hf.attachment import attached
from headrace.hf.machine import machine_profile, shape_of
from headrace.hf.placing import place
from headrace.hf.set_aside import set_aside_of
from headrace.plan.plan import make_plan
from headrace.plan.workload import Workload
from headrace.units import format_seconds

_CPU_LAYERS = 2
_CPU_STEPS, _CPU_RESIDENT_STEPS = 3, 6
"""Steps of a turn on a CPU; where nothing waits for the link they are short, and vary more."""

_ENOUGH_STEPS = ((1.0, 1), (0.25, 2))
"""Steps that an emulated link makes so long differ by little: so many of a turn suffice."""

_FIRST_STEPS = 3
_ALTERNATING_SHARE = 0.5
"""Share of a memory that the caches of all runs may take together: else they run in turn."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class SuiteOptions:
    """How cases are run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of weights and cache.
        emulate: a published machine that is emulated, on a CPU; None on a GPU.
        layers: at most so many layers of each model; None: all (on a CPU: 2).
        policies: instead of a case's own; None: those.
        rivals: instead of a case's own; None: those.
        rounds: instead of a case's own.
        steps: instead of a case's own.
        rows: at most so many rows.
        prompt_len: at most so many tokens of a prompt.
        narrow: layers are at least so many times narrower.
    """

    device: str = "auto"
    dtype: str = "bfloat16"
    emulate: str | None = None
    layers: int | None = None
    policies: tuple[str, ...] | None = None
    rivals: tuple[str, ...] | None = None
    rounds: int | None = None
    steps: int | None = None
    rows: int | None = None
    prompt_len: int | None = None
    narrow: int = 1


@dataclass(frozen=True)
class Foreseen:
    """What is expected of a policy before anything is measured.

    Attributes:
        policy: the policy.
        bound_s: the least that the machine's rates allow for its step.
        predicted_step_s: its step by simulation.
        reason: why it does not fit; empty if it does.
    """

    policy: str
    bound_s: float
    predicted_step_s: float
    reason: str = ""


@dataclass(frozen=True)
class CaseResult:
    """What came out of a case.

    Attributes:
        case: what was asked for.
        fitted: the sizes at which it was run.
        budget: device memory and streamed weights.
        label: the model in words.
        alternating: whether runs took turns, or came one after the other.
        profile: this machine.
        foreseen: bounds and predictions, from before.
        policies: what was measured of ours.
        rivals: what was measured of others.
        unable: what could not run, and why.
        agreements: how each run's first logits compare, by its name.
        seconds: that all of it took.
    """

    case: Case
    fitted: Fitted
    budget: Budget
    label: str
    alternating: bool
    profile: HardwareProfile
    foreseen: tuple[Foreseen, ...]
    policies: tuple[PolicyMeasurement, ...]
    rivals: tuple[RivalMeasurement, ...]
    unable: tuple[Unable, ...]
    agreements: dict[str, Agreement]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every policy that ran agrees. A rival that does not is its own affair."""
        return all(one.passed for name, one in self.agreements.items() if name not in RIVALS)


def run_case(
    case: Case, options: SuiteOptions, say: Say, progress: Say | None = None
) -> CaseResult:
    """Run a case.

    Args:
        case: what is asked for.
        options: how it is run.
        say: is called with what shall be read, the bound first.
        progress: is called with what is being done; None: ``say`` is.

    Raises:
        HeadraceError: it cannot be run here at all.
    """
    progress = progress or say
    start_s = time.perf_counter()
    case = _as_asked(case, options)
    release_spare_memory()
    measuring = MeasureOptions(
        rounds=case.rounds, steps_per_round=case.steps, first_steps=_FIRST_STEPS
    )
    fitted = fit_case(case, options, measuring.all_steps)
    say(f"{case.name}: {case.model}, {fitted}")
    loaded = load(fitted, options, measuring.all_steps, progress)
    profile = machine_profile(loaded.model, emulate=options.emulate, progress=progress)
    work = batch(fitted, loaded, profile)
    progress("how far the plain model differs from itself")
    work = replace(work, comparison=Comparison(allowed_error(work.model, work.ids, work.mask)))
    wanted = choose_wanted(case, fitted, loaded.model, profile, measuring.all_steps)
    place(loaded.model, wanted.placing, next(loaded.model.parameters()).device, profile)
    release_spare_memory()
    with ExitStack() as held:
        held.enter_context(attached(loaded.model))
        budget = choose_budget(case, fitted, wanted, loaded.model, profile, measuring.all_steps)
        if budget.words:
            say(f"  {budget.words}")
        foreseen = foresee(case, fitted, loaded.model, profile, budget, measuring.all_steps)
        for one in foreseen:
            say(f"  {_foreseen_words(one)}")
        alternating = may_alternate(case, fitted, budget, loaded.model, measuring.all_steps)
        if not alternating:
            # With the last cache of a run goes all that it needed of the device.
            held.close()
        measuring = replace(measuring, one_at_a_time=not alternating)
        if options.emulate and options.steps is None:
            measuring = _with_enough_steps(measuring, foreseen)
        policies, rivals, unable, agreements = measure(case, work, measuring, budget, progress)
    return CaseResult(
        case=case,
        fitted=fitted,
        budget=budget,
        label=loaded.name,
        alternating=alternating,
        profile=profile,
        foreseen=foreseen,
        policies=tuple(policies),
        rivals=tuple(rivals),
        unable=tuple(unable),
        agreements=agreements,
        seconds=time.perf_counter() - start_s,
    )


def _with_enough_steps(measuring: MeasureOptions, foreseen: Sequence[Foreseen]) -> MeasureOptions:
    """Return how much is measured where a link is emulated: fewer steps where all are long."""
    least_s = min((one.predicted_step_s for one in foreseen if not one.reason), default=0.0)
    enough = next((steps for long_s, steps in _ENOUGH_STEPS if least_s >= long_s), None)
    if enough is None:
        return measuring
    return replace(measuring, steps_per_round=min(measuring.steps_per_round, enough))


def _as_asked(case: Case, options: SuiteOptions) -> Case:
    """Return a case with what the options change of it."""
    on_cpu = resolve_device("cpu" if options.emulate else options.device).type == "cpu"
    most = _CPU_STEPS if case.gpu_memory is not None else _CPU_RESIDENT_STEPS
    usual = min(case.steps, most) if on_cpu else case.steps
    return replace(
        case,
        policies=case.policies if options.policies is None else options.policies,
        rivals=case.rivals if options.rivals is None else options.rivals,
        rounds=options.rounds or case.rounds,
        steps=options.steps or usual,
    )


def fit_case(case: Case, options: SuiteOptions, steps: int) -> Fitted:
    """Return the sizes at which a case is run on this machine."""
    device = resolve_device("cpu" if options.emulate else options.device)
    limits, layers = Limits(available_host_memory_bytes()), options.layers
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        limits = replace(limits, device_bytes=total)
    else:
        layers = layers or _CPU_LAYERS
        rate = gemm_rate(getattr(torch, options.dtype))
        emulated = machine(options.emulate) if options.emulate else None
        limits = replace(
            limits,
            link_bytes_per_s=emulated_link_rate(emulated, rate) if emulated else None,
            gemm_flops_per_s=rate,
            runs=len(case.policies) + (PLAIN in case.rivals),
        )
    most = Most(layers, options.rows, options.prompt_len, options.narrow)
    return fit(case, options.dtype, limits, steps, most)


def gemm_rate(dtype: torch.dtype) -> float:
    """Return about how many FLOPs a second this CPU's matrix products make."""
    left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    left @ right
    start_s, count = time.perf_counter(), 0
    while time.perf_counter() - start_s < 0.2:
        left @ right
        count += 1
    return count * 2 * 512 * 1024 * 1024 / (time.perf_counter() - start_s)


def load(fitted: Fitted, options: SuiteOptions, steps: int, progress: Say) -> LoadedModel:
    """Make a case's model with random weights."""
    sizes = fitted.sizes
    progress(f"making {sizes.model} with random weights")
    whole = sizes.layers == fitted.asked.layers and not sizes.is_slice
    return dummy_model(
        sizes.model,
        layers=None if whole else sizes.layers,
        device="cpu" if options.emulate else options.device,
        dtype=options.dtype,
        narrow=sizes.narrow,
        positions=sizes.prompt_len + steps + 1,
    )


def foresee(
    case: Case,
    fitted: Fitted,
    model: nn.Module,
    profile: HardwareProfile,
    budget: Budget,
    steps: int,
) -> tuple[Foreseen, ...]:
    """Return bound and prediction of each policy, before anything is measured."""
    sizes = fitted.sizes
    work = Workload(sizes.rows, sizes.prompt_len, steps + 1)
    shape = shape_of(model)
    shape = replace(shape, max_context=max(shape.max_context, work.max_context))
    aside, found = set_aside_of(model, work), []
    for policy in case.policies:
        plan = make_plan(
            shape,
            work,
            profile,
            policy=policy,
            gpu_memory_bytes=aside.left_of(budget.of(policy)),
            weights_streamed=budget.weights_on_host,
            embedding_on_host=shape.embedding_on_host,
        )
        reason = "" if plan.feasible else "; ".join(plan.reasons[:1])
        found.append(Foreseen(policy, plan.bound_s, plan.step_s, reason))
    return tuple(found)


def _foreseen_words(one: Foreseen) -> str:
    words = (
        f"{one.policy}: bound {format_seconds(one.bound_s)} a step, predicted "
        f"{format_seconds(one.predicted_step_s)}"
    )
    return f"{words}, but {one.reason}" if one.reason else words


def may_alternate(case: Case, fitted: Fitted, budget: Budget, model: nn.Module, steps: int) -> bool:
    """Return whether there is memory for the caches of all runs at once."""
    kv_bytes = fitted.sizes.kv_bytes(steps)
    host_bytes = kv_bytes * len([one for one in case.policies if one != "resident"])
    device = next(model.parameters()).device
    on_device = kv_bytes * sum(not RIVALS[rival].offloads for rival in case.rivals)
    if device.type != "cuda":
        host_bytes += on_device
        return host_bytes <= _ALTERNATING_SHARE * available_host_memory_bytes()
    each = kv_bytes if budget.gpu_bytes is None else min(kv_bytes, budget.gpu_bytes)
    on_device += 2 * each * len(case.policies)
    free = torch.cuda.mem_get_info(device)[0]
    host_bytes += kv_bytes * sum(RIVALS[rival].offloads for rival in case.rivals)
    return (
        on_device <= _ALTERNATING_SHARE * free
        and host_bytes <= _ALTERNATING_SHARE * available_host_memory_bytes()
    )


def batch(fitted: Fitted, loaded: LoadedModel, profile: HardwareProfile) -> BatchWork:
    """Return a case's batch: random tokens, the same every time."""
    vocab = int(loaded.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    generator = torch.Generator().manual_seed(0)
    size = (fitted.sizes.rows, fitted.sizes.prompt_len)
    ids = torch.randint(3, vocab, size, generator=generator)
    return BatchWork(loaded.model, ids, torch.ones_like(ids), profile, loaded.name)


def measure(
    case: Case, work: BatchWork, options: MeasureOptions, budget: Budget, progress: Say
) -> tuple[list[PolicyMeasurement], list[RivalMeasurement], list[Unable], dict[str, Agreement]]:
    """Let everything take turns; what cannot run says why."""
    assert work.comparison is not None
    rivals = [RivalRun(work, RIVALS[rival], options) for rival in case.rivals]
    policies = [
        PolicyRun(work, policy, replace(options, gpu_memory=budget.of(policy)))
        for policy in case.policies
    ]
    # The plain model first: the others are compared with it.
    runs: list[Run] = [*rivals[:1], *policies, *rivals[1:]]
    unable = take_turns(
        runs,
        options.rounds,
        options.all_steps,
        options.one_at_a_time,
        progress,
        (HeadraceError, torch.OutOfMemoryError),
        work.comparison.forget,
    )
    failed = {one.name for one in unable}
    agreements = {run.name: work.comparison.agreement(run.name) for run in runs}
    return (
        [run.result for run in policies if run.name not in failed],
        [run.result for run in rivals if run.result is not None],
        unable,
        {name: one for name, one in agreements.items() if one is not None},
    )


def run_cases(
    cases: Sequence[Case], options: SuiteOptions, say: Say, progress: Say | None = None
) -> Iterator[CaseResult | Unable]:
    """Yield what comes of several cases; one that cannot run does not take the others along."""
    for case in cases:
        try:
            result: CaseResult | Unable = run_case(case, options, say, progress)
        except (HeadraceError, torch.OutOfMemoryError) as error:
            result = Unable(case.name, " ".join(str(error).split()))
        yield result
