"""Linear programs with named rows and columns, solved by HiGHS.

HiGHS (Huangfu and Hall 2018, "Parallelizing the dual revised simplex method", Mathematical
Programming Computation 10) is called through its own Python package, which is imported in a
fiftieth of a second; where that is not installed, through SciPy, which ships the same solver.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError

_TOLERANCE = 1e-10
"""The least that HiGHS takes: rows are scaled to coefficients of at most 1 before."""


@dataclass(frozen=True)
class Solution:
    """An optimal solution.

    Attributes:
        objective: the least value of the objective.
        values: the value of each column, by name.
        prices: the shadow price of each row, by name: by how much the objective would change for
            each unit by which the row's bound is raised.
    """

    objective: float
    values: Mapping[str, float]
    prices: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Row:
    coefficients: Mapping[str, float]
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class _Column:
    cost: float
    lower: float
    upper: float


@dataclass
class LinearProgram:
    """A linear program to be minimised, put together row by row and column by column."""

    columns: dict[str, _Column] = field(default_factory=dict)
    rows: dict[str, _Row] = field(default_factory=dict)

    def add_column(
        self, name: str, *, cost: float = 0.0, lower: float = 0.0, upper: float = math.inf
    ) -> None:
        """Add a variable with its bounds and its coefficient in the objective."""
        if name in self.columns:
            raise ValueError(f"there is a column {name!r} already")
        self.columns[name] = _Column(cost, lower, upper)

    def add_row(
        self,
        name: str,
        coefficients: Mapping[str, float],
        *,
        lower: float = -math.inf,
        upper: float = math.inf,
    ) -> None:
        """Add the restriction lower ≤ Σ coefficient · column ≤ upper."""
        if name in self.rows:
            raise ValueError(f"there is a row {name!r} already")
        unknown = set(coefficients) - set(self.columns)
        if unknown:
            raise ValueError(f"row {name!r} has unknown columns {sorted(unknown)}")
        self.rows[name] = _Row(coefficients, lower, upper)

    def solve(self) -> Solution | None:
        """Return the optimum, or None where no values satisfy all rows.

        Raises:
            HeadraceError: no solver is installed, or it gave up (which these small programs, all of
                them bounded, do not make it do).
        """
        scaled = _Scaled.of(self)
        found = _solver()(scaled)
        if found is None:
            return None
        prices = found.duals / scaled.scales
        return Solution(
            found.objective,
            dict(zip(self.columns, found.values.tolist(), strict=True)),
            dict(zip(self.rows, prices.tolist(), strict=True)),
        )


@dataclass(frozen=True)
class _Scaled:
    """A program as arrays; each row is divided by its scale, its largest coefficient."""

    cost: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    matrix: NDArray[np.float64]
    row_lower: NDArray[np.float64]
    row_upper: NDArray[np.float64]
    scales: NDArray[np.float64]

    @classmethod
    def of(cls, program: LinearProgram) -> _Scaled:
        columns, rows = program.columns.values(), program.rows.values()
        place = {name: number for number, name in enumerate(program.columns)}
        matrix = np.zeros((len(rows), len(columns)))
        for number, row in enumerate(rows):
            for name, value in row.coefficients.items():
                matrix[number, place[name]] = value
        largest = np.abs(matrix).max(axis=1, initial=0.0)
        scales = np.where(largest > 0, largest, 1.0)
        return cls(
            np.array([column.cost for column in columns]),
            np.array([column.lower for column in columns]),
            np.array([column.upper for column in columns]),
            matrix / scales[:, None],
            np.array([row.lower for row in rows]) / scales,
            np.array([row.upper for row in rows]) / scales,
            scales,
        )


@dataclass(frozen=True)
class _Found:
    objective: float
    values: NDArray[np.float64]
    duals: NDArray[np.float64]


def load_solver() -> None:
    """Import the solver, once: what that takes is not part of solving."""
    for name in ("highspy", "scipy.optimize"):
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
            return


def _solver() -> Callable[[_Scaled], _Found | None]:
    if importlib.util.find_spec("highspy") is not None:
        return _solve_with_highspy
    if importlib.util.find_spec("scipy") is not None:
        return _solve_with_scipy
    raise HeadraceError(
        "planning needs the HiGHS solver, and neither highspy nor scipy is installed; "
        "run `pip install highspy`"
    )


_local = threading.local()


def _highs() -> Any:
    """Return this thread's solver: to set one up takes longer than to solve with it."""
    if not hasattr(_local, "solver"):
        import highspy

        class Quiet(highspy.Highs):  # type: ignore[misc, unused-ignore]
            """A solver without callbacks, whose setting up prints to standard output."""

            def __init__(self) -> None:
                super(highspy.Highs, self).__init__()
                self.setOptionValue("output_flag", False)

        _local.solver = Quiet()
        for which in ("primal", "dual"):
            _local.solver.setOptionValue(f"{which}_feasibility_tolerance", _TOLERANCE)
    return _local.solver


def _solve_with_highspy(program: _Scaled) -> _Found | None:
    import highspy

    places = [np.flatnonzero(row) for row in program.matrix]
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = program.matrix.shape
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.cost, program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.cumsum([0, *map(len, places)], dtype=np.int32)
    lp.a_matrix_.index_ = np.concatenate(places).astype(np.int32)
    lp.a_matrix_.value_ = program.matrix[program.matrix != 0]
    solver = _highs()
    infeasible = (
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kUnboundedOrInfeasible,
    )
    known = (highspy.HighsModelStatus.kOptimal, *infeasible)
    status = highspy.HighsModelStatus.kNotset
    # Seldom, the simplex method gives up on a program that presolving makes easy.
    for presolve in ("off", "on"):
        solver.setOptionValue("presolve", presolve)
        solver.clearModel()
        solver.passModel(lp)
        solver.run()
        status = solver.getModelStatus()
        if status in known:
            break
    if status in infeasible:
        return None
    if status != highspy.HighsModelStatus.kOptimal:
        raise HeadraceError(f"the solver gave up on the linear program: {status}")
    found = solver.getSolution()
    return _Found(
        solver.getInfo().objective_function_value,
        np.array(found.col_value),
        np.array(found.row_dual),
    )


def _solve_with_scipy(program: _Scaled) -> _Found | None:
    from scipy.optimize import linprog  # type: ignore[import-untyped, unused-ignore]

    equal = program.row_lower == program.row_upper
    above = ~equal & np.isfinite(program.row_upper)
    below = ~equal & np.isfinite(program.row_lower)
    found = linprog(
        program.cost,
        np.concatenate([program.matrix[above], -program.matrix[below]]),
        np.concatenate([program.row_upper[above], -program.row_lower[below]]),
        program.matrix[equal],
        program.row_upper[equal],
        list(_bounds(program.lower, program.upper)),
        method="highs",
    )
    if found.status == 2:
        return None
    if found.status != 0:
        raise HeadraceError(f"the solver gave up on the linear program: {found.message}")
    duals = np.zeros(len(program.scales))
    duals[above] += found.ineqlin.marginals[: above.sum()]
    duals[below] -= found.ineqlin.marginals[above.sum() :]
    duals[equal] = found.eqlin.marginals
    return _Found(float(found.fun), np.array(found.x), duals)


def _bounds(
    lower: Sequence[float] | NDArray[np.float64], upper: Sequence[float] | NDArray[np.float64]
) -> list[tuple[float, float | None]]:
    return [
        (float(low), None if math.isinf(high) else float(high))
        for low, high in zip(lower, upper, strict=True)
    ]
