import time
from dataclasses import replace

import pytest
import torch

from headrace.errors import ConfigurationError, ProfileError
from headrace.hardware import probe_bench
from headrace.hardware.catalog import machine
from headrace.hardware.emulation import emulated_cores_rate, emulated_link_rate
from headrace.hardware.identity import local_identity
from headrace.hardware.probe_bench import QUICK
from headrace.hardware.probe_device import CpuProbeDevice, busy, resolve_device
from headrace.hardware.probes import Widths, add_extra_probes, profile_machine
from headrace.timeline import Origin

KIB = 2**10
TINY = replace(
    QUICK,
    repeats=2,
    sample_s=0.001,
    warm_up_s=0.001,
    transfer_bytes=(16 * KIB, 64 * KIB),
    cpu_tokens=(4, 8),
    cuda_tokens=(4, 8),
    memory_bytes=256 * KIB,
)
SHAPE = Widths(32, 16, "float32")


@pytest.fixture(autouse=True)
def no_caches(monkeypatch):
    """No figure is judged here: memory need not be larger than the processor's caches."""
    monkeypatch.setattr(probe_bench, "last_level_cache_bytes", lambda: 0)


TOGETHER = (
    "h2d_while_d2h_bytes_per_s",
    "d2h_while_h2d_bytes_per_s",
    "h2d_while_compute_bytes_per_s",
    "gemm_while_h2d_flops_per_s",
    "h2d_while_host_bytes_per_s",
    "host_while_h2d_bytes_per_s",
)


def check_measurements(profile):
    for name, found in profile.measurements.items():
        assert 0 < found.minimum <= found.median <= found.maximum, name
        assert found.repeats >= 2


def test_a_measured_machine():
    lines = []
    profile = profile_machine(
        "cpu", SHAPE, "bfloat16", quick=True, effort=TINY, progress=lines.append
    )
    assert profile.origin is Origin.MEASURED
    assert (profile.device, profile.emulates, profile.quick) == ("cpu", None, True)
    assert profile.identity == local_identity()
    assert list(profile.gemm_flops_per_s) == ["bfloat16", "float32"]
    assert [point.tokens for point in profile.gemm_curve] == [4, 8, 4, 8]
    assert {(point.d_model, point.width) for point in profile.gemm_curve} == {(32, 32)}
    assert [size for size, _ in profile.h2d_curve] == [16 * KIB, 64 * KIB]
    assert profile.h2d_bytes_per_s == profile.h2d_curve[-1][1]
    assert all(getattr(profile, name) > 0 for name in TOGETHER)
    assert profile.attend_bytes_per_s is None
    assert not any(name.startswith("unpaced") for name in profile.measurements)
    assert len(lines) == len(profile.measurements)
    check_measurements(profile)


def test_an_emulated_link():
    probes = {"attend_bytes_per_s": lambda _: 5.0, "another": lambda _: 7.0}
    profile = profile_machine(
        "cpu", SHAPE, emulate="a100-40gb-pcie4", effort=TINY, extra_probes=probes
    )
    named = machine("a100-40gb-pcie4")
    expected = emulated_link_rate(named, profile.gemm_rate("float32"))
    assert profile.origin is Origin.EMULATED
    assert profile.emulates == "a100-40gb-pcie4"
    assert "emulated" in profile.name
    assert profile.h2d_bytes_per_s == profile.d2h_bytes_per_s == expected
    assert all(rate <= expected for _, rate in profile.h2d_curve + profile.d2h_curve)
    assert profile.h2d_while_compute_bytes_per_s <= expected
    assert profile.measurements[f"unpaced_h2d_bytes_per_s[{64 * KIB}]"].median > expected
    assert profile.attend_rate == 5.0
    assert profile.measurements["another"].median == 7.0
    check_measurements(profile)


def test_emulated_cores_compare_with_the_emulated_link():
    named = machine("a100-40gb-pcie4")
    profile = profile_machine("cpu", SHAPE, emulate="a100-40gb-pcie4", effort=TINY)
    gemm = profile.gemm_rate("float32")
    assert profile.host_attends
    assert profile.host_while_h2d_bytes_per_s == emulated_cores_rate(named, gemm)
    assert profile.h2d_while_host_bytes_per_s == profile.h2d_bytes_per_s
    ratio = named.host_bytes_per_s / named.h2d_bytes_per_s
    assert profile.host_bytes_per_s == pytest.approx(ratio * profile.h2d_bytes_per_s)
    for name in ("host_bytes_per_s", "host_while_h2d_bytes_per_s"):
        assert profile.measurements[f"unpaced_{name}"].median > getattr(profile, name)
    assert not profile_machine("cpu", SHAPE, emulate="paper-a100", effort=TINY).host_attends


