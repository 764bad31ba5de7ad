import math
from dataclasses import replace

import pytest

from headrace.errors import ProfileError
from headrace.hardware.catalog import machine, machine_names, resolve
from headrace.hardware.profile_file import save_profile
from headrace.timeline import Origin

FIGURES = (
    "h2d_bytes_per_s",
    "d2h_bytes_per_s",
    "gemm_flops_per_s",
    "device_bytes_per_s",
    "host_bytes_per_s",
    "device_memory_bytes",
    "host_memory_bytes",
    "copy_latency_s",
    "launch_latency_s",
)
REAL_ONLY = ("host_attend_bytes_per_s", "interconnect_bytes_per_s")
"""The paper's machine is a link and a GPU: no host that attends, and no second GPU."""


def test_the_machines_that_the_command_line_promises():
    assert machine_names() == (
        "a100-40gb-pcie4",
        "h100-80gb-pcie5",
        "h200-141gb-pcie5",
        "rtx4090-pcie4",
        "rtx5090-pcie5",
        "t4-pcie3",
        "paper-a100",
    )


@pytest.mark.parametrize("name", machine_names())
def test_every_figure_has_a_source(name):
    profile = machine(name)
    assert profile.name == name
    assert profile.origin is Origin.PREDICTED
    assert profile.date
    figures = FIGURES if name == "paper-a100" else FIGURES + REAL_ONLY
    assert sorted(profile.source) == sorted(figures)
    assert all(profile.source.values())
    others = (
        "attend_bytes_per_s",
        "dense_bytes_per_s",
        "gemm_while_h2d_flops_per_s",
    )
    assert all(getattr(profile, other) is None for other in others)


def test_the_paper_machine_has_nothing_else_that_limits():
    paper = machine("paper-a100")
    assert (paper.h2d_bytes_per_s, paper.gemm_rate("bfloat16")) == (32e9, 312e12)
    assert paper.attend_rate == math.inf
    assert not paper.host_attends
    assert paper.copy_latency_s == paper.launch_latency_s == 0


def test_an_unknown_machine_lists_the_known_ones():
    with pytest.raises(ProfileError, match=r"'a100'; there are a100-40gb-pcie4, .*paper-a100"):
        machine("a100")


def test_resolve_takes_a_name_or_a_file(tmp_path):
    path = tmp_path / "mine"
    profile = replace(machine("t4-pcie3"), name="mine")
    save_profile(profile, path)
    assert resolve(path) == resolve(str(path)) == profile
    assert resolve("t4-pcie3") == machine("t4-pcie3")


@pytest.mark.parametrize("text", ["absent.json", "folder/absent"])
def test_resolve_of_an_absent_file(text):
    with pytest.raises(ProfileError, match=f"{text}: No such file"):
        resolve(text)


def test_resolve_of_an_unknown_name():
    with pytest.raises(ProfileError, match=r"no hardware is called 'rtx'; give one of .*JSON"):
        resolve("rtx")
