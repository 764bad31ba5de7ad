"""Planning anew while an engine runs: the context has grown, or rows have come or gone.

The cache has been cut by then: block, granules and ring stay as they are, and only the split is
decided again. That is one linear program or two, which take about a millisecond, or a dozen where
launching takes longest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider, Decision
from headrace.plan.demands import AttainedRates, Demand, attained_rates, demands
from headrace.plan.geometry import Geometry
from headrace.plan.launching import Launching
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy, Split
from headrace.plan.program import Choice, MemoryLimits, optimise
from headrace.plan.step_work import PATHS, WEIGHTS, Schedule, column
from headrace.plan.workload import Workload

HOST_SHARES = 32
"""Parts into which the K/V on the host are divided between the link and the cores."""

_RATIO_ROUNDS = 12
"""Corrections of the ratios of rates; each leaves at most half of the error."""

_LEAST_RATIO = 1e-3


@dataclass(frozen=True)
class Ratios:
    """How many times a profile's rates explain what was seen.

    Attributes:
        cores: of the host's cores.
        link: of the link.
    """

    cores: float = 1.0
    link: float = 1.0


@dataclass(frozen=True)
class Replanner:
    """Decides anew how cached tokens are divided, for a cache that is cut already.

    Attributes:
        shape: the model.
        profile: the machine.
        options: how to plan: policy, budgets, paths, and the schedule (row-by-row if None).
        geometry: how the cache is cut.
    """

    shape: ModelShape
    profile: HardwareProfile
    options: PlanOptions
    geometry: Geometry

    def split(
        self, rows: int, context: int, *, generate_len: int = 1, batches: int = 1
    ) -> Decision:
        """Return the best decision for the rows there are; one that lacks memory where none fits.

        Args:
            rows: sequences.
            context: cached tokens of a row now, which may all be divided anew.
            generate_len: tokens that each row has still to generate: their K/V must fit too, and
                the step in the middle of them is made fastest.
            batches: groups in which the rows are worked on.

        Raises:
            ConfigurationError: the policy needs a path that the machine lacks, or there are fewer
                rows than batches.
        """
        options = self.options.on(self.profile)
        workload = Workload(rows, context, generate_len, batches)
        decider = Decider(self.shape, workload, self.profile, options)
        schedule = options.schedule or Schedule.ROW
        return decider.at(options.policy, schedule, self.geometry)

    def step_s(self, rows: int, context: int, split: Split) -> float:
        """Return the least time of a decode step of rows that are divided in a given way.

        Args:
            rows: sequences.
            context: cached tokens of a row, on average.
            split: how they are divided.
        """
        return _Step(self, rows, context).seconds(split)

    def hosted(
        self, rows: int, context: int, resident: float, recompute: float
    ) -> tuple[float, float]:
        """Return the best share of the K/V on the host for its cores, and the step it makes.

        Args:
            rows: sequences.
            context: cached tokens of a row, on average.
            resident: share of them on the device, which is as it is.
            recompute: share of them kept as X, likewise.
        """
        recompute = min(1.0, recompute)
        on_host = max(0.0, 1.0 - resident - recompute)
        attends = self.profile.host_attends and "host" in self.options.paths
        parts = HOST_SHARES if attends and on_host > 0 else 0
        step, found = _Step(self, rows, context), []
        for part in range(parts + 1):
            share = part / max(1, parts)
            hosted = share * on_host
            kept = max(0.0, 1.0 - recompute - on_host)
            split = Split(kept, on_host - hosted, recompute, hosted)
            found.append((step.seconds(split), share))
        step_s, share = min(found)
        return share, step_s

    def completed(
        self,
        rows: int,
        context: int,
        least: Mapping[str, float],
        most: Mapping[str, float],
        least_on_host: float,
        paths: Sequence[str],
    ) -> Split | None:
        """Return the best split of a batch most of whose tokens have their places already.

        Args:
            rows: sequences.
            context: cached tokens of a row, on average.
            least: of ``resident`` and ``recompute``, the share that is there already.
            most: of both, the share that there may be.
            least_on_host: share of the tokens whose K/V are on the host already; whether they are
                streamed or attended to there is open.
            paths: that may be taken.

        Returns:
            The split of all tokens; None where the shares go together in no way.
        """
        options = self.options.on(self.profile)
        decider = Decider(self.shape, Workload(rows, context, 1), self.profile, options)
        choice = Choice(
            paths=tuple(path for path in options.paths if path in paths),
            stream_weights=False,
            tied=True,
            weights_streamed=options.weights_streamed or 0.0,
            least=least,
            most=most,
            least_on_host=least_on_host,
        )
        # Memory is what has set the largest shares.
        limits = MemoryLimits(math.inf, math.inf, context)
        work = decider.step_work(Policy.AUTO, Schedule.ROW, self.geometry)
        optimum = optimise(work, self.profile, limits, choice)
        return None if optimum is None or not optimum.splits else optimum.splits[0]

    # What link and cores turn out to do

    def with_ratios(self, ratios: Ratios) -> Replanner:
        """Return one for which link and cores go at so many times the profile's rates."""
        return replace(self, profile=self.profile.with_rates(ratios.cores, ratios.link))

    def rates(self, rows: int, context: int, split: Split) -> AttainedRates:
        """Return the bytes a second that link and cores should get in such a step.

        Args:
            rows: sequences.
            context: cached tokens of a row, on average.
            split: how they are divided.
        """
        return _Step(self, rows, context).rates(split)

    def ratios(
        self,
        rows: int,
        context: int,
        split: Split,
        *,
        link: float | None = None,
        cores: float | None = None,
        known: Ratios | None = None,
    ) -> Ratios:
        """Return how many times the profile's rates explain those of a step.

        What either takes from the other does not grow as it becomes slower, so that these are not
        the quotients of the rates.

        Args:
            rows: sequences.
            context: cached tokens of a row, on average.
            split: how they were divided.
            link: bytes a second at which the cache was loaded, if it was.
            cores: bytes a second at which the cores attended, if they did.
            known: the ratios so far; one whose rate is not given stays.
        """
        found = known or Ratios()
        most = self._most_link_ratio
        for _ in range(_RATIO_ROUNDS):
            expected = self.with_ratios(found).rates(rows, context, split)
            by_cores = 1.0 if cores is None else cores / expected.cores
            by_link = 1.0 if link is None else link / expected.link
            found = Ratios(
                max(_LEAST_RATIO, by_cores * found.cores),
                min(most, max(_LEAST_RATIO, by_link * found.link)),
            )
        return found

    @property
    def _most_link_ratio(self) -> float:
        """The ratio with which the link is as fast beside the cores as alone."""
        joint = self.profile.joint_rates
        return 1.0 if joint is None else max(1.0, self.profile.h2d_bytes_per_s / joint[0])


