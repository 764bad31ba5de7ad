"""The linear program: how a layer's cached tokens are best divided over the paths.

    minimise    T
    subject to  resident + stream + recompute + host = 1         for each group of layers
                seconds of each resource ≤ T                     (``demands.py``)
                recompute ≤ share of the tokens that are a prompt's
                bytes on the device ≤ what the budget leaves
                bytes on the host ≤ host budget

The columns are shares from 0 to 1; with ``weights`` the share of the layers' weights that is
streamed is one of them, and so is the share of later tokens that will be on the device, for which
there must be room at the end. Rows and columns have names, under which the solver knows them too.
``docs/planner.md`` goes through it line by line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    kv_bytes_per_token,
)
from headrace.model.shape import LayerGroup
from headrace.plan.demands import demands
from headrace.plan.linear import LinearProgram, Solution
from headrace.plan.policies import Split
from headrace.plan.resources import Demand, Rate, Resource
from headrace.plan.step_work import PATHS, WEIGHTS, StepWork, column
from headrace.plan.weights import streamed_device_bytes

STEP = "T"
GPU_MEMORY = "gpu_memory"
HOST_MEMORY = "host_memory"
LATER = "later"
"""The column that says which share of later tokens, beyond the step's, will be on the device."""

_TIE_BREAK = 1e-6
"""Of several splits with the same T, take the one that keeps the resources less busy."""

_HOST_ROWS = (Resource.HOST.value, Resource.DRAM.value)

_LACKING = 1e4
"""What it costs to lack as many bytes as the cache has, next to a T of about 1."""

_LATER_COST = 1e-8
"""Later tokens are put on the device only where the host has no room for them."""

_NOTHING = 1e-9
"""Shares below are the solver's rounding."""


@dataclass(frozen=True)
class MemoryLimits:
    """What the program may place where, in bytes.

    Attributes:
        gpu_left: device memory left for K/V once everything else is there, all weights included;
            below 0 where weights must be streamed.
        host_left: host memory that may be used.
        end_paged: tokens of a row in pages at the end of the generation.
        lacking: whether budgets may be exceeded, by as little as can be: for what fits nowhere.
    """

    gpu_left: float
    host_left: float
    end_paged: int
    lacking: bool = False


