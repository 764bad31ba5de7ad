"""Published machines: data-sheet figures, for planning without the machine at hand.

Adding a machine is adding an entry to ``_MACHINES``. Each figure names its source; what no data
sheet states is marked as an assumption.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import ProfileError
from headrace.hardware.profile import HardwareProfile
from headrace.hardware.profile_file import load_profile
from headrace.timeline import Origin

_GIB = 2**30

_ATTENTION_SHARE = 0.8
"""Share of a memory's theoretical rate at which cores are taken to attend."""


@dataclass(frozen=True)
class _Sourced:
    """A rate, with where it comes from."""

    bytes_per_s: float
    source: str


def _pcie(generation: int, nominal: float, exact: str) -> _Sourced:
    return _Sourced(
        nominal,
        f"PCI Express {generation}.0, 16 lanes, theoretical rate per direction ({exact} after line "
        "coding, rounded as KVPR, arXiv 2411.17089, does); pinned copies usually reach 80 to 88 % "
        "of it",
    )


_PCIE = {
    3: _pcie(3, 16e9, "15.75 GB/s"),
    4: _pcie(4, 32e9, "31.5 GB/s"),
    5: _pcie(5, 64e9, "63 GB/s"),
}

_DDR4_6 = _Sourced(140.8e9, "assumption: 6 channels of DDR4-2933, theoretical")
_DDR4_8 = _Sourced(204.8e9, "assumption: 8 channels of DDR4-3200, theoretical")
_DDR5_2 = _Sourced(89.6e9, "assumption: 2 channels of DDR5-5600 (a desktop), theoretical")
_DDR5_8 = _Sourced(307.2e9, "assumption: 8 channels of DDR5-4800, theoretical")


@dataclass(frozen=True)
class _Machine:
    """A catalog entry: a GPU's data sheet, its link, and the host it is assumed to sit in."""

    sheet: str
    gemm_tflops: Mapping[str, float]
    gemm_note: str
    memory_gb: int
    memory_gb_per_s: float
    pcie: int
    host: _Sourced
    host_memory_gib: int
    date: str
    interconnect: _Sourced | None = None


_NVLINK_BRIDGE = _Sourced(
    300e9, "NVIDIA A100 data sheet: NVLink bridge for two GPUs, 600 GB/s, half in each direction"
)
_NVLINK_4 = _Sourced(
    450e9, "NVIDIA data sheet: fourth-generation NVLink, 900 GB/s, half in each direction"
)

_DENSE = "16-bit tensor cores without sparsity, float32 accumulation; float32 without TF32"

_MACHINES = {
    "a100-40gb-pcie4": _Machine(
        sheet="NVIDIA A100 Tensor Core GPU data sheet (A100 40GB PCIe)",
        gemm_tflops={"bfloat16": 312, "float16": 312, "float32": 19.5},
        gemm_note=_DENSE,
        memory_gb=40,
        memory_gb_per_s=1555,
        pcie=4,
        host=_DDR4_8,
        host_memory_gib=512,
        date="2020-11",
        interconnect=_NVLINK_BRIDGE,
    ),
    "h100-80gb-pcie5": _Machine(
        sheet="NVIDIA H100 Tensor Core GPU data sheet (H100 SXM)",
        gemm_tflops={"bfloat16": 989.4, "float16": 989.4, "float32": 67},
        gemm_note=f"{_DENSE}; half of the sheet's 1,979 with sparsity",
        memory_gb=80,
        memory_gb_per_s=3350,
        pcie=5,
        host=_DDR5_8,
        host_memory_gib=1024,
        date="2023-03",
        interconnect=_NVLINK_4,
    ),
    "h200-141gb-pcie5": _Machine(
        sheet="NVIDIA H200 Tensor Core GPU data sheet (H200 SXM)",
        gemm_tflops={"bfloat16": 989.4, "float16": 989.4, "float32": 67},
        gemm_note=f"{_DENSE}; half of the sheet's 1,979 with sparsity",
        memory_gb=141,
        memory_gb_per_s=4800,
        pcie=5,
        host=_DDR5_8,
        host_memory_gib=1024,
        date="2023-11",
        interconnect=_NVLINK_4,
    ),
    "rtx4090-pcie4": _Machine(
        sheet="NVIDIA Ada GPU Architecture white paper (GeForce RTX 4090)",
        gemm_tflops={"bfloat16": 165.2, "float16": 165.2, "float32": 82.6},
        gemm_note=_DENSE,
        memory_gb=24,
        memory_gb_per_s=1008,
        pcie=4,
        host=_DDR5_2,
        host_memory_gib=128,
        date="2022-09",
    ),
    "rtx5090-pcie5": _Machine(
        sheet="NVIDIA RTX Blackwell GPU Architecture white paper (GeForce RTX 5090)",
        gemm_tflops={"bfloat16": 209.5, "float16": 209.5, "float32": 104.8},
        gemm_note=_DENSE,
        memory_gb=32,
        memory_gb_per_s=1792,
        pcie=5,
        host=_DDR5_2,
        host_memory_gib=128,
        date="2025-01",
    ),
    "t4-pcie3": _Machine(
        sheet="NVIDIA T4 Tensor Core GPU product brief",
        gemm_tflops={"float16": 65, "float32": 8.1},
        gemm_note="tensor cores in float16 (Turing has none for bfloat16); float32 without TF32",
        memory_gb=16,
        memory_gb_per_s=320,
        pcie=3,
        host=_DDR4_6,
        host_memory_gib=192,
        date="2018-09",
    ),
}


