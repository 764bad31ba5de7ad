"""The linear program: how a layer's cached tokens are best divided over the paths.

    minimise    T
    subject to  resident + stream + recompute + host = 1         for each group of layers
                seconds of each resource ≤ T                     (``demands.py``)
                recompute ≤ share of the tokens that are a prompt's
                bytes on the device ≤ what the budget leaves
                bytes on the host ≤ host budget

The columns are shares from 0 to 1; with ``weights`` the share of the layers' weights that is
streamed is one of them. Rows and columns have names, under which the solver knows them too.
``docs/planner.md`` goes through it line by line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    kv_bytes_per_token,
    layer_weight_bytes,
)
from headrace.model.shape import ModelShape
from headrace.plan.demands import PATHS, WEIGHTS, Demand, Rate, Resource, StepWork, column, demands
from headrace.plan.linear import LinearProgram, Solution
from headrace.plan.operations import WEIGHT_SLOTS
from headrace.plan.policies import Split

STEP = "T"
GPU_MEMORY = "gpu_memory"
HOST_MEMORY = "host_memory"

_TIE_BREAK = 1e-6
"""Of several splits with the same T, take the one that keeps the resources less busy."""


@dataclass(frozen=True)
class MemoryLimits:
    """What the program may place where, in bytes.

    Attributes:
        gpu_left: device memory left for K/V once everything else is there, all weights included;
            below 0 where weights must be streamed.
        host_left: host memory that may be used.
        end_paged: tokens of a row in pages at the end of the generation.
    """

    gpu_left: float
    host_left: float
    end_paged: int


@dataclass(frozen=True)
class Choice:
    """What the program may choose from.

    Attributes:
        paths: paths that may be taken.
        stream_weights: whether weights may be streamed.
        most_recomputed: largest share of the cached tokens that may be kept as X.
        fixed: shares that are given, by path.
        tied: whether all layers have the same split, as the runtime needs it.
    """

    paths: tuple[str, ...] = PATHS
    stream_weights: bool = True
    most_recomputed: float = 1.0
    fixed: Mapping[str, float] = field(default_factory=dict)
    tied: bool = False


@dataclass(frozen=True)
class Optimum:
    """The program's solution.

    Attributes:
        step_s: T, the least time of a step that the rates allow, latencies left out.
        splits: the split of each group of layers, in the order of ``ModelShape.groups``.
        weights_streamed: share of the layers' weights that is streamed.
        seconds: for how long the step needs each resource.
        prices: by row, by how many seconds T would fall for each second (or, for the memory, each
            byte) by which the row were relaxed; rows with a price bind.
        elasticity: by rate, by which share T would fall for each share that the rate is higher.
    """

    step_s: float
    splits: tuple[Split, ...]
    weights_streamed: float
    seconds: Mapping[Resource, float]
    prices: Mapping[str, float]
    elasticity: Mapping[Rate, float]


def optimise(
    work: StepWork, profile: HardwareProfile, limits: MemoryLimits, choice: Choice
) -> Optimum | None:
    """Return the best split, or None where no split satisfies the budgets.

    Args:
        work: the step.
        profile: the machine.
        limits: the memory.
        choice: what may be chosen from.
    """
    asked = demands(work, profile, choice.paths)
    program = assemble(work, asked, limits, choice)
    solution = program.solve()
    return None if solution is None else _optimum(work, asked, solution)


def assemble(
    work: StepWork, asked: Sequence[Demand], limits: MemoryLimits, choice: Choice
) -> LinearProgram:
    """Return the linear program with all its rows and columns."""
    program = LinearProgram()
    _add_columns(program, work, asked, choice)
    for demand in asked:
        by_column, constant = demand.coefficients()
        known = {name: value for name, value in by_column.items() if name in program.columns}
        program.add_row(demand.resource.value, {**known, STEP: -1.0}, upper=-constant)
    groups = work.shape.groups
    for group in groups:
        paths = {column(path, group, len(groups)): 1.0 for path in choice.paths}
        name = "split" if len(groups) == 1 else f"split {group.name}"
        program.add_row(name, paths, lower=1.0, upper=1.0)
    if choice.tied:
        for group in groups[1:]:
            for path in choice.paths:
                first, other = (column(path, one, len(groups)) for one in (groups[0], group))
                program.add_row(f"tie {other}", {first: 1.0, other: -1.0}, lower=0.0, upper=0.0)
    _add_memory(program, work, limits, choice)
    return program


def _add_columns(
    program: LinearProgram, work: StepWork, asked: Sequence[Demand], choice: Choice
) -> None:
    used: dict[str, float] = {}
    for demand in asked:
        for term in demand.terms:
            used[term.column] = used.get(term.column, 0.0) + term.seconds
    program.add_column(STEP, cost=1.0)
    groups = work.shape.groups
    for group in groups:
        for path in choice.paths:
            name = column(path, group, len(groups))
            upper = min(1.0, choice.most_recomputed) if path == "recompute" else 1.0
            given = choice.fixed.get(path)
            program.add_column(
                name,
                cost=_TIE_BREAK * used.get(name, 0.0),
                lower=0.0 if given is None else given,
                upper=upper if given is None else given,
            )
    program.add_column(
        WEIGHTS,
        cost=_TIE_BREAK * used.get(WEIGHTS, 0.0),
        upper=1.0 if choice.stream_weights else 0.0,
    )


def _add_memory(
    program: LinearProgram, work: StepWork, limits: MemoryLimits, choice: Choice
) -> None:
    """Add the budgets, each divided by the bytes of the whole cache so that numbers stay tame."""
    groups = work.shape.groups
    gpu: dict[str, float] = {WEIGHTS: float(streamed_device_bytes(work.shape))}
    host: dict[str, float] = {WEIGHTS: float(all_layers_weight_bytes(work.shape))}
    at_end = 0.0
    for group in groups:
        kv_bytes = kv_bytes_per_token(group.shape)
        saved_by_x = activation_bytes_per_token(group.shape) - kv_bytes
        tokens = work.paged_tokens * group.layers
        at_end += limits.end_paged * work.rows * group.layers * kv_bytes
        for path in choice.paths:
            name = column(path, group, len(groups))
            if path == "resident":
                gpu[name] = float(tokens * kv_bytes)
                host[name] = float(-tokens * kv_bytes)
            elif path == "recompute":
                host[name] = float(tokens * saved_by_x)
    scale = max(at_end, 1.0)
    program.add_row(
        GPU_MEMORY,
        {name: value / scale for name, value in gpu.items()},
        upper=limits.gpu_left / scale,
    )
    program.add_row(
        HOST_MEMORY,
        {name: value / scale for name, value in host.items()},
        upper=(limits.host_left - at_end) / scale,
    )


def streamed_device_bytes(shape: ModelShape) -> int:
    """Return what streaming all layers' weights adds on the device: slots, less the weights."""
    slots = WEIGHT_SLOTS * max(layer_weight_bytes(layer) for layer in shape.layers)
    return min(0, slots - all_layers_weight_bytes(shape))


def _optimum(work: StepWork, asked: Sequence[Demand], solution: Solution) -> Optimum:
    values = solution.values
    groups = work.shape.groups
    splits = tuple(
        _split({path: values.get(column(path, group, len(groups)), 0.0) for path in PATHS})
        for group in groups
    )
    seconds = {demand.resource: demand.seconds(values) for demand in asked}
    step_s = values[STEP]
    prices = {name: -price for name, price in solution.prices.items()}
    elasticity: dict[Rate, float] = {}
    for demand in asked:
        price = prices[demand.resource.value]
        for rate, part_s in demand.seconds_by_rate(values).items():
            share = price * part_s / step_s if step_s else 0.0
            elasticity[rate] = elasticity.get(rate, 0.0) + share
    return Optimum(step_s, splits, values[WEIGHTS], seconds, prices, elasticity)


def _split(shares: Mapping[str, float]) -> Split:
    """Return shares as a split, freed of the solver's rounding."""
    kept = {path: min(1.0, max(0.0, share)) for path, share in shares.items()}
    kept = {path: share if share > 1e-9 else 0.0 for path, share in kept.items()}
    total = sum(kept.values())
    return Split(**{path: share / total for path, share in kept.items()}) if total else Split(1.0)
