from dataclasses import replace
from pathlib import Path

import pytest

from headrace.hardware.catalog import machine
from headrace.hardware.identity import local_identity
from headrace.hardware.probes import Widths
from headrace.hardware.profile_file import load_profile, save_profile
from headrace.hardware.store import cache_directory, load_or_measure, profile_path
from headrace.timeline import Origin

SHAPE = Widths(64, 32, "float32")


class Measure:
    """Stands in for the probes and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, device, shape, dtype, *, emulate, quick, progress, extra_probes):
        self.calls += 1
        return replace(
            machine("t4-pcie3"),
            name=f"measurement {self.calls}",
            origin=Origin.EMULATED if emulate else Origin.MEASURED,
            device=device,
            emulates=emulate,
            quick=quick,
            identity=local_identity(),
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def measure():
    return Measure()


def test_the_place(monkeypatch, cache):
    assert cache_directory() == cache / "profiles"
    monkeypatch.delenv("HEADRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_directory() == Path("/shared/headrace/profiles")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache/headrace/profiles"


def test_the_name():
    assert profile_path("cpu", SHAPE).name == "cpu-64x32-float32.json"
    emulated = profile_path("cpu", SHAPE, "bfloat16", "t4-pcie3")
    assert emulated.name == "cpu-t4-pcie3-64x32-bfloat16.json"
    of_model = profile_path("cpu", SHAPE, kind="4x16x128gated")
    assert of_model.name == "cpu-64x32-float32-4x16x128gated.json"


def test_a_profile_is_measured_once(measure):
    lines = []
    first = load_or_measure("cpu", SHAPE, measure=measure, progress=lines.append)
    assert load_or_measure("cpu", SHAPE, measure=measure, progress=lines.append) == first
    assert load_profile(profile_path("cpu", SHAPE)) == first
    assert measure.calls == 1
    assert len(lines) == 1
    assert "there is no profile" in lines[0]


def test_another_shape_or_link_is_measured_apart(measure):
    load_or_measure("cpu", SHAPE, measure=measure)
    load_or_measure("cpu", SHAPE, emulate="t4-pcie3", measure=measure)
    load_or_measure("cpu", SHAPE, "bfloat16", measure=measure)
    load_or_measure("cpu", Widths(64, 64, "float32"), measure=measure)
    assert measure.calls == 4


@pytest.mark.parametrize(
    "change", [{"torch_version": "0.1"}, {"headrace_version": "0.0.1"}, {"host_hash": "another"}]
)
def test_a_changed_machine_is_measured_again(measure, change):
    profile = load_or_measure("cpu", SHAPE, measure=measure)
    old = replace(profile, identity=replace(profile.identity, **change))
    save_profile(old, profile_path("cpu", SHAPE))
    lines = []
    again = load_or_measure("cpu", SHAPE, measure=measure, progress=lines.append)
    assert measure.calls == 2
    assert again.identity == local_identity()
    assert "out of date" in lines[0]
    assert f"{next(iter(change))} was {next(iter(change.values()))}, is " in lines[0]


def test_a_damaged_profile_is_measured_again(measure):
    path = profile_path("cpu", SHAPE)
    path.parent.mkdir()
    path.write_text("{")
    lines = []
    load_or_measure("cpu", SHAPE, measure=measure, progress=lines.append)
    assert "not JSON" in lines[0]
    assert load_profile(path).name == "measurement 1"


def test_a_quick_profile_is_no_full_one(measure):
    load_or_measure("cpu", SHAPE, quick=True, measure=measure)
    full = load_or_measure("cpu", SHAPE, measure=measure)
    assert load_or_measure("cpu", SHAPE, quick=True, measure=measure) == full
    assert measure.calls == 2


def test_a_file_of_something_else_is_not_used(measure):
    other = load_or_measure("cpu", SHAPE, emulate="t4-pcie3", measure=measure)
    save_profile(other, profile_path("cpu", SHAPE))
    assert load_or_measure("cpu", SHAPE, measure=measure).emulates is None


def test_extra_probes_that_the_stored_profile_lacks_are_added(measure):
    load_or_measure("cpu", SHAPE, measure=measure)
    calls = []
    probes = {"attend_bytes_per_s": lambda _: calls.append(1) or 9.0}
    assert load_or_measure("cpu", SHAPE, measure=measure, extra_probes=probes).attend_rate == 9.0
    count = len(calls)
    assert load_or_measure("cpu", SHAPE, measure=measure, extra_probes=probes).attend_rate == 9.0
    assert (measure.calls, len(calls)) == (1, count)


def test_models_of_the_same_widths_share_the_machine_but_not_their_own_figures(measure):
    def profile(kind, rate):
        probes = {"attend_bytes_per_s": lambda _: rate, "dense_curve[8]": lambda _: rate}
        return load_or_measure("cpu", SHAPE, measure=measure, kind=kind, extra_probes=probes)

    first, other = profile("one", 1.0), profile("other", 2.0)
    assert measure.calls == 1
    assert (first.attend_rate, other.attend_rate) == (1.0, 2.0)
    assert (first.dense_curve, other.dense_curve) == (((8, 1.0),), ((8, 2.0),))
    assert profile("one", 3.0) == first
    # Without a kind nothing of a model is known, also where it was kept there before.
    save_profile(first, profile_path("cpu", SHAPE))
    assert profile("third", 4.0).attend_rate == 4.0
    assert measure.calls == 1


def test_a_place_that_cannot_be_written_is_reported(measure, cache):
    (cache / "profiles").write_text("a file")
    lines = []
    assert load_or_measure("cpu", SHAPE, measure=measure, progress=lines.append)
    assert "used now but not kept" in lines[-1]
