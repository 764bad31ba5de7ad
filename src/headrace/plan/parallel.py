"""Several GPUs of one host: what each of them has to do, and what it has for that.

Every GPU has its own link, and all share the host's memory and cores, so each gets an equal part of
those; links together take no more than host memory gives.

- **data**: each GPU has the whole model and its part of the rows.
- **tensor**: each GPU has a part of the heads and of the feed-forward block, for all rows. A shard
  is again a model, with fewer heads. Two all-reduces a layer add up partial results. To rebuild its
  K/V a shard needs X whole: either each loads it whole, or each loads its part and they gather it
  over the interconnect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import activation_bytes_per_token, rebuild_flops_per_token
from headrace.model.shape import ModelShape
from headrace.plan.options import PlanOptions
from headrace.plan.outcome import Plan
from headrace.plan.plan import Planner
from headrace.plan.whatif import scaled
from headrace.plan.workload import Workload

_HOST_RATES = (
    "host_bytes_per_s",
    "host_attend_bytes_per_s",
    "host_while_h2d_bytes_per_s",
    "host_attend_while_h2d_bytes_per_s",
)
_REDUCTIONS_PER_LAYER = 2


class Parallel(StrEnum):
    """How the work is divided over GPUs."""

    DATA = "data"
    """Each has the whole model, and a part of the rows."""
    TENSOR = "tensor"
    """Each has a part of every layer, and all rows."""


@dataclass(frozen=True)
class Cluster:
    """GPUs of one host.

    Attributes:
        gpus: how many.
        parallel: how the work is divided over them.

    Raises:
        ConfigurationError: there is not at least one GPU.
    """

    gpus: int = 1
    parallel: Parallel = Parallel.DATA

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigurationError(f"gpus is {self.gpus}; allowed are whole numbers from 1")


@dataclass(frozen=True)
class ClusterPlan:
    """The plan of several GPUs.

    Attributes:
        cluster: the GPUs.
        planner: of one GPU; made ``plan``.
        plan: of one GPU. Its memory, its split and its step are each GPU's.
        rows: sequences of all GPUs together.
        gathers_activations: whether GPUs load parts of X and gather them.
        communication_s: seconds of a step that each GPU spends on all-reduces.
    """

    cluster: Cluster
    planner: Planner
    plan: Plan
    rows: int
    gathers_activations: bool = False
    communication_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second while decoding, over all GPUs."""
        return self.total(self.plan.tokens_per_s)

    def total(self, tokens_per_s: float) -> float:
        """Return the speed of all GPUs, given that of the one with most rows."""
        return tokens_per_s * self.rows / self.plan.workload.rows


def plan_cluster(
    shape: ModelShape,
    workload: Workload,
    profile: HardwareProfile,
    options: PlanOptions,
    cluster: Cluster,
) -> ClusterPlan:
    """Plan a workload on several GPUs of one host.

    Args:
        shape: the model.
        workload: the rows of all GPUs together.
        profile: the machine, with the link and the memory of one of its GPUs.
        options: how to plan; the GPU budget is each GPU's, the host budget that of all.
        cluster: the GPUs.

    Raises:
        ConfigurationError: the model or the rows cannot be divided over so many GPUs.
    """
    if cluster.gpus == 1:
        planner = Planner(shape, workload, profile, options)
        plan = planner.plan()
        return ClusterPlan(cluster, planner, plan, plan.workload.rows)
    shared = share_of_host(profile, cluster.gpus)
    if options.host_memory_bytes is not None:
        options = replace(options, host_memory_bytes=options.host_memory_bytes / cluster.gpus)
    if cluster.parallel is Parallel.DATA:
        planner = Planner(shape, replica_rows(workload, cluster.gpus), shared, options)
        plan = planner.plan()
        rows = min(workload.rows, plan.workload.rows * cluster.gpus)
        return ClusterPlan(cluster, planner, plan, rows)
    reduced_s = all_reduce_s(shape, workload.rows, shared, cluster.gpus)
    options = replace(options, communication_s=reduced_s)
    part = shard(shape, cluster.gpus)
    plans = []
    for gathers in (False, True):
        machine = gathering(part, shared, cluster.gpus) if gathers else shared
        model = replace(part, activation_parts=cluster.gpus) if gathers else part
        planner = Planner(model, workload, machine, options)
        plan = planner.plan()
        rows = plan.workload.rows
        plans.append(ClusterPlan(cluster, planner, plan, rows, gathers, reduced_s))
    whole, gathered = plans
    faster = gathered.plan.step_s < whole.plan.step_s and gathered.plan.feasible
    return gathered if faster or not whole.plan.feasible else whole


