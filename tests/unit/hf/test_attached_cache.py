"""The lanes of an emulated machine: link and cores at the profile's rates."""

from dataclasses import replace

import pytest
import torch

from headrace.hardware.catalog import machine
from headrace.hf.attached_cache import open_backend
from headrace.runtime.lanes import Attended
from headrace.timeline import Origin


def test_the_hosts_cores_are_held_to_the_emulated_rate():
    profile = replace(
        machine("t4-pcie3"),
        origin=Origin.EMULATED,
        device="cpu",
        emulates="t4-pcie3",
        host_attend_bytes_per_s=1e6,
        source={},
    )
    backend = open_backend(torch.device("cpu"), profile)
    start, finish = backend.end_attended(Attended([backend.mark()], 0.0, 20_000, 0, 0))
    assert finish - start >= 0.02 - 1e-9
    assert backend.origin is Origin.EMULATED
    backend.close()


@pytest.mark.parametrize("profile", [None, machine("t4-pcie3")])
def test_nothing_is_held_back_where_nothing_is_emulated(profile):
    backend = open_backend(torch.device("cpu"), profile)
    start, finish = backend.end_attended(Attended([backend.mark()], 0.0, 10**18, 0, 0))
    assert start == 0.0
    assert finish <= backend.now_s()
    assert backend.origin is Origin.MEASURED
    backend.close()