@dataclass(frozen=True)
class Choice:
    """What the program may choose from.

    Attributes:
        paths: paths that may be taken.
        stream_weights: whether weights may be streamed.
        most_recomputed: largest share of the cached tokens that may be kept as X.
        fixed: shares that are given, by path.
        tied: whether all layers have the same split, as the runtime needs it.
        all_later: whether later tokens must all be on the device.
        weights_streamed: share of the weights that is streamed, where that is settled.
        least: smallest shares of some paths, as far as these have their places already.
        most: largest shares of some paths.
        least_on_host: likewise, smallest share of the K/V on the host, streamed or attended to.
    """

    paths: tuple[str, ...] = PATHS
    stream_weights: bool = True
    most_recomputed: float = 1.0
    fixed: Mapping[str, float] = field(default_factory=dict)
    tied: bool = False
    all_later: bool = False
    weights_streamed: float | None = None
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    least_on_host: float = 0.0

    def bounds(self, path: str) -> tuple[float, float]:
        """Return the smallest and the largest share of a path."""
        given = self.fixed.get(path)
        if given is not None:
            return given, given
        most = min(1.0, self.most.get(path, 1.0))
        if path == "recompute":
            most = min(most, self.most_recomputed)
        return self.least.get(path, 0.0), most


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
        later_resident: share of the tokens after this step that there is room for on the device, as
            far as the host has none.
    """

    step_s: float
    splits: tuple[Split, ...]
    weights_streamed: float
    seconds: Mapping[Resource, float]
    prices: Mapping[str, float]
    elasticity: Mapping[Rate, float]
    later_resident: float = 0.0

    def columns(self, groups: Sequence[LayerGroup]) -> dict[str, float]:
        """Return the program's columns, by name, for the model's groups of layers."""
        values = {WEIGHTS: self.weights_streamed}
        for group, split in zip(groups, self.splits, strict=True):
            values |= {column(path, group, len(groups)): getattr(split, path) for path in PATHS}
        return values


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
    best = _solved(work, profile, limits, choice)
    for may_gain, paths in (
        (_host_may_cost, tuple(path for path in choice.paths if path != "host")),
        (_stores_may_cost, ("resident",)),
    ):
        if best is None or not paths or not set(paths) < set(choice.paths):
            continue
        if not may_gain(best, profile):
            continue
        other = _solved(work, profile, limits, replace(choice, paths=paths))
        if other is not None and other.step_s <= best.step_s:
            best = other
    return best


def _host_may_cost(optimum: Optimum, profile: HardwareProfile) -> bool:
    """Return whether a step may be shorter if the host attends to nothing at all.

    However few tokens it attends to, queries go down and results come up. If that does not bind,
    nothing is gained without it.
    """
    hosted = any(split.host > 0 for split in optimum.splits)
    by_device = profile.mail_bytes_per_s is not None
    rows = (*_HOST_ROWS, Resource.GPU.value) if by_device else _HOST_ROWS
    return not hosted or any(optimum.prices.get(row, 0.0) > 0 for row in rows)


def _stores_may_cost(optimum: Optimum, _: HardwareProfile) -> bool:
    """Return whether a step may be shorter if all is on the device, so that nothing is stored."""
    stored = any(split.resident < 1 for split in optimum.splits)
    return not stored or optimum.prices[Resource.STORE.value] > 0


def _solved(
    work: StepWork, profile: HardwareProfile, limits: MemoryLimits, choice: Choice
) -> Optimum | None:
    asked = demands(work, profile, choice.paths)
    unit_s = _unit_s(asked)
    solution = assemble(work, asked, limits, choice, unit_s).solve()
    return None if solution is None else _optimum(work, asked, solution, unit_s)


def assemble(
    work: StepWork,
    asked: Sequence[Demand],
    limits: MemoryLimits,
    choice: Choice,
    unit_s: float = 1.0,
) -> LinearProgram:
    """Return the linear program with all its rows and columns.

    Args:
        work: the step.
        asked: what the step needs of each resource.
        limits: the memory.
        choice: what may be chosen from.
        unit_s: unit of T and of the objective.
    """
    program = LinearProgram()
    coefficients = [demand.coefficients() for demand in asked]
    _add_columns(program, work, [by_column for by_column, _ in coefficients], choice, unit_s)
    for demand, (by_column, constant) in zip(asked, coefficients, strict=True):
        program.add_row(demand.row, {**by_column, STEP: -unit_s}, upper=-constant)
    groups = work.shape.groups
    for group in groups:
        paths = {column(path, group, len(groups)): 1.0 for path in choice.paths}
        name = "split" if len(groups) == 1 else f"split {group.name}"
        program.add_row(name, paths, lower=1.0, upper=1.0)
        if choice.least_on_host > 0:
            on_host = {
                column(path, group, len(groups)): 1.0
                for path in ("stream", "host")
                if path in choice.paths
            }
            program.add_row(f"on host, {name}", on_host, lower=choice.least_on_host)
    if choice.tied:
        for group in groups[1:]:
            for path in choice.paths:
                first, other = (column(path, one, len(groups)) for one in (groups[0], group))
                program.add_row(f"tie {other}", {first: 1.0, other: -1.0}, lower=0.0, upper=0.0)
    _add_memory(program, work, limits, choice)
    return program


def _unit_s(asked: Sequence[Demand]) -> float:
    """Return the largest time that there is, so that the solver's numbers are at most about 1."""
    return max(max((term.seconds for term in one.terms), default=0.0) for one in asked) or 1.0


