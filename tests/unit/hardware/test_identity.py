import os
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.hardware.identity import (
    GpuIdentity,
    available_host_memory_bytes,
    gpu_driver_version,
    host_memory_limit_bytes,
    last_level_cache_bytes,
    local_identity,
)

GIB = 2**30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {48 * 2**20} kB"


def test_memory_without_a_container(tmp_path):
    root = write(tmp_path, {"proc/meminfo": MEMINFO})
    assert host_memory_limit_bytes(root) == 64 * GIB
    assert available_host_memory_bytes(root) == 48 * GIB


def test_memory_in_a_container_of_version_2(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/outer/inner",
        "sys/fs/cgroup/outer/memory.max": 8 * GIB,
        "sys/fs/cgroup/outer/memory.current": 5 * GIB,
        "sys/fs/cgroup/outer/memory.stat": f"anon 1\ninactive_file {2 * GIB}",
        "sys/fs/cgroup/outer/inner/memory.max": "max",
        "sys/fs/cgroup/outer/inner/memory.current": GIB,
    }
    root = write(tmp_path, files)
    assert host_memory_limit_bytes(root) == 8 * GIB
    assert available_host_memory_bytes(root) == 5 * GIB


def test_memory_in_a_container_of_version_1_that_sees_the_path_outside(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/abc\n0::/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 4 * GIB,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 3 * GIB,
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}",
    }
    root = write(tmp_path, files)
    assert host_memory_limit_bytes(root) == 4 * GIB
    assert available_host_memory_bytes(root) == 2 * GIB


def test_a_limit_of_version_1_that_means_none(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
    }
    assert host_memory_limit_bytes(write(tmp_path, files)) == 64 * GIB


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun", "535.54.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release", "570.86"),
        ("nothing of the kind", "unknown"),
    ],
)
def test_driver_version(tmp_path, text, version):
    assert gpu_driver_version(write(tmp_path, {"proc/driver/nvidia/version": text})) == version


def test_driver_version_without_a_driver(tmp_path):
    assert gpu_driver_version(tmp_path) == "unknown"


def caches(core, *levels):
    """Return the files in which a core's caches are told, of (level, cores, size)."""
    directory = f"sys/devices/system/cpu/cpu{core}/cache"
    return {
        f"{directory}/index{number}/{name}": content
        for number, cache in enumerate(levels)
        for name, content in zip(("level", "shared_cpu_list", "size"), cache, strict=True)
    }


def test_the_last_caches_are_counted_once_each(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    first, second = (3, "0-1", "300K"), (3, "2-3", "200K")
    files = caches(0, (1, "0", "48K"), (2, "0", "2048K"), first)
    files |= caches(1, (1, "1", "48K"), first)
    files |= caches(2, second) | caches(3, (3, "9", "900K"))  # a core of another process
    assert last_level_cache_bytes(write(tmp_path, files)) == 500 * 1024


def test_caches_of_which_nothing_is_told(tmp_path):
    assert last_level_cache_bytes(tmp_path) == 0
    files = caches(0, (3, "0", "much"))
    assert last_level_cache_bytes(write(tmp_path, files)) == 0


def test_this_machine():
    identity = local_identity()
    assert identity == local_identity()
    assert identity.changes(identity) == ()
    assert 0 < available_host_memory_bytes() <= identity.host_memory_bytes
    assert identity.cpu_cores <= (os.cpu_count() or 1)
    assert os.uname().nodename not in repr(identity)


def test_changes_are_told_in_words():
    identity = local_identity()
    upgraded = replace(
        identity, torch_version="99.0", gpu=GpuIdentity("New", 8 * GIB, "13.0", "580.1")
    )
    version, gpu = identity.changes(upgraded)
    assert version == f"torch_version was {identity.torch_version}, is 99.0"
    assert gpu.startswith("gpu was None, is GpuIdentity")
