"""What launching takes in steps: measured on a GPU, and here of a thread that does all itself."""

import math
from contextlib import contextmanager

import pytest

from headrace.hf import launch_probes
from headrace.hf.launch_probes import LaunchProbes, _Launched
from headrace.hf.machine import shape_of
from headrace.plan.policies import Policy

GRANULES = {Policy.STREAM: 1.0, Policy.RECOMPUTE: 2.0, Policy.HOST: 1.0}


@pytest.fixture
def at_work():
    return []


@pytest.fixture
def probes(demo, small, at_work):
    @contextmanager
    def attending():
        at_work.append(True)
        yield
        at_work.pop()

    return LaunchProbes(demo.model, shape_of(demo.model), attending)


@pytest.fixture
def steps(probes, monkeypatch, at_work):
    """Stands in for steps: a layer takes 1 ms, 3 ms kernel by kernel, and 5 ms with pages.

    While the cores attend, half as long again.
    """

    def step(policy, prompt_len, *, record=True):
        layer_s = 0.005 if prompt_len > 1 else 0.001 if record else 0.003
        return _Launched(layer_s * (1.5 if at_work else 1), 0.002, GRANULES[policy])

    monkeypatch.setattr(probes, "_step", step)


def test_only_a_gpu_is_asked(probes):
    assert probes.by_name() == {}


def test_steps_of_every_path_are_taken(probes):
    for policy, least in GRANULES.items():
        launched = probes._step(policy, 1 + launch_probes._PAGED_TOKENS)
        assert 0 < launched.layer_s < math.inf
        assert launched.besides_s >= 0
        assert launched.parts >= min(1.0, least)
    assert probes._rebuilds()


def test_a_step_is_its_layers_and_what_it_takes_besides(probes, emulated, monkeypatch):
    moments = iter(range(10**6))
    monkeypatch.setattr(launch_probes.time, "perf_counter", lambda: float(next(moments)))
    launched = probes._step(Policy.STREAM, 1)
    # A moment before and after a forward, and one at each layer.
    assert launched.layer_s == 1
    assert launched.besides_s == 1


def test_layers_are_timed_with_an_empty_cache(probes, emulated, steps):
    assert probes.step_s(emulated) == 0.002
    assert probes.layer_s(emulated) == 0.001
    assert probes.plain_layer_s(emulated) == 0.003


def test_granules_and_the_cores_are_what_makes_a_layer_longer(probes, steps):
    assert probes.granule_s(Policy.STREAM) == pytest.approx(0.004)
    assert probes.granule_s(Policy.RECOMPUTE) == pytest.approx(0.002)
    assert probes.granule_s(Policy.HOST) == pytest.approx(0.004)


def test_launching_is_timed_while_the_cores_attend(probes, emulated, steps, at_work):
    assert probes.while_attend(emulated) == pytest.approx(1.5)
    assert not at_work


def test_no_granule_takes_less_than_nothing(probes, emulated, steps):
    probes._empty = _Launched(1.0, 0.0, 1.0)
    assert probes.granule_s(Policy.STREAM) == 0
