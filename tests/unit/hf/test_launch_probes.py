"""What launching takes in steps: measured on a GPU, and here of a thread that does all itself."""

import math

import pytest

from headrace.hf import launch_probes
from headrace.hf.launch_probes import LaunchProbes
from headrace.hf.machine import shape_of
from headrace.plan.policies import Policy

GRANULES = {Policy.STREAM: 4, Policy.RECOMPUTE: 8, Policy.HOST: 2}


@pytest.fixture
def probes(demo, small):
    return LaunchProbes(demo.model, shape_of(demo.model))


@pytest.fixture
def steps(probes, monkeypatch):
    """Stands in for steps: those with an empty cache take 6 ms, or 18, the others 14 ms."""

    def step(policy, prompt_len, *, record=True):
        if prompt_len == 1:
            return (0.006 if record else 0.018), 0
        return 0.014, GRANULES[policy]

    monkeypatch.setattr(probes, "_step", step)


def test_only_a_gpu_is_asked(probes):
    assert probes.by_name() == {}


def test_steps_of_every_path_are_taken(probes, emulated):
    layers = probes._shape.num_layers
    for policy in GRANULES:
        step_s, parts = probes._step(policy, 1 + launch_probes._PAGED_TOKENS)
        assert 0 < step_s < math.inf
        assert parts >= layers
        assert parts == layers or policy is Policy.RECOMPUTE
    empty_s, parts = probes._step(Policy.STREAM, 1)
    assert empty_s > 0
    assert parts == 0


def test_a_layer_is_part_of_a_step_with_an_empty_cache(probes, emulated, steps):
    layers = probes._shape.num_layers
    assert probes.layer_s(emulated) == pytest.approx(0.006 / layers)
    assert probes.plain_layer_s(emulated) == pytest.approx(0.018 / layers)


def test_granules_and_the_cores_are_what_makes_it_longer(probes, emulated, steps):
    probes.layer_s(emulated)
    assert probes.granule_s(Policy.STREAM) == pytest.approx(0.008 / 4)
    assert probes.granule_s(Policy.RECOMPUTE) == pytest.approx(0.008 / 8)
    assert probes.host_s(emulated) == pytest.approx(0.008 / 2)


def test_where_nothing_is_loaded_a_granule_takes_nothing(probes, emulated, steps, monkeypatch):
    probes.layer_s(emulated)
    monkeypatch.setitem(GRANULES, Policy.RECOMPUTE, 0)
    assert probes.granule_s(Policy.RECOMPUTE) == 0


def test_no_figure_is_negative(probes, emulated, steps):
    probes._layer_s = 1.0
    assert probes.granule_s(Policy.STREAM) == 0
