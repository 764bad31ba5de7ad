"""Planning anew while an engine runs: the context has grown, or rows have come or gone.

The cache has been cut by then: block, granules and ring stay as they are, and only the split is
decided again. That is one linear program or two, and takes about a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.hardware.profile import HardwareProfile
from headrace.model.shape import ModelShape
from headrace.plan.decision import Decider, Decision
from headrace.plan.geometry import Geometry
from headrace.plan.options import PlanOptions
from headrace.plan.step_work import Schedule
from headrace.plan.workload import Workload


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
