"""An emulated machine: at which rates this one is held back, so that it compares as that one does.

On a CPU, link, device and the host's cores are one machine with one memory. The device is what it
is. The link and the cores are slowed down by one factor, that by which the device is slower than
the named machine's: what takes longer than what, and how much, is then as there. Waiting costs no
core anything, so that link and cores go on beside the device although all are the same few cores.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

from headrace.errors import ProfileError
from headrace.hardware.probe_device import Work
from headrace.hardware.profile import HardwareProfile
from headrace.units import format_rate


def emulated_link_rate(
    named: HardwareProfile,
    local_gemm_flops_per_s: float,
    *,
    direction: Literal["h2d", "d2h"] = "h2d",
) -> float:
    """Return the rate, in bytes a second, at which a local link shall be paced to emulate another.

    ``link = named_link · local_gemm / named_gemm``: rebuilding is then as fast, compared with the
    link, as on the named machine (DESIGN section 5). The reference is always the named machine's
    bfloat16 rate (float16 on a machine that has none), also where the local element type is
    float32: on the machine that is emulated the model would run in 16 bits.

    Args:
        named: the machine whose link is emulated.
        local_gemm_flops_per_s: the local rate of the K/V projections' matrix product, in the
            element type that will run here.
        direction: which direction of the link.
    """
    link = named.h2d_bytes_per_s if direction == "h2d" else named.d2h_bytes_per_s
    return link * _proportion(named, local_gemm_flops_per_s)


def emulated_cores_rate(named: HardwareProfile, local_gemm_flops_per_s: float) -> float:
    """Return the rate, in bytes a second, at which the host's cores shall be paced to attend.

    It is what the named machine's memory leaves to its cores while its link is at work, times the
    same factor as the link. Link and cores can then be paced each by itself, and never take more
    together than that memory gives. Infinite where nothing is said of the named machine's cores.

    Args:
        named: the machine that is emulated.
        local_gemm_flops_per_s: as for ``emulated_link_rate``.
    """
    if not named.host_attends:
        return math.inf
    return named.shared_rates[1] * _proportion(named, local_gemm_flops_per_s)


def _proportion(named: HardwareProfile, local_gemm_flops_per_s: float) -> float:
    has_bfloat16 = "bfloat16" in named.gemm_flops_per_s
    reference = named.gemm_rate("bfloat16" if has_bfloat16 else "float16")
    return local_gemm_flops_per_s / reference


@dataclass(frozen=True)
class Pace:
    """The rates that this machine is held to; infinite where none is emulated.

    Attributes:
        h2d: of the link to the device.
        d2h: of the link to the host.
        cores: at which the host's cores attend.
        memory: at which they read host memory while the link is idle.
    """

    h2d: float = math.inf
    d2h: float = math.inf
    cores: float = math.inf
    memory: float = math.inf

    @classmethod
    def of(
        cls, named: HardwareProfile | None, gemm_rate: float, h2d_copies: float, d2h_copies: float
    ) -> Pace:
        """Return the pace that emulates ``named``, if real copies can keep it.

        The cores' is an upper limit: where they cannot keep it, they are what they are.

        Args:
            named: the machine that is emulated, or None.
            gemm_rate: FLOPs a second of matrix products here.
            h2d_copies: rate of real copies to the device.
            d2h_copies: rate of real copies to the host.

        Raises:
            ProfileError: real copies are too slow.
        """
        if named is None:
            return cls()
        pace = cls(
            emulated_link_rate(named, gemm_rate, direction="h2d"),
            emulated_link_rate(named, gemm_rate, direction="d2h"),
            emulated_cores_rate(named, gemm_rate),
            named.host_bytes_per_s * _proportion(named, gemm_rate),
        )
        if pace.h2d > h2d_copies or pace.d2h > d2h_copies:
            raise ProfileError(
                f"the link of {named.name} cannot be emulated here: in proportion to this "
                f"machine's matrix products it runs at {format_rate(max(pace.h2d, pace.d2h))}, but "
                f"copies reach only {format_rate(min(h2d_copies, d2h_copies))}; "
                "emulate a machine with a slower link"
            )
        return pace

    def held(self, work: Work, size: int) -> Work:
        """Return ``work``, which brings ``size`` bytes to the device, held to the pace."""
        if self.h2d == math.inf:
            return work

        def paced() -> None:
            begin = time.perf_counter()
            work()
            time.sleep(max(0.0, size / self.h2d - (time.perf_counter() - begin)))

        return paced