@pytest.mark.parametrize(("found", "kept"), [(50.0, 20.0), (5.0, 5.0)])
def test_emulated_cores_attend_at_the_pace_but_no_faster_than_they_do(found, kept):
    emulated = replace(
        machine("t4-pcie3"), emulates="t4-pcie3", host_while_h2d_bytes_per_s=20.0, source={}
    )
    lines = []
    probes = {"host_attend_bytes_per_s": lambda _: found}
    profile = add_extra_probes(emulated, probes, progress=lines.append)
    assert profile.host_attend_rate == kept
    assert profile.measurements["unpaced_host_attend_bytes_per_s"].median == found
    assert "host_attend_bytes_per_s" not in profile.measurements
    assert profile.is_measured("host_attend_bytes_per_s")
    assert not profile.is_measured("attend_bytes_per_s")
    assert lines == [f"unpaced_host_attend_bytes_per_s: {found} B/s"]
    plain = add_extra_probes(replace(emulated, emulates=None), probes)
    assert plain.host_attend_rate == plain.measurements["host_attend_bytes_per_s"].median == found


def test_what_link_and_cores_get_at_once_is_held_to_the_paces():
    emulated = replace(
        machine("t4-pcie3"), emulates="t4-pcie3", host_while_h2d_bytes_per_s=20.0, source={}
    )
    given = []
    probes = {
        "h2d_while_attend_bytes_per_s": lambda profile: given.append(profile) or 1e15,
        "host_attend_while_h2d_bytes_per_s": lambda _: 15.0,
    }
    profile = add_extra_probes(emulated, probes)
    assert profile.joint_rates == (emulated.h2d_bytes_per_s, 15.0)
    assert profile.measurements["unpaced_h2d_while_attend_bytes_per_s"].median == 1e15
    assert given[0] is emulated
    plain = add_extra_probes(replace(emulated, emulates=None), probes)
    assert plain.joint_rates == (1e15, 15.0)


def test_memory_is_far_larger_than_the_caches_but_a_part_of_what_is_free(monkeypatch):
    monkeypatch.setattr(probe_bench, "last_level_cache_bytes", lambda: 300 << 20)
    monkeypatch.setattr(probe_bench, "available_host_memory_bytes", lambda: 64 << 30)
    assert probe_bench.uncached_bytes(256 << 20) == 8 * (300 << 20)
    assert probe_bench.uncached_bytes(4 << 30) == 4 << 30
    monkeypatch.setattr(probe_bench, "available_host_memory_bytes", lambda: 8 << 30)
    assert probe_bench.uncached_bytes(256 << 20) == 1 << 30


def test_extra_probes_are_warmed_up_and_added():
    rates = iter([100.0, 3.0, 1.0, 2.0])
    before = machine("paper-a100")
    after = add_extra_probes(before, {"attend_bytes_per_s": lambda _: next(rates)}, repeats=3)
    assert after.attend_rate == 2.0
    assert after.measurements["attend_bytes_per_s"].maximum == 3.0
    assert add_extra_probes(before, {}) is before


def test_extra_probes_make_curves_point_by_point():
    rates = {"dense_curve[8]": 2.0, "resident_curve[1]": 5.0, "dense_curve[1]": 4.0}
    probes = {name: lambda _, rate=rate: rate for name, rate in rates.items()}
    said = []
    after = add_extra_probes(machine("paper-a100"), probes, progress=said.append)
    assert (after.dense_curve, after.resident_curve) == (((1, 4.0), (8, 2.0)), ((1, 5.0),))
    assert all(after.is_measured(name) for name in rates)
    assert said[0] == "dense_curve[8]: 2.0 B/s"
    again = add_extra_probes(after, {"dense_curve[8]": lambda _: 1.0})
    assert again.dense_curve == ((1, 4.0), (8, 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "tpu"}, ConfigurationError, "device is 'tpu'; allowed are auto, cpu and cuda"),
        ({"dtype": "int8"}, ConfigurationError, "dtype is 'int8'; allowed are bfloat16"),
        ({"emulate": "a100"}, ProfileError, "no published machine"),
    ],
)
def test_wrong_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        profile_machine(**{"device": "cpu", "effort": TINY, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_devices_without_cuda():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigurationError, match="finds no CUDA device"):
        resolve_device("cuda")


def test_a_busy_lane_runs_until_the_end_of_the_block():
    runs = []
    with busy(CpuProbeDevice(), lambda: runs.append(time.sleep(0.001))):
        assert runs
    count = len(runs)
    time.sleep(0.01)
    assert len(runs) == count


def test_an_error_on_a_busy_lane_comes_out():
    def fail():
        raise RuntimeError("lane")

    with pytest.raises(RuntimeError, match="lane"), busy(CpuProbeDevice(), fail):
        pass


@pytest.mark.gpu
def test_a_measured_gpu():
    profile = profile_machine("cuda", Widths(4096, 4096), quick=True, progress=print)
    assert profile.device == "cuda"
    assert profile.identity.gpu.memory_bytes == profile.device_memory_bytes
    assert all(getattr(profile, name) > 0 for name in TOGETHER)
    assert profile.device_bytes_per_s > profile.h2d_bytes_per_s
    with pytest.raises(ConfigurationError, match="a link is emulated on a CPU only"):
        profile_machine("cuda", emulate="t4-pcie3")
    check_measurements(profile)
