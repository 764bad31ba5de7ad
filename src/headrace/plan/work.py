"""What a program's operations take, and the least that a step of them can."""

from __future__ import annotations

from headrace.hardware.profile import HardwareProfile
from headrace.plan.operations import Kind, Operation, Program
from headrace.plan.resources import Resource
from headrace.plan.sharing import Sharing
from headrace.timeline import D2H_LANES, H2D_LANES, Lane

_LOADS = (Kind.LOAD_WEIGHTS, Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV)
_STORES = (Kind.STORE_KV, Kind.STORE_ACTIVATIONS)

OF_LANE = (
    dict.fromkeys(H2D_LANES, Resource.LINK)
    | dict.fromkeys(D2H_LANES, Resource.STORE)
    | {Lane.COMPUTE: Resource.GPU, Lane.HOST_ATTEND: Resource.HOST}
)


def operation_work_s(op: Operation, profile: HardwareProfile, dtype: str) -> float:
    """Return the seconds that an operation keeps its resource busy, latency left out.

    Transfers take bytes / rate. Compute takes max(FLOPs / GEMM rate, bytes / memory rate), where
    the memory rate is that of attention, of dense decode work, or of the device's memory. The GEMM
    rate of a rebuild is the measured one of rebuilding, where there is one. The host's attention
    takes bytes / its rate, what short pages take, and the transfers of queries and results. These
    are part of the merge where the device's own kernels write and read them, as was measured.
    """
    if op.kind in _LOADS:
        return op.link_bytes / profile.h2d_bytes_per_s
    if op.kind in _STORES:
        return op.link_bytes / profile.d2h_bytes_per_s
    if op.kind is Kind.HOST_ATTEND:
        return _reading_s(op, profile) + _mail_s(op.link_bytes, profile, by_device=False)
    memory_bytes_per_s = profile.device_bytes_per_s
    if op.kind in (Kind.ATTEND, Kind.ATTEND_NEW):
        memory_bytes_per_s = profile.resident_attend_rate if op.is_short else profile.attend_rate
    elif op.kind is Kind.DENSE:
        memory_bytes_per_s = profile.dense_rate(op.tokens, resident=op.is_short)
    is_rebuild = op.kind is Kind.REBUILD
    flops_per_s = profile.rebuild_rate(dtype) if is_rebuild else profile.gemm_rate(dtype)
    kernel_s = max(op.flops / flops_per_s, op.memory_bytes / memory_bytes_per_s)
    return kernel_s + op.fixed_s + _mail_s(op.mail_bytes, profile, by_device=True)


def _mail_s(size_bytes: int, profile: HardwareProfile, *, by_device: bool) -> float:
    """Return the seconds of queries and results, if they are the device's work, or if not."""
    measured = profile.mail_bytes_per_s is not None
    return size_bytes / profile.mail_rate if measured is by_device else 0.0


def _reading_s(op: Operation, profile: HardwareProfile) -> float:
    """Return the seconds for which the host's attention reads keys and values."""
    pages_s = op.short_pages * (profile.host_page_s or 0.0)
    return op.memory_bytes / profile.host_attend_rate + pages_s


def operation_s(op: Operation, profile: HardwareProfile, dtype: str) -> float:
    """Return how long an operation takes at full speed, what each copy or call takes included.

    The host's attention has the latency of queries that go down and of results that come up.
    """
    seconds = operation_work_s(op, profile, dtype)
    if op.lane is Lane.COMPUTE:
        return profile.duration_s(seconds, _call_s(op, profile))
    is_host = op.lane is Lane.HOST_ATTEND
    return seconds + (profile.mail_latency_s if is_host else profile.copy_latency_s)


def _call_s(op: Operation, profile: HardwareProfile) -> float | None:
    """Return what a compute operation's call takes at least, with the load that it makes room for.

    What a layer takes anyway is in the measured rate of its dense work.
    """
    if profile.attend_call_s is None:
        return None
    loads_s = (profile.load_call_s or 0.0) if op.load_number >= 0 else 0.0
    if op.kind is Kind.ATTEND:
        return profile.attend_call_s + loads_s
    if op.kind is Kind.REBUILD:
        return (profile.rebuild_call_s or 0.0) + loads_s
    return 0.0


