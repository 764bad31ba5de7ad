"""The single probes: what is run, and what is counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.hardware.emulation import Pace
from headrace.hardware.probe_bench import Bench, uncached_bytes
from headrace.hardware.probe_device import ProbeDevice, Work, busy
from headrace.hardware.profile import GemmPoint, RatePoint
from headrace.units import format_flops, format_seconds

_KIB, _MIB = 2**10, 2**20

_COLUMNS = 4096
"""Of the matrix that is read from host memory."""

_MOST_PARTS = 1024
"""A buffer is divided into so many parts at most, which copies visit in turn."""


class KVProjection(Protocol):
    """What the probes need of a model's shape: the widths of its K/V projections."""

    @property
    def d_model(self) -> int:
        """Width of X."""

    @property
    def d_kv(self) -> int:
        """Width of K, and of V."""

    @property
    def dtype(self) -> str:
        """Element type, such as ``bfloat16``."""


class Link:
    """Buffers on both sides of the link, and copies between them."""

    def __init__(self, bench: Bench) -> None:
        self._transfer = bench.device.transfer
        sizes = bench.effort.transfer_bytes
        self.sizes = tuple(size for size in sizes if size <= bench.fitting(size)) or sizes[:1]
        self.largest = self.sizes[-1]
        self._host_source = bench.device.host_buffer(self.largest)
        self._host_target = bench.device.host_buffer(self.largest)
        self._device_source = bench.device.device_buffer(self.largest)
        self._device_target = bench.device.device_buffer(self.largest)

    def h2d(self, size: int) -> Work:
        """Return work that copies ``size`` bytes to the device."""
        return _rotating_copy(self._transfer, self._device_target, self._host_source, size)

    def d2h(self, size: int) -> Work:
        """Return work that copies ``size`` bytes to the host."""
        return _rotating_copy(self._transfer, self._host_target, self._device_source, size)


