"""What a decode step asks of each resource, as linear expressions of the split.

Every line of the linear program of ``program.py`` that bounds the step's time is made here. Times
are seconds of one decode step, which gives every row one token; latencies are left out, so that a
step can take no less. Symbols are those of ``docs/planner.md``: κ, χ, ρ per layer and token, n
cached tokens of a layer in pages over all rows, L layers of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    all_layers_weight_bytes,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_weight_bytes,
    rebuild_flops_per_token,
)
from headrace.model.shape import LayerGroup, ModelShape

PATHS = ("resident", "stream", "recompute", "host")
"""The ways of bringing a cached token to bear."""

WEIGHTS = "weights"
"""The column that says which share of the layers' weights is streamed."""

PARTIAL_BYTES = 4
"""Partial results are float32."""


class Schedule(StrEnum):
    """The order of a step's operations where the rows are worked on in several batches."""

    ROW = "row"
    """A batch goes through all layers before the next one."""
    COLUMN = "column"
    """All batches go through a layer before the next one: its weights serve them all."""


class Resource(StrEnum):
    """What a step needs, and can need only for one thing at a time."""

    LINK = "link"
    """The link to the device."""
    STORE = "store"
    """The link to the host."""
    GPU = "gpu"
    """The device: its kernels run one after the other."""
    HOST = "host"
    """The host's cores: they attend while the device does no dense work."""
    DRAM = "dram"
    """Host memory, which the link and the cores read."""
    SERIAL = "serial"
    """The paper's schedule: the device waits for a layer's last X before it rebuilds."""


class Rate(StrEnum):
    """The figure of the profile that a time is divided by."""

    LINK = "link"
    STORE = "store"
    ARITHMETIC = "arithmetic"
    DEVICE_MEMORY = "device memory"
    HOST = "host cores"
    DRAM = "host memory"


@dataclass(frozen=True)
class Term:
    """Seconds that a column adds to a demand.

    Attributes:
        column: a path of a group of layers, ``weights``, or ``""`` for what no column changes.
        rate: what the seconds would be fewer with more of.
        seconds: at 1 of the column.
    """

    column: str
    rate: Rate
    seconds: float


@dataclass(frozen=True)
class Demand:
    """Seconds for which a step needs a resource: linear in the columns."""

    resource: Resource
    terms: tuple[Term, ...]

    def seconds(self, values: Mapping[str, float]) -> float:
        """Return the seconds at given columns."""
        return sum(_part_s(term, values) for term in self.terms)

    def seconds_by_rate(self, values: Mapping[str, float]) -> dict[Rate, float]:
        """Return the same, divided by what the seconds would be fewer with more of."""
        parts: dict[Rate, float] = {}
        for term in self.terms:
            parts[term.rate] = parts.get(term.rate, 0.0) + _part_s(term, values)
        return parts

    def coefficients(self) -> tuple[dict[str, float], float]:
        """Return the seconds by column, and those that no column changes."""
        by_column: dict[str, float] = {}
        for term in self.terms:
            by_column[term.column] = by_column.get(term.column, 0.0) + term.seconds
        constant = by_column.pop("", 0.0)
        return by_column, constant


def _part_s(term: Term, values: Mapping[str, float]) -> float:
    return term.seconds * values.get(term.column, 0.0) if term.column else term.seconds


def column(path: str, group: LayerGroup, groups: int) -> str:
    """Return the name of a path's column: ``stream``, or ``stream 8x128`` where layers differ."""
    return path if groups == 1 else f"{path} {group.name}"


@dataclass(frozen=True)
class StepWork:
    """A decode step of equal rows, as planning sees it.

    Attributes:
        shape: the model.
        rows: sequences.
        context: cached tokens of a row.
        paged: how many of them are in pages; the others are on the device anyway.
        batches: groups in which the rows are worked on.
        schedule: the order, where there are several.
        serial: whether it is the paper's schedule, without look-ahead.
        communication_s: seconds that the device spends on exchanging results with others.
    """

    shape: ModelShape
    rows: int
    context: int
    paged: int
    batches: int = 1
    schedule: Schedule = Schedule.ROW
    serial: bool = False
    communication_s: float = 0.0

    @property
    def passes(self) -> int:
        """How often a step uses each layer's weights."""
        return self.batches if self.schedule is Schedule.ROW else 1

    @property
    def paged_tokens(self) -> int:
        """Cached tokens of a layer in pages, over all rows: n."""
        return self.rows * self.paged


