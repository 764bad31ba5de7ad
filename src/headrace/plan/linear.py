"""Linear programs with named rows and columns, solved by HiGHS.

HiGHS (Huangfu and Hall 2018, "Parallelizing the dual revised simplex method", Mathematical
Programming Computation 10) is called through its own Python package, which is imported in a
fiftieth of a second; where that is not installed, through SciPy, which ships the same solver.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.errors import HeadraceError


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


@dataclass(frozen=True)
class _Row:
    coefficients: Mapping[str, float]
    lower: float
    upper: float


@dataclass(frozen=True)
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
        self.rows[name] = _Row(dict(coefficients), lower, upper)

    def solve(self) -> Solution | None:
        """Return the optimum, or None where no values satisfy all rows.

        Raises:
            HeadraceError: no solver is installed, or it gave up (which these small programs, all of
                them bounded, do not make it do).
        """
        return _solver()(self)


def _solver() -> Callable[[LinearProgram], Solution | None]:
    if importlib.util.find_spec("highspy") is not None:
        return _solve_with_highspy
    if importlib.util.find_spec("scipy") is not None:
        return _solve_with_scipy
    raise HeadraceError(
        "planning needs the HiGHS solver, and neither highspy nor scipy is installed; "
        "run `pip install highspy`"
    )


def _solve_with_highspy(program: LinearProgram) -> Solution | None:
    import highspy
    import numpy as np

    place = {name: number for number, name in enumerate(program.columns)}
    entries = [
        [(place[name], value) for name, value in row.coefficients.items() if value]
        for row in program.rows.values()
    ]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.columns), len(program.rows)
    lp.col_names_, lp.row_names_ = list(program.columns), list(program.rows)
    lp.col_cost_ = np.array([column.cost for column in program.columns.values()])
    lp.col_lower_ = np.array([column.lower for column in program.columns.values()])
    lp.col_upper_ = np.array([column.upper for column in program.columns.values()])
    lp.row_lower_ = np.array([row.lower for row in program.rows.values()])
    lp.row_upper_ = np.array([row.upper for row in program.rows.values()])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.cumsum([0, *(len(row) for row in entries)], dtype=np.int32)
    lp.a_matrix_.index_ = np.array([c for row in entries for c, _ in row], dtype=np.int32)
    lp.a_matrix_.value_ = np.array([v for row in entries for _, v in row], dtype=np.float64)

    class Quiet(highspy.Highs):  # type: ignore[misc, unused-ignore]
        """A solver without callbacks, whose setting up prints to standard output."""

        def __init__(self) -> None:
            super(highspy.Highs, self).__init__()
            self.setOptionValue("output_flag", False)

    solver = Quiet()
    solver.passModel(lp)
    solver.run()
    status = solver.getModelStatus()
    if status in (
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kUnboundedOrInfeasible,
    ):
        return None
    if status != highspy.HighsModelStatus.kOptimal:
        raise HeadraceError(f"the solver gave up on the linear program: {status}")
    found = solver.getSolution()
    return Solution(
        solver.getInfo().objective_function_value,
        dict(zip(program.columns, map(float, found.col_value), strict=True)),
        dict(zip(program.rows, map(float, found.row_dual), strict=True)),
    )


def _solve_with_scipy(program: LinearProgram) -> Solution | None:
    import numpy as np
    from scipy.optimize import linprog  # type: ignore[import-untyped, unused-ignore]

    place = {name: number for number, name in enumerate(program.columns)}
    upper: list[tuple[str, Mapping[str, float], float]] = []
    equal: list[tuple[str, Mapping[str, float], float]] = []
    for name, row in program.rows.items():
        if row.lower == row.upper:
            equal.append((name, row.coefficients, row.upper))
            continue
        if row.upper < math.inf:
            upper.append((name, row.coefficients, row.upper))
        if row.lower > -math.inf:
            turned = {column: -value for column, value in row.coefficients.items()}
            upper.append((name, turned, -row.lower))

    def matrix(rows: list[tuple[str, Mapping[str, float], float]]) -> object:
        made = np.zeros((len(rows), len(place)))
        for number, (_, coefficients, _) in enumerate(rows):
            for column, value in coefficients.items():
                made[number, place[column]] = value
        return made

    found = linprog(
        [column.cost for column in program.columns.values()],
        matrix(upper),
        [bound for _, _, bound in upper],
        matrix(equal),
        [bound for _, _, bound in equal],
        [(column.lower, column.upper) for column in program.columns.values()],
        method="highs",
    )
    if found.status == 2:
        return None
    if found.status != 0:
        raise HeadraceError(f"the solver gave up on the linear program: {found.message}")
    prices = dict.fromkeys(program.rows, 0.0)
    for (name, coefficients, _), price in zip(upper, found.ineqlin.marginals, strict=True):
        turned = coefficients != program.rows[name].coefficients
        prices[name] += float(-price if turned else price)
    for (name, _, _), price in zip(equal, found.eqlin.marginals, strict=True):
        prices[name] = float(price)
    return Solution(
        float(found.fun), dict(zip(program.columns, map(float, found.x), strict=True)), prices
    )
