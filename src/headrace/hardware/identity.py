"""Which machine this is, so that a stored profile is reused on this machine only, and its memory.

Nothing here imports torch: what torch knows of the GPU is handed in.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED_BYTES = 2**60
"""Control groups of version 1 write "no limit" as a number just under 2**63."""


@dataclass(frozen=True)
class GpuIdentity:
    """What tells one GPU set-up from another.

    Attributes:
        name: the name that its driver reports.
        memory_bytes: its memory.
        cuda_version: the CUDA version that torch was built for.
        driver_version: the kernel driver's version, or ``unknown``.
    """

    name: str
    memory_bytes: int
    cuda_version: str
    driver_version: str


@dataclass(frozen=True)
class MachineIdentity:
    """What a measured figure depends on; a profile holds while all of it is unchanged.

    Attributes:
        host_hash: a hash of the host's name (the name itself is nobody's business).
        cpu_model: the processor's name.
        cpu_cores: the cores that this process may use.
        host_memory_bytes: the memory that this process may use.
        torch_version: the installed torch.
        headrace_version: the installed headrace.
        gpu: the GPU that was measured, or None for a CPU.
    """

    host_hash: str
    cpu_model: str
    cpu_cores: int
    host_memory_bytes: int
    torch_version: str
    headrace_version: str
    gpu: GpuIdentity | None = None

    def changes(self, now: MachineIdentity) -> tuple[str, ...]:
        """Return what differs between this machine and ``now``, in words; nothing if the same."""
        pairs = ((f.name, getattr(self, f.name), getattr(now, f.name)) for f in fields(self))
        return tuple(f"{name} was {old}, is {new}" for name, old, new in pairs if old != new)


def local_identity(gpu: GpuIdentity | None = None) -> MachineIdentity:
    """Return the identity of the machine that this runs on.

    Args:
        gpu: the GPU that figures are measured on, or None where the device is the CPU.
    """
    return MachineIdentity(
        host_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16],
        cpu_model=_cpu_model(),
        cpu_cores=len(os.sched_getaffinity(0)),
        host_memory_bytes=host_memory_limit_bytes(),
        torch_version=_version("torch"),
        headrace_version=_version("headrace"),
        gpu=gpu,
    )


def gpu_driver_version(root: Path = _ROOT) -> str:
    """Return the version of the NVIDIA kernel driver, or ``unknown``."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
    return match[0] if match else "unknown"


def host_memory_limit_bytes(root: Path = _ROOT) -> int:
    """Return the host memory that this process may use: the machine's, or its container's limit.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    limits = [limit for limit, _ in _control_groups(root)]
    return min([_meminfo_bytes(root, "MemTotal"), *limits])


def available_host_memory_bytes(root: Path = _ROOT) -> int:
    """Return the host memory that is free for this process now, within its container's limit.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    free = [limit - used for limit, used in _control_groups(root)]
    return max(0, min([_meminfo_bytes(root, "MemAvailable"), *free]))


def last_level_cache_bytes(root: Path = _ROOT) -> int:
    """Return what the last caches before memory hold, of all cores that this process may use.

    Args:
        root: where ``sys`` is mounted.

    Returns:
        Bytes; 0 where the system does not say.
    """
    caches: dict[str, int] = {}
    for core in os.sched_getaffinity(0):
        directories = (root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index*")
        levels = [found for found in map(_cache, directories) if found is not None]
        if levels:
            level, cores, size = max(levels)
            # Cores that share a cache all name it.
            caches[f"{level} of {cores}"] = size
    return sum(caches.values())


def _cache(directory: Path) -> tuple[int, str, int] | None:
    """Return a cache's level, the cores that share it, and its bytes; None if it is not told."""
    try:
        level = int((directory / "level").read_text())
        cores = (directory / "shared_cpu_list").read_text().strip()
        size = re.fullmatch(r"(\d+)K", (directory / "size").read_text().strip())
    except (OSError, ValueError):
        return None
    return None if size is None else (level, cores, int(size[1]) * 1024)


def _control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each control group above this process that has a limit."""
    for directory, limit_name, use_name in _control_group_directories(root):
        try:
            limit_text = (directory / limit_name).read_text().strip()
            used = int((directory / use_name).read_text())
        except (OSError, ValueError):
            continue
        if limit_text.isdigit() and int(limit_text) < _UNLIMITED_BYTES:
            yield int(limit_text), used - _reclaimable_bytes(directory)


def _control_group_directories(root: Path) -> Iterator[tuple[Path, str, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # The path may be the one outside the container; then only the base exists in here.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            yield base.joinpath(*parts[:depth]), *names


def _reclaimable_bytes(directory: Path) -> int:
    """Return the file cache that the kernel would give back before it runs out of memory."""
    try:
        lines = (directory / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _meminfo_bytes(root: Path, entry: str) -> int:
    text = (root / "proc/meminfo").read_text()
    match = re.search(rf"^{entry}:\s*(\d+) kB$", text, re.MULTILINE)
    assert match, f"/proc/meminfo has no {entry}"
    return int(match[1]) * 1024


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        match = None
    return match[1].strip() if match else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
