"""How one figure is measured: warm-up, repeats, spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.hardware.identity import available_host_memory_bytes, last_level_cache_bytes
from headrace.hardware.probe_device import CpuProbeDevice, ProbeDevice, Work
from headrace.hardware.profile import UNPACED, Measurement
from headrace.units import format_rate

_KIB, _MIB = 2**10, 2**20

_TIMES_THE_CACHES = 8
"""Of memory that is so many times what the caches hold, and is read in turn, they serve little."""

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        repeats: samples of each figure.
        sample_s: work is repeated within a sample until it takes about so long.
        warm_up_s: work runs so long before the first sample.
        longest_s: matrix products that take longer than this are left out.
        transfer_bytes: transfer sizes, ascending.
        cpu_tokens: token counts of the matrix products on a CPU, ascending.
        cuda_tokens: token counts on a GPU, ascending.
        memory_bytes: size of the buffers that memory rates are measured with, the host's at least.
    """

    repeats: int
    sample_s: float
    warm_up_s: float
    longest_s: float
    transfer_bytes: tuple[int, ...]
    cpu_tokens: tuple[int, ...]
    cuda_tokens: tuple[int, ...]
    memory_bytes: int


QUICK = Effort(
    repeats=3,
    sample_s=0.02,
    warm_up_s=0.02,
    longest_s=0.2,
    transfer_bytes=(64 * _KIB, _MIB, 16 * _MIB, 64 * _MIB),
    cpu_tokens=(64, 256),
    cuda_tokens=(1024, 8192),
    memory_bytes=256 * _MIB,
)

FULL = Effort(
    repeats=7,
    sample_s=0.06,
    warm_up_s=0.1,
    longest_s=0.5,
    transfer_bytes=tuple(64 * _KIB * 4**power for power in range(7)),
    cpu_tokens=(64, 256, 1024),
    cuda_tokens=(256, 1024, 4096, 16384),
    memory_bytes=512 * _MIB,
)


def uncached_bytes(least: int) -> int:
    """Return the size of memory of which the processor's caches serve next to nothing.

    The caches of a large server hold hundreds of MiB: a buffer of that size would be read much
    faster than a KV cache of many GiB ever is.

    Args:
        least: bytes that it has at least, unless an eighth of the free host memory is less.
    """
    return _fitting(max(least, _TIMES_THE_CACHES * last_level_cache_bytes()))


def _fitting(size: int) -> int:
    most = available_host_memory_bytes() // 8
    return size if size <= most else max(1, most // _MIB) * _MIB


class Bench:
    """Measures one figure at a time and remembers its spread."""

    def __init__(
        self, device: ProbeDevice, effort: Effort, progress: Progress, *, emulated: bool
    ) -> None:
        self.device = device
        self.host = CpuProbeDevice()
        self.effort = effort
        self.progress = progress
        self.paced_prefix = UNPACED if emulated else ""
        self.measurements: dict[str, Measurement] = {}

    def fitting(self, size: int) -> int:
        """Return ``size``, or as many whole MiB as an eighth of the free host memory allows."""
        return _fitting(size)

    def seconds(self, work: Work, clock: ProbeDevice | None = None) -> list[float]:
        """Return how long ``work`` takes on the device, or on another ``clock``, once a sample."""
        device = clock or self.device
        once_s = self._warm_s(work, device)
        count = max(1, min(10_000, math.ceil(self.effort.sample_s / max(once_s, 1e-9))))

        def repeated() -> None:
            for _ in range(count):
                work()

        return [device.seconds(repeated) / count for _ in range(self.effort.repeats)]

    def rate(
        self,
        name: str,
        work: Work,
        amount: float,
        *,
        clock: ProbeDevice | None = None,
        show: Callable[[float], str] = format_rate,
    ) -> float:
        """Measure how much a second ``work`` gets done, of which it does ``amount``."""
        samples = [amount / taken_s for taken_s in self.seconds(work, clock)]
        return self.keep(name, samples, show)

    def keep(self, name: str, samples: Sequence[float], show: Callable[[float], str]) -> float:
        """Remember a figure's spread and return its median."""
        found = Measurement.of(samples)
        self.measurements[name] = found
        self.progress(
            f"{name}: {show(found.median)} ({show(found.minimum)} to {show(found.maximum)})"
        )
        return found.median

    def _warm_s(self, work: Work, device: ProbeDevice) -> float:
        """Run ``work`` for a while and return how long it takes once warm."""
        begin = time.perf_counter()
        device.seconds(work)
        while True:
            once_s = device.seconds(work)
            if time.perf_counter() - begin >= self.effort.warm_up_s:
                return once_s