def _add_columns(
    program: LinearProgram,
    work: StepWork,
    needs: Sequence[Mapping[str, float]],
    choice: Choice,
    unit_s: float,
) -> None:
    def tie_break(name: str) -> float:
        return _TIE_BREAK * sum(need.get(name, 0.0) for need in needs) / unit_s

    program.add_column(STEP, cost=1.0)
    groups = work.shape.groups
    for group in groups:
        for path in choice.paths:
            name = column(path, group, len(groups))
            lower, upper = choice.bounds(path)
            program.add_column(name, cost=tie_break(name), lower=lower, upper=upper)
    least, most = 0.0, 1.0 if choice.stream_weights else 0.0
    if choice.weights_streamed is not None:
        least = most = choice.weights_streamed
    program.add_column(WEIGHTS, cost=tie_break(WEIGHTS), lower=least, upper=most)
    later = 1.0 if "resident" in choice.paths else 0.0
    program.add_column(
        LATER, cost=_LATER_COST, lower=later if choice.all_later else 0.0, upper=later
    )


def _add_memory(
    program: LinearProgram, work: StepWork, limits: MemoryLimits, choice: Choice
) -> None:
    """Add the budgets, in bytes."""
    groups = work.shape.groups
    gpu: dict[str, float] = {WEIGHTS: float(streamed_device_bytes(work.shape))}
    host: dict[str, float] = {WEIGHTS: float(all_layers_weight_bytes(work.shape))}
    at_end = later = 0.0
    for group in groups:
        kv_bytes = kv_bytes_per_token(group.shape)
        saved_by_x = activation_bytes_per_token(group.shape) - kv_bytes
        tokens = work.paged_tokens * group.layers
        at_end += limits.end_paged * work.rows * group.layers * kv_bytes
        later += max(0, limits.end_paged - work.paged) * work.rows * group.layers * kv_bytes
        for path in choice.paths:
            name = column(path, group, len(groups))
            if path == "resident":
                gpu[name] = float(tokens * kv_bytes)
                host[name] = float(-tokens * kv_bytes)
            elif path == "recompute":
                host[name] = float(tokens * saved_by_x)
    gpu[LATER], host[LATER] = later, -later
    if limits.lacking:
        for row, needs in ((GPU_MEMORY, gpu), (HOST_MEMORY, host)):
            program.add_column(f"lacking {row}", cost=_LACKING)
            needs[f"lacking {row}"] = -max(at_end, 1.0)
    program.add_row(GPU_MEMORY, gpu, upper=limits.gpu_left)
    program.add_row(HOST_MEMORY, host, upper=limits.host_left - at_end)


def _optimum(work: StepWork, asked: Sequence[Demand], solution: Solution, unit_s: float) -> Optimum:
    groups = work.shape.groups
    splits = tuple(
        _split({path: solution.values.get(column(path, group, len(groups)), 0.0) for path in PATHS})
        for group in groups
    )
    # What the solver rounded is left out of the times too, which are those of the splits.
    values = {WEIGHTS: _share(solution.values[WEIGHTS])}
    for group, split in zip(groups, splits, strict=True):
        values |= {column(path, group, len(groups)): getattr(split, path) for path in PATHS}
    seconds: dict[Resource, float] = {}
    for demand in asked:
        needed = demand.seconds(values)
        seconds[demand.resource] = max(seconds.get(demand.resource, 0.0), needed)
    step_s = max(seconds.values())
    prices = {name: -price * unit_s for name, price in solution.prices.items()}
    elasticity: dict[Rate, float] = {}
    for demand in asked:
        for rate, part_s in demand.seconds_by_rate(values).items():
            share = prices[demand.row] * part_s / step_s if step_s else 0.0
            elasticity[rate] = elasticity.get(rate, 0.0) + share
    later = _share(solution.values[LATER])
    return Optimum(step_s, splits, values[WEIGHTS], seconds, prices, elasticity, later)


def _share(value: float) -> float:
    """Return a share freed of the solver's rounding."""
    return 0.0 if value < _NOTHING else min(1.0, value)


def _split(shares: Mapping[str, float]) -> Split:
    """Return shares as a split, freed of the solver's rounding."""
    kept = {path: _share(share) for path, share in shares.items()}
    total = sum(kept.values())
    return Split(**{path: share / total for path, share in kept.items()}) if total else Split(1.0)
