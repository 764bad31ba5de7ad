"""Planning anew while an engine runs: the context has grown, or rows have come or gone.

The cache has been cut by then: block, granules and ring stay as they are, and only the split is
decided again. That is one linear program or two, and takes about a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider, Decision
from headrace.plan.demands import demands
from headrace.plan.geometry import Geometry
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy, Split
from headrace.plan.step_work import PATHS, WEIGHTS, Schedule, column
from headrace.plan.workload import Workload

_HOST_SHARES = 32
"""Parts into which the K/V on the host are divided between the link and the cores."""


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
        decider = Decider(self.shape, Workload(rows, context, 1), self.profile, self.options)
        work = decider.step_work(Policy.AUTO, Schedule.ROW, self.geometry)
        paths = tuple(path for path in PATHS if getattr(split, path) > 0)
        groups = self.shape.groups
        values = {
            column(path, group, len(groups)): getattr(split, path)
            for group in groups
            for path in PATHS
        }
        values[WEIGHTS] = self.options.weights_streamed or 0.0
        return max(one.seconds(values) for one in demands(work, self.profile, paths))

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
        on_host = max(0.0, 1.0 - resident - recompute)
        parts = _HOST_SHARES if self.profile.host_attends and on_host > 0 else 0
        found = []
        for part in range(parts + 1):
            share = part / max(1, parts)
            hosted = share * on_host
            split = Split(1.0 - recompute - on_host, on_host - hosted, recompute, hosted)
            found.append((self.step_s(rows, context, split), share))
        step_s, share = min(found)
        return share, step_s