def _rotating_copy(
    start: Callable[[Tensor, Tensor], object], target: Tensor, source: Tensor, size: int
) -> Work:
    """Return work that copies ``size`` bytes between two buffers, each time between other parts."""
    parts = min(_MOST_PARTS, target.numel() // size)
    targets, sources = target[: parts * size].split(size), source[: parts * size].split(size)
    pairs = itertools.cycle(list(zip(targets, sources, strict=True)))

    def copy() -> None:
        start(*next(pairs))

    return copy


def _gemm_work(device: ProbeDevice, widths: KVProjection, dtype: str, tokens: int) -> Work:
    """Return ``X @ W^T`` as rebuilding does it: K and V in one product, over rotating X."""
    element = getattr(torch, dtype)
    weight = device.matrix(2 * widths.d_kv, widths.d_model, element).T
    inputs = [device.matrix(tokens, widths.d_model, element) for _ in range(3)]
    pairs = itertools.cycle([(x, device.matrix(tokens, 2 * widths.d_kv, element)) for x in inputs])

    def multiply() -> None:
        x, out = next(pairs)
        torch.mm(x, weight, out=out)

    return multiply


def _gemm_flops(widths: KVProjection, tokens: int) -> float:
    return 2.0 * tokens * widths.d_model * 2 * widths.d_kv


def probe_gemm(
    bench: Bench, widths: KVProjection, dtypes: tuple[str, ...]
) -> tuple[GemmPoint, ...]:
    """Measure the K/V projections by number of tokens, in each of ``dtypes``."""
    points: list[GemmPoint] = []
    effort = bench.effort
    all_tokens = effort.cpu_tokens if bench.device.name == "cpu" else effort.cuda_tokens
    for dtype in dtypes:
        rate = math.inf
        for tokens in all_tokens:
            flops = _gemm_flops(widths, tokens)
            if flops / rate > effort.longest_s:
                break
            work = _gemm_work(bench.device, widths, dtype, tokens)
            name = f"gemm_flops_per_s[{dtype},{tokens}]"
            rate = bench.rate(name, work, flops, show=format_flops)
            points.append(GemmPoint(tokens, widths.d_model, 2 * widths.d_kv, dtype, rate))
    return tuple(points)


def probe_link(bench: Bench, link: Link) -> tuple[tuple[RatePoint, ...], tuple[RatePoint, ...]]:
    """Measure both directions of the link, each alone, by transfer size."""

    def curve(direction: str, copier: Callable[[int], Work]) -> tuple[RatePoint, ...]:
        name = f"{bench.paced_prefix}{direction}_bytes_per_s"
        return tuple(
            (size, bench.rate(f"{name}[{size}]", copier(size), size)) for size in link.sizes
        )

    return curve("h2d", link.h2d), curve("d2h", link.d2h)


def probe_together(
    bench: Bench, link: Link, widths: KVProjection, point: GemmPoint, pace: Pace
) -> dict[str, Any]:
    """Measure what runs at the same time as something else; copies of 16 MiB where they exist."""
    device, prefix = bench.device, bench.paced_prefix
    size = min(16 * _MIB, link.largest)
    gemm = _gemm_work(device, widths, point.dtype, point.tokens)
    read, read_bytes = _host_read(bench)
    h2d, d2h = link.h2d(size), link.d2h(size)
    found: dict[str, Any] = {}

    def copies(name: str, work: Work, background: Work, on: ProbeDevice, limit: float) -> None:
        with busy(on, background):
            found[name] = min(limit, bench.rate(prefix + name, work, size))

    copies("h2d_while_d2h_bytes_per_s", h2d, link.d2h(size), device, pace.h2d)
    copies("d2h_while_h2d_bytes_per_s", d2h, link.h2d(size), device, pace.d2h)
    copies("h2d_while_compute_bytes_per_s", h2d, gemm, device, pace.h2d)
    copies("h2d_while_host_bytes_per_s", h2d, read, bench.host, pace.h2d)
    # An emulated link is slow: copies of some 10 ms let it stop soon.
    chunk = max(_KIB, int(min(size, 0.01 * pace.h2d)) // _KIB * _KIB)
    with busy(device, pace.held(link.h2d(chunk), chunk)):
        name = "gemm_while_h2d_flops_per_s"
        flops = _gemm_flops(widths, point.tokens)
        found[name] = bench.rate(name, gemm, flops, show=format_flops)
        name = "host_while_h2d_bytes_per_s"
        read_rate = bench.rate(prefix + name, read, read_bytes, clock=bench.host)
        found[name] = min(pace.cores, read_rate)
    return found


def probe_memory(bench: Bench, pace: Pace) -> dict[str, Any]:
    """Measure a copy in device memory (read and write counted) and reading host memory."""
    size = bench.fitting(bench.effort.memory_bytes)
    target, source = bench.device.device_buffer(size), bench.device.device_buffer(size)
    read, read_bytes = _host_read(bench)
    name = f"{bench.paced_prefix}host_bytes_per_s"
    return {
        "device_bytes_per_s": bench.rate(
            "device_bytes_per_s", lambda: target.copy_(source), 2 * size
        ),
        "host_bytes_per_s": min(pace.memory, bench.rate(name, read, read_bytes, clock=bench.host)),
    }


def _host_read(bench: Bench) -> tuple[Work, int]:
    """Return work in which all of torch's threads read a float32 matrix once, times a vector.

    That is what the host's attention does with K, and the fastest way that torch has of reading:
    its reductions to one number are slower, and some of them use one thread only.
    """
    size = uncached_bytes(bench.effort.memory_bytes)
    matrix = torch.empty(size // (4 * _COLUMNS), _COLUMNS).copy_(torch.rand(_COLUMNS))
    vector, out = torch.rand(_COLUMNS), torch.empty(len(matrix))
    return (lambda: torch.mv(matrix, vector, out=out)), matrix.nbytes


def probe_latency(bench: Bench, link: Link) -> dict[str, Any]:
    """Measure what a small copy and a small kernel take in a row of their like."""
    name, number = "copy_latency_s", bench.device.matrix(1, 1, torch.float32)
    copy_s = bench.keep(name, bench.seconds(link.h2d(_KIB)), format_seconds)
    name = "launch_latency_s"
    launch_s = bench.keep(name, bench.seconds(lambda: number.add_(1)), format_seconds)
    return {"copy_latency_s": copy_s, "launch_latency_s": launch_s}