def share_of_host(profile: HardwareProfile, gpus: int) -> HardwareProfile:
    """Return the machine as one of its GPUs has it while all are at work."""
    dram_bytes_per_s = profile.dram_rate / gpus
    part = scaled(profile, _HOST_RATES, 1 / gpus)
    link = min(profile.h2d_bytes_per_s, dram_bytes_per_s)
    return replace(
        part,
        h2d_bytes_per_s=link,
        d2h_bytes_per_s=min(profile.d2h_bytes_per_s, dram_bytes_per_s),
        h2d_while_host_bytes_per_s=_at_most(link, profile.h2d_while_host_bytes_per_s),
        h2d_while_attend_bytes_per_s=_at_most(link, profile.h2d_while_attend_bytes_per_s),
        host_memory_bytes=profile.host_memory_bytes // gpus,
    )


def _at_most(most: float, rate: float | None) -> float | None:
    return None if rate is None else min(most, rate)


def replica_rows(workload: Workload, gpus: int) -> Workload:
    """Return the rows of the replica that has most.

    Raises:
        ConfigurationError: there are fewer rows than GPUs.
    """
    if workload.rows < gpus:
        raise ConfigurationError(
            f"rows is {workload.rows} for {gpus} data-parallel GPUs; each needs a row, so use "
            f"{workload.rows} GPUs at most, or parallel 'tensor'"
        )
    rows = -(-workload.rows // gpus)
    return replace(workload, rows=rows, batches=min(rows, workload.batches))


def shard(shape: ModelShape, gpus: int) -> ModelShape:
    """Return one GPU's part of a model: its heads, and its part of the feed-forward block.

    Where there are fewer key/value heads than GPUs, each GPU has one, which others have too.

    Raises:
        ConfigurationError: heads cannot be divided evenly.
    """
    widths = shape.kv_widths or ((shape.num_kv_heads, shape.head_dim),)
    uneven = [heads for heads, _ in widths if heads % gpus and gpus % heads]
    experts = shape.experts
    inner = [shape.d_ff] if experts is None else [shape.d_ff, experts.d_ff, experts.d_shared]
    if shape.num_heads % gpus or any(width % gpus for width in inner) or uneven:
        raise ConfigurationError(
            f"{shape.name} has {shape.num_heads} query heads, {shape.num_kv_heads} key/value heads "
            f"and a feed-forward width of {' or '.join(map(str, sorted({*inner} - {0})))}, which "
            f"{gpus} GPUs cannot share evenly; use a number of GPUs that divides them, or "
            "parallel 'data'"
        )
    return replace(
        shape,
        num_heads=shape.num_heads // gpus,
        num_kv_heads=max(1, shape.num_kv_heads // gpus),
        d_ff=shape.d_ff // gpus,
        experts=experts and experts.narrowed(gpus),
        vocab_size=-(-shape.vocab_size // gpus),
        kv_widths=tuple((max(1, heads // gpus), width) for heads, width in shape.kv_widths),
    )


def all_reduce_s(shape: ModelShape, rows: int, profile: HardwareProfile, gpus: int) -> float:
    """Return the seconds of a step's all-reduces: rings, each 2·(N − 1)/N of the hidden states."""
    size_bytes = rows * shape.d_model * shape.dtype_bytes
    travel_s = 2 * (gpus - 1) / gpus * size_bytes / profile.interconnect_rate
    return shape.num_layers * _REDUCTIONS_PER_LAYER * (travel_s + profile.launch_latency_s)


def gathering(part: ModelShape, profile: HardwareProfile, gpus: int) -> HardwareProfile:
    """Return the machine with rebuilding slowed down by gathering X from the other GPUs."""
    flops = rebuild_flops_per_token(part)
    gathered = (gpus - 1) / gpus * activation_bytes_per_token(part)
    rebuild_s = flops / profile.rebuild_rate(part.dtype) + gathered / profile.interconnect_rate
    return replace(profile, rebuild_flops_per_s=flops / rebuild_s)