def machine_names() -> tuple[str, ...]:
    """Return the names of the published machines."""
    return (*_MACHINES, "paper-a100")


def machine(name: str) -> HardwareProfile:
    """Return a published machine.

    Args:
        name: one of ``machine_names()``.

    Raises:
        ProfileError: there is no such machine; the message lists those there are.
    """
    if name == "paper-a100":
        return _paper_a100()
    if name not in _MACHINES:
        raise ProfileError(
            f"no published machine is called {name!r}; there are {', '.join(machine_names())}"
        )
    return _profile(name, _MACHINES[name])


def resolve(name_or_path: str | os.PathLike[str]) -> HardwareProfile:
    """Return a published machine by name, or a measured one from its JSON file.

    Raises:
        ProfileError: it is neither a known name nor a file that holds a profile.
    """
    text = os.fspath(name_or_path)
    if text in machine_names():
        return machine(text)
    if Path(text).exists() or text.endswith(".json") or os.sep in text:
        return load_profile(text)
    raise ProfileError(
        f"no hardware is called {text!r}; give one of {', '.join(machine_names())}, or the JSON "
        "file that `headrace profile --output FILE` wrote"
    )


def _profile(name: str, entry: _Machine) -> HardwareProfile:
    link = _PCIE[entry.pcie]
    fixed = "assumption: usual for CUDA on Linux"
    return HardwareProfile(
        name=name,
        origin=Origin.PREDICTED,
        device="cuda",
        h2d_bytes_per_s=link.bytes_per_s,
        d2h_bytes_per_s=link.bytes_per_s,
        gemm_flops_per_s={dtype: rate * 1e12 for dtype, rate in entry.gemm_tflops.items()},
        device_bytes_per_s=entry.memory_gb_per_s * 1e9,
        host_bytes_per_s=entry.host.bytes_per_s,
        device_memory_bytes=entry.memory_gb * _GIB,
        host_memory_bytes=entry.host_memory_gib * _GIB,
        copy_latency_s=10e-6,
        launch_latency_s=5e-6,
        host_attend_bytes_per_s=_ATTENTION_SHARE * entry.host.bytes_per_s,
        interconnect_bytes_per_s=entry.interconnect.bytes_per_s if entry.interconnect else None,
        date=entry.date,
        source={
            "h2d_bytes_per_s": link.source,
            "d2h_bytes_per_s": link.source,
            "gemm_flops_per_s": f"{entry.sheet}: {entry.gemm_note}",
            "device_bytes_per_s": entry.sheet,
            "host_bytes_per_s": entry.host.source,
            "device_memory_bytes": f"{entry.sheet}; its GB read as GiB, as the driver reports them",
            "host_memory_bytes": "assumption: a usual host for this GPU",
            "copy_latency_s": fixed,
            "launch_latency_s": fixed,
            "host_attend_bytes_per_s": "assumption: four fifths of the memory's theoretical rate",
            "interconnect_bytes_per_s": entry.interconnect.source
            if entry.interconnect
            else "none: GPUs exchange over PCIe",
        },
    )


def _paper_a100() -> HardwareProfile:
    """Return the machine of KVPR's analysis: a link and a GPU, and nothing else that limits."""
    paper = "KVPR, arXiv 2411.17089: A100-40GB, PCIe 4.0 with 16 lanes"
    unlimited = "not part of the paper's model: without limit"
    free = "not part of the paper's model: none"
    return HardwareProfile(
        name="paper-a100",
        origin=Origin.PREDICTED,
        device="cuda",
        h2d_bytes_per_s=32e9,
        d2h_bytes_per_s=32e9,
        gemm_flops_per_s=dict.fromkeys(("bfloat16", "float16", "float32"), 312e12),
        device_bytes_per_s=math.inf,
        host_bytes_per_s=math.inf,
        device_memory_bytes=40 * _GIB,
        host_memory_bytes=2**50,
        host_attends=False,
        date="2024-11",
        source={
            "h2d_bytes_per_s": paper,
            "d2h_bytes_per_s": paper,
            "gemm_flops_per_s": f"{paper}; used whatever the element type",
            "device_bytes_per_s": unlimited,
            "host_bytes_per_s": unlimited,
            "device_memory_bytes": paper,
            "host_memory_bytes": f"{unlimited} (1 PiB)",
            "copy_latency_s": free,
            "launch_latency_s": free,
        },
    )
