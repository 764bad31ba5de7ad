"""What a decode step asks of each resource, as linear expressions of the split.

Every line of the linear program of ``program.py`` that bounds the step's time is made here. Times
are seconds of one decode step, which gives every row one token; latencies are left out, so that a
step can take no less. Symbols are those of ``docs/planner.md``: κ, χ, ρ per layer and token, n
cached tokens of a layer in pages over all rows, L layers of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from headrace.hardware.profile import MEASURED_PAGE_TOKENS, HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    kv_bytes_per_token,
)
from headrace.plan.device_time import PARTIAL_BYTES, DeviceTime, mail_bytes
from headrace.plan.resources import Demand, Rate, Resource, Term
from headrace.plan.sharing import Sharing
from headrace.plan.step_work import PATHS, WEIGHTS, Schedule, StepWork, column

__all__ = [
    "AttainedRates",
    "PARTIAL_BYTES",
    "PATHS",
    "WEIGHTS",
    "Demand",
    "Rate",
    "Resource",
    "Schedule",
    "StepWork",
    "Term",
    "attained_rates",
    "cache_loads",
    "column",
    "demands",
    "host_attention",
]


def demands(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> list[Demand]:
    """Return what a step asks of each resource.

    Args:
        work: the step.
        profile: the machine.
        paths: the paths that are taken: what some cost however few tokens take them is counted.

    Raises:
        ProfileError: the machine has no rate for the model's element type.
    """
    device = DeviceTime(work, profile, resident=paths == ("resident",))
    link = [*cache_loads(work, profile, paths), _weight_loads(work, profile)]
    found = [
        Demand.of(Resource.LINK, *link),
        Demand.of(Resource.STORE, *_stores(work, profile, paths)),
        Demand.of(Resource.GPU, *device.everything(paths)),
    ]
    if "host" in paths:
        found += _host(work, profile, link, list(device.alone()))
    if work.serial:
        found += _serial(work, profile, paths, device)
    return found


def cache_loads(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> Iterator[Term]:
    """Yield κt/B and χx/B."""
    if "stream" in paths:
        for name, group, tokens in work.columns("stream"):
            size_bytes = tokens * kv_bytes_per_token(group.shape)
            yield Term(name, Rate.LINK, size_bytes / profile.h2d_bytes_per_s)
    if "recompute" in paths:
        yield from _activation_loads(work, profile)


def _activation_loads(work: StepWork, profile: HardwareProfile) -> Iterator[Term]:
    for name, group, tokens in work.columns("recompute"):
        size_bytes = tokens * activation_bytes_per_token(group.shape)
        yield Term(name, Rate.LINK, size_bytes / profile.h2d_bytes_per_s)


def _weight_loads(work: StepWork, profile: HardwareProfile) -> Term:
    size_bytes = all_layers_weight_bytes(work.shape) * work.passes
    return Term(WEIGHTS, Rate.LINK, size_bytes / profile.h2d_bytes_per_s)


def _stores(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> Iterator[Term]:
    """Yield the new tokens' K/V, where any path but the device's is taken.

    Pages on the device are filled first: new tokens come to be on the host.
    """
    if paths == ("resident",):
        return
    for group in work.shape.groups:
        size_bytes = group.layers * work.rows * kv_bytes_per_token(group.shape)
        yield Term("", Rate.STORE, size_bytes / profile.d2h_bytes_per_s)


def _host(
    work: StepWork, profile: HardwareProfile, link: list[Term], alone: list[Term]
) -> Iterator[Demand]:
    """Yield Q + H, and what host memory makes of it where link and cores share it.

    While queries go down and results come up the cores read nothing.
    """
    cores = list(host_attention(work, profile))
    idle = [*alone, *_host_results(work, profile)]
    yield Demand.of(Resource.HOST, *idle, *cores)
    for row, terms in Sharing(profile).rows(link, cores, idle):
        yield Demand.of(Resource.DRAM, *terms, row=row)


def host_attention(work: StepWork, profile: HardwareProfile) -> Iterator[Term]:
    """Yield κc/B_host, and what short pages take."""
    for name, group, tokens in work.columns("host"):
        read_s = tokens * kv_bytes_per_token(group.shape) / profile.host_attend_rate
        pages = short_pages(tokens * group.shape.num_kv_heads, work.page_tokens)
        yield Term(name, Rate.HOST, read_s + pages * (profile.host_page_s or 0.0))


def short_pages(head_tokens: float, page_tokens: int) -> float:
    """Return how many more pages the host's attention has to open than such as it is measured with.

    Args:
        head_tokens: tokens that it attends to, times key/value heads.
        page_tokens: tokens of a page.
    """
    return max(0.0, head_tokens * (1 / page_tokens - 1 / MEASURED_PAGE_TOKENS))


class AttainedRates(NamedTuple):
    """Bytes a second that link and cores get in a step: host memory may not suffice for both.

    Attributes:
        link: at which the cache is loaded.
        cores: at which the host's cores read what they attend to.
    """

    link: float
    cores: float


def attained_rates(
    work: StepWork, profile: HardwareProfile, paths: tuple[str, ...], values: Mapping[str, float]
) -> AttainedRates:
    """Return the bytes a second at which the link loads, and the host's cores attend, in a step.

    It is less than their own rates as far as either takes host memory from the other meanwhile.

    Args:
        work: the step.
        profile: the machine.
        paths: the paths that are taken.
        values: the columns.
    """
    device = DeviceTime(work, profile)
    link = [*cache_loads(work, profile, paths), _weight_loads(work, profile)]
    idle = [*device.alone(), *_host_results(work, profile)]
    link_s, cores_s, alone_s = (
        Demand.of(Resource.HOST, *terms).seconds(values)
        for terms in (link, host_attention(work, profile), idle)
    )
    if not cores_s:
        return AttainedRates(profile.h2d_bytes_per_s, profile.host_attend_rate)
    size_bytes = sum(
        tokens * kv_bytes_per_token(group.shape) * values.get(name, 0.0)
        for name, group, tokens in work.columns("host")
    )
    sharing = Sharing(profile)
    busy_s = sharing.cores_s(link_s, cores_s, alone_s)
    slowed = sharing.link_s(link_s, cores_s, alone_s) / link_s if link_s else 1.0
    return AttainedRates(profile.h2d_bytes_per_s / slowed, size_bytes / busy_s)


def _host_results(work: StepWork, profile: HardwareProfile) -> Iterator[Term]:
    """Yield the queries that go down before the host's attention, and the results that come up.

    They are as many however few tokens the host attends to. Where the device's own kernels write
    and read them it is their work (``DeviceTime.mails``).
    """
    if profile.mail_bytes_per_s is not None:
        return
    rate = Rate.LINK if profile.mail_rate == profile.h2d_bytes_per_s else Rate.STORE
    for _, group, tokens in work.columns("host"):
        if tokens:
            size_bytes = group.layers * work.rows * mail_bytes(group.shape)
            yield Term("", rate, size_bytes / profile.mail_rate)


def _serial(
    work: StepWork, profile: HardwareProfile, paths: tuple[str, ...], device: DeviceTime
) -> Iterator[Demand]:
    """Yield Xx + A + Rx + U and Xx + St + U: in the paper's schedule nothing runs ahead.

    The device waits for a layer's last X before it rebuilds and attends, and while it finishes the
    layer (U seconds) the link waits for it.
    """
    unhidden = list(device.unhidden())
    activations = _activation_loads(work, profile) if "recompute" in paths else ()
    cached = device.cached(tuple(path for path in paths if path != "resident"))
    yield Demand.of(Resource.SERIAL, *activations, *cached, *unhidden)
    loads = cache_loads(work, profile, paths)
    yield Demand.of(Resource.SERIAL, *loads, *unhidden, row="serial, link waiting")