def work_s(program: Program, profile: HardwareProfile, dtype: str) -> dict[str, float]:
    """Return the seconds for which one step needs each resource, as ``demands`` counts them.

    ``link``, ``store`` and ``gpu`` always; where the host attends, ``host``, with the device's work
    that it cannot overlap with; and ``dram`` where link and cores slow each other down.
    """
    found, cores_s, idle_s = _totals(program, profile, dtype)
    if cores_s:
        found[Resource.HOST.value] = idle_s + cores_s
        sharing = Sharing(profile)
        if sharing.slows:
            link_s = found[Resource.LINK.value]
            found[Resource.DRAM.value] = sharing.least_s(link_s, cores_s, idle_s)
    return found


def shared_speeds(program: Program, profile: HardwareProfile, dtype: str) -> tuple[float, float]:
    """Return the shares of their rates at which link and cores go on while both are at work."""
    found, cores_s, idle_s = _totals(program, profile, dtype)
    return Sharing(profile).shares(found[Resource.LINK.value], cores_s, idle_s)


def _totals(
    program: Program, profile: HardwareProfile, dtype: str
) -> tuple[dict[str, float], float, float]:
    """Return the seconds of link, store and device; of the cores; and when these must be idle.

    They read nothing while queries and results travel, and while the device does what they cannot
    overlap with.
    """
    totals = dict.fromkeys((Resource.LINK, Resource.STORE, Resource.GPU, Resource.HOST), 0.0)
    cores_s = idle_s = 0.0
    hidden = _beside_the_host(program)
    for op in program.operations:
        seconds = operation_work_s(op, profile, dtype)
        totals[OF_LANE[op.lane]] += seconds
        if op.lane is Lane.COMPUTE and op.index not in hidden:
            idle_s += seconds
        elif op.lane is Lane.HOST_ATTEND:
            read_s = _reading_s(op, profile)
            cores_s, idle_s = cores_s + read_s, idle_s + seconds - read_s
    del totals[Resource.HOST]
    return {resource.value: seconds for resource, seconds in totals.items()}, cores_s, idle_s


def _beside_the_host(program: Program) -> set[int]:
    """Return the compute operations that the host's attention can overlap with.

    It follows a dense operation, and a merge waits for it: it can overlap with what is between.
    """
    first: dict[int, int] = {}
    inside: set[int] = set()
    for op in program.operations:
        if op.lane is Lane.HOST_ATTEND:
            first[op.index] = max(op.waits_for, default=-1) + 1
        elif op.lane is Lane.COMPUTE:
            for waited in first.keys() & set(op.waits_for):
                inside.update(range(first[waited], op.index))
    return inside


def bound_s(program: Program, profile: HardwareProfile, dtype: str) -> float:
    """Return the least time of a step in steady state, latencies left out.

    That of the resource with most work, for everything is taken to overlap that can. Without
    look-ahead (``kvpr``) steps do not overlap: then it is also the longest chain of operations that
    wait for each other.
    """
    most_s = max(work_s(program, profile, dtype).values())
    return most_s if program.lookahead else max(most_s, _chain_s(program, profile, dtype))


def _chain_s(program: Program, profile: HardwareProfile, dtype: str) -> float:
    """Return when the device ends a step that nothing but its own waits delays."""
    free_s = dict.fromkeys(Resource, 0.0)
    finish_s: list[float] = []
    for op in program.operations:
        resource = OF_LANE[op.lane]
        ready_s = max((finish_s[index] for index in op.waits_for), default=0.0)
        finish_s.append(max(free_s[resource], ready_s) + operation_work_s(op, profile, dtype))
        free_s[resource] = finish_s[-1]
    return free_s[Resource.GPU]
