"""What the next step up would give: the same workload, with more of one thing or less to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.hardware.profile import HardwareProfile
from headrace.plan.decision import Decider
from headrace.plan.demands import Schedule
from headrace.plan.outcome import Plan
from headrace.plan.plan import Planner
from headrace.plan.policies import Policy

_WORTH_SAYING = 1.02

_LINK = (
    "h2d_bytes_per_s",
    "d2h_bytes_per_s",
    "h2d_while_d2h_bytes_per_s",
    "d2h_while_h2d_bytes_per_s",
    "h2d_while_compute_bytes_per_s",
    "h2d_while_host_bytes_per_s",
    "h2d_while_attend_bytes_per_s",
)
_HOST = (
    "host_bytes_per_s",
    "host_attend_bytes_per_s",
    "host_while_h2d_bytes_per_s",
    "host_attend_while_h2d_bytes_per_s",
)
_DEVICE_MEMORY = (
    "device_bytes_per_s",
    "attend_bytes_per_s",
    "resident_attend_bytes_per_s",
    "dense_bytes_per_s",
    "dense_curve",
    "resident_curve",
)
_ARITHMETIC = ("gemm_flops_per_s", "rebuild_flops_per_s", "gemm_while_h2d_flops_per_s")


@dataclass(frozen=True)
class Improvement:
    """What a change would give, by what rates and launching allow (latencies left out).

    Attributes:
        what: the change, in words.
        step_s: the step's least time with it.
        tokens_per_s: tokens a second with it.
        gain: how many times as fast a step is with it.
    """

    what: str
    step_s: float
    tokens_per_s: float
    gain: float


def improvements(planner: Planner, plan: Plan) -> tuple[Improvement, ...]:
    """Return changes that would make a step faster, the best first; none for what does not fit.

    Every change is planned anew, under the policy that was asked for, so that the split goes with
    it.

    Args:
        planner: made the plan.
        plan: the plan.
    """
    if not plan.feasible:
        return ()
    decider = replace(planner.decider, workload=plan.workload)
    policy = planner.options.policy
    now_s = max(plan.optimum.step_s, plan.launch_s)
    found = []
    for what, changed in _changes(decider):
        step_s = _step_s(changed, policy)
        rows = changed.workload.rows
        found.append(Improvement(what, step_s, rows / step_s, now_s / step_s))
    worth = [one for one in found if one.gain >= _WORTH_SAYING]
    return tuple(sorted(worth, key=lambda one: -one.gain))


def _step_s(decider: Decider, policy: Policy) -> float:
    policies = [policy]
    if policy is Policy.AUTO and "resident" in decider.options.paths:
        policies.append(Policy.RESIDENT)
    schedules = [decider.options.schedule or Schedule.ROW]
    if decider.options.schedule is None and decider.workload.batches > 1:
        schedules.append(Schedule.COLUMN)
    decisions = [decider.decide(one, order) for one in policies for order in schedules]
    fitting = [one.least_s for one in decisions if one.fits]
    return min(fitting or [decisions[0].least_s])


def _changes(decider: Decider) -> Iterator[tuple[str, Decider]]:
    profile, options = decider.profile, decider.options
    for what, names in (
        ("a link twice as fast (the next PCIe generation)", _LINK),
        ("twice the host's cores and memory channels", _HOST),
        ("a device with twice the memory bandwidth", _DEVICE_MEMORY),
        ("a device with twice the arithmetic", _ARITHMETIC),
    ):
        yield what, replace(decider, profile=scaled(profile, names, 2.0))
    budget = decider.gpu_budget_bytes
    yield (
        "twice the GPU memory",
        replace(
            decider,
            profile=replace(profile, device_memory_bytes=2 * profile.device_memory_bytes),
            options=replace(options, gpu_memory_bytes=2 * budget),
        ),
    )
    workload = decider.workload
    if workload.rows > 1:
        rows = workload.rows // 2
        fewer = replace(workload, rows=rows, batches=min(rows, workload.batches))
        yield f"half the rows ({rows})", replace(decider, workload=fewer)


def scaled(profile: HardwareProfile, names: tuple[str, ...], factor: float) -> HardwareProfile:
    """Return a profile with some of its rates multiplied.

    What short pages take the host's cores goes with their rate, and the rate of queries and
    results with the link's.
    """
    changes: dict[str, object] = {}
    for name in names:
        value = getattr(profile, name)
        if isinstance(value, (int, float)):
            changes[name] = value * factor
        elif isinstance(value, tuple):
            changes[name] = tuple((size, rate * factor) for size, rate in value)
        elif value is not None:
            changes[name] = {key: rate * factor for key, rate in value.items()}
    if "host_attend_bytes_per_s" in names and profile.host_page_s is not None:
        changes["host_page_s"] = profile.host_page_s / factor
    if "h2d_bytes_per_s" in names and profile.mail_bytes_per_s is not None:
        changes["mail_bytes_per_s"] = profile.mail_bytes_per_s * factor
    return replace(profile, **changes)  # type: ignore[arg-type]