def kernel_s(flops: float, size_bytes: float, flops_per_s: float, bytes_per_s: float) -> float:
    """Return the seconds of a kernel, which arithmetic or memory bounds, whichever is slower."""
    return max(flops / flops_per_s, size_bytes / bytes_per_s)


def demands(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> list[Demand]:
    """Return what a step asks of each resource.

    Args:
        work: the step.
        profile: the machine.
        paths: the paths that may be taken.

    Raises:
        ProfileError: the machine has no rate for the model's element type.
    """
    device = _Device(work, profile)
    found = [
        Demand(Resource.LINK, tuple(_link(work, profile, paths))),
        Demand(Resource.STORE, tuple(_store(work, profile, paths))),
        Demand(Resource.GPU, tuple(device.terms(paths))),
    ]
    if "host" in paths:
        found.append(Demand(Resource.HOST, tuple(_host(work, profile, device))))
        found.append(Demand(Resource.DRAM, tuple(_dram(work, profile, paths, device))))
    if work.serial:
        found.append(Demand(Resource.SERIAL, tuple(_serial(work, profile, device))))
    return found


def _columns(work: StepWork, path: str) -> Iterator[tuple[str, LayerGroup, float]]:
    """Yield the column of each group of layers, the group, and its n·L."""
    groups = work.shape.groups
    for group in groups:
        yield column(path, group, len(groups)), group, float(work.paged_tokens * group.layers)


def _link_bytes(work: StepWork, paths: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield by column the bytes that are loaded to the device: κ, χ, weights."""
    if "stream" in paths:
        for name, group, tokens in _columns(work, "stream"):
            yield name, tokens * kv_bytes_per_token(group.shape)
    if "recompute" in paths:
        for name, group, tokens in _columns(work, "recompute"):
            yield name, tokens * activation_bytes_per_token(group.shape)
    yield WEIGHTS, float(all_layers_weight_bytes(work.shape) * work.passes)


def partial_bytes(shape: ModelShape) -> int:
    """Return the bytes of a row's partial result in one layer: output, maximum and sum."""
    return PARTIAL_BYTES * shape.num_heads * (shape.head_dim + 2)


def query_bytes(shape: ModelShape) -> int:
    """Return the bytes of a row's queries in one layer."""
    return shape.dtype_bytes * shape.num_heads * shape.head_dim


def _link(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> Iterator[Term]:
    for name, size_bytes in _link_bytes(work, paths):
        yield Term(name, Rate.LINK, size_bytes / profile.h2d_bytes_per_s)


def _store(work: StepWork, profile: HardwareProfile, paths: tuple[str, ...]) -> Iterator[Term]:
    """Yield the new tokens' K/V, in as far as cached ones are on the host."""
    for path in ("stream", "recompute", "host"):
        if path not in paths:
            continue
        for name, group, _ in _columns(work, path):
            size_bytes = group.layers * work.rows * kv_bytes_per_token(group.shape)
            yield Term(name, Rate.STORE, size_bytes / profile.d2h_bytes_per_s)


def _host(work: StepWork, profile: HardwareProfile, device: _Device) -> Iterator[Term]:
    """Yield κc/B_host, after the layer's dense work, which makes its queries.

    The queries go down before, and the partial results come up after.
    """
    yield from device.dense_terms()
    slower = min(profile.h2d_bytes_per_s, profile.d2h_bytes_per_s)
    for name, group, tokens in _columns(work, "host"):
        size_bytes = tokens * kv_bytes_per_token(group.shape)
        yield Term(name, Rate.HOST, size_bytes / profile.host_attend_rate)
        results = query_bytes(group.shape) + partial_bytes(group.shape)
        if tokens:
            yield Term(name, Rate.LINK, group.layers * work.rows * results / slower)


def _dram(
    work: StepWork, profile: HardwareProfile, paths: tuple[str, ...], device: _Device
) -> Iterator[Term]:
    """Yield (link bytes + κc)/B_dram + D·(1 − B/B_dram).

    While the device does its dense work (D seconds) the cores have nothing to attend to: what
    host memory gives in that time is at most what the link takes.
    """
    dram_bytes_per_s = profile.dram_rate
    if math.isinf(dram_bytes_per_s):
        return
    for name, size_bytes in _link_bytes(work, paths):
        yield Term(name, Rate.DRAM, size_bytes / dram_bytes_per_s)
    for name, group, tokens in _columns(work, "host"):
        size_bytes = tokens * kv_bytes_per_token(group.shape)
        yield Term(name, Rate.DRAM, size_bytes / dram_bytes_per_s)
    unused = 1 - profile.h2d_bytes_per_s / dram_bytes_per_s
    for term in device.dense_terms():
        yield Term(term.column, term.rate, term.seconds * unused)


def _serial(work: StepWork, profile: HardwareProfile, device: _Device) -> Iterator[Term]:
    """Yield Xx + A + Rx: in the paper's schedule the device waits for a layer's last X."""
    for term in device.terms(("stream", "recompute")):
        if term.column:
            yield term
    for name, group, tokens in _columns(work, "recompute"):
        size_bytes = tokens * activation_bytes_per_token(group.shape)
        yield Term(name, Rate.LINK, size_bytes / profile.h2d_bytes_per_s)


class _Device:
    """What the device's kernels take."""

    def __init__(self, work: StepWork, profile: HardwareProfile) -> None:
        self._work = work
        self._profile = profile
        self._gemm_flops_per_s = profile.gemm_rate(work.shape.dtype)

    def terms(self, paths: tuple[str, ...]) -> Iterator[Term]:
        """Yield all of the device's work."""
        yield from self.dense_terms()
        yield from self._fixed_terms()
        for path in ("resident", "stream", "recompute"):
            if path not in paths:
                continue
            for name, group, tokens in _columns(self._work, path):
                yield self._kernel(name, tokens, *self._attend(group.shape))
                if path == "recompute":
                    yield self._kernel(name, tokens, *self._rebuild(group.shape))

    def dense_terms(self) -> Iterator[Term]:
        """Yield the dense work of all layers and of the head, D."""
        work, profile = self._work, self._profile
        rows = work.rows / work.passes
        for group in work.shape.all_groups:
            yield self._kernel(
                "",
                group.layers * work.passes,
                layer_dense_flops(group.shape, 1) * rows,
                layer_weight_bytes(group.shape),
                self._gemm_flops_per_s,
                profile.dense_rate,
            )
        yield self._kernel(
            "",
            work.passes,
            head_dense_flops(work.shape, 1) * rows,
            head_weight_bytes(work.shape),
            self._gemm_flops_per_s,
            profile.dense_rate,
        )
        if work.communication_s:
            yield Term("", Rate.DEVICE_MEMORY, work.communication_s)

    def _fixed_terms(self) -> Iterator[Term]:
        """Yield attention to what is on the device anyway, and the merges."""
        work = self._work
        window = min(work.shape.sliding_window or work.context, work.context)
        for group in work.shape.all_groups:
            on_device = window if group.windowed else work.context - work.paged
            tokens = group.layers * work.rows * (1 + on_device)
            yield self._kernel("", tokens, *self._attend(group.shape))
            width = group.shape.num_heads * group.shape.head_dim
            merge_bytes = group.layers * 2 * PARTIAL_BYTES * work.rows * width
            yield Term("", Rate.DEVICE_MEMORY, merge_bytes / self._profile.device_bytes_per_s)

    def _attend(self, shape: ModelShape) -> tuple[float, float, float, float]:
        return (
            attention_flops(shape, 1, 1),
            kv_bytes_per_token(shape),
            self._gemm_flops_per_s,
            self._profile.attend_rate,
        )

    def _rebuild(self, shape: ModelShape) -> tuple[float, float, float, float]:
        return (
            rebuild_flops_per_token(shape),
            kv_bytes_per_token(shape) + activation_bytes_per_token(shape),
            self._profile.rebuild_rate(shape.dtype),
            self._profile.device_bytes_per_s,
        )

    @staticmethod
    def _kernel(
        name: str,
        times: float,
        flops: float,
        size_bytes: float,
        flops_per_s: float,
        bytes_per_s: float,
    ) -> Term:
        """Return the seconds of so many kernels, and which rate they are bounded by."""
        bound = flops / flops_per_s > size_bytes / bytes_per_s
        seconds = times * kernel_s(flops, size_bytes, flops_per_s, bytes_per_s)
        return Term(name, Rate.ARITHMETIC if bound else Rate.DEVICE_MEMORY, seconds)