class _Step:
    """A decode step of rows that may be divided in any way.

    What it asks of each resource is made once for all splits that take the same paths.

    Args:
        replanner: knows model, machine and geometry.
        rows: sequences.
        context: cached tokens of a row.
    """

    def __init__(self, replanner: Replanner, rows: int, context: int) -> None:
        shape, profile, options = replanner.shape, replanner.profile, replanner.options
        decider = Decider(shape, Workload(rows, context, 1), profile, options)
        self._work = decider.step_work(Policy.AUTO, Schedule.ROW, replanner.geometry)
        self._profile = profile
        self._weights_streamed = options.weights_streamed or 0.0
        self._geometry = replanner.geometry
        self._launching = Launching(profile)
        self._asked: dict[tuple[str, ...], list[Demand]] = {}

    def seconds(self, split: Split) -> float:
        """Return the least time of the step."""
        paths, values = self._paths(split), self._values(split)
        if paths not in self._asked:
            self._asked[paths] = demands(self._work, self._profile, paths)
        splits = [split] * len(self._work.shape.groups)
        streams_weights = self._weights_streamed > 0
        launch_s = self._launching.step_s(
            self._work, self._geometry, splits, streams_weights=streams_weights
        )
        return max(launch_s, *(one.seconds(values) for one in self._asked[paths]))

    def rates(self, split: Split) -> AttainedRates:
        """Return the bytes a second that link and cores get."""
        return attained_rates(self._work, self._profile, self._paths(split), self._values(split))

    @staticmethod
    def _paths(split: Split) -> tuple[str, ...]:
        return tuple(path for path in PATHS if getattr(split, path) > 0)

    def _values(self, split: Split) -> dict[str, float]:
        """Return the columns."""
        groups = self._work.shape.groups
        values = {
            column(path, group, len(groups)): getattr(split, path)
            for group in groups
            for path in PATHS
        }
        values[WEIGHTS] = self._weights_streamed
        return values
