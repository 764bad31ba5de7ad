"""The paper's schedule on the paper's machine: its optimum and its ideal saving, both ways."""

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.cost import (
    activation_bytes_per_token,
    kv_bytes_per_token,
    rebuild_flops_per_token,
)
from headrace.model.published import published_shape
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind
from headrace.plan.policies import (
    LayerTimes,
    Policy,
    kvpr_fraction,
    policy_times,
    recompute_fraction,
    recompute_split,
)
from headrace.plan.schedule import build_program, layer_granules, order_granules
from headrace.plan.simulate import simulate, steady_step_s

PAPER = [("opt-6.7b", 0.704, 0.352), ("opt-13b", 0.656, 0.328), ("opt-30b", 0.576, 0.288)]
COUNTED = (Kind.LOAD_ACTIVATIONS, Kind.LOAD_KV, Kind.REBUILD)
PAGES, GRANULES, LAYERS, STEPS = 10_000, 100, 2, 3


def paper_times(shape):
    profile = machine("paper-a100")
    return LayerTimes.from_rates(
        kv_bytes_per_token(shape),
        activation_bytes_per_token(shape),
        rebuild_flops_per_token(shape),
        profile.h2d_bytes_per_s,
        profile.gemm_rate(shape.dtype),
    )


def simulated_step_s(shape, policy, fraction):
    """A step in steady state, with only the link and the rebuilding counted."""
    shape = replace(shape, num_layers=LAYERS)
    block_tokens = 16
    granule_bytes = PAGES // GRANULES * block_tokens * kv_bytes_per_token(shape)
    geometry = Geometry(block_tokens, granule_bytes, ring_slots=GRANULES)
    context = PAGES * block_tokens
    granules = layer_granules(recompute_split(fraction), geometry, 1, context, shape)
    assert sum(granule.pages for granule in granules) == PAGES
    layers = [order_granules(granules, policy)] * LAYERS
    program = build_program(shape, layers, 1, 1, geometry.ring_slots, policy)
    counted = tuple(
        replace(op, memory_bytes=0, flops=op.flops if op.kind in COUNTED else 0)
        for op in program.operations
    )
    timeline = simulate(
        replace(program, operations=counted), machine("paper-a100"), shape.dtype, STEPS
    )
    return steady_step_s(timeline)


@pytest.mark.parametrize(("name", "fraction", "saving"), PAPER)
def test_closed_form(name, fraction, saving):
    times = paper_times(published_shape(name))
    assert kvpr_fraction(times) == pytest.approx(fraction, abs=0.0005)
    reached = policy_times(times)
    assert 1 - reached[Policy.KVPR] / reached[Policy.STREAM] == pytest.approx(saving, abs=0.0005)


@pytest.mark.parametrize(("name", "fraction", "saving"), PAPER)
def test_simulation(name, fraction, saving):
    shape = published_shape(name)
    scanned = [step / 1000 for step in range(round(fraction * 1000) - 12, 1000, 3)][:9]
    scanned += [0.1 * tenth for tenth in range(11)]
    times = {x: simulated_step_s(shape, Policy.KVPR, x) for x in scanned}
    best = min(times, key=times.get)
    assert best == pytest.approx(fraction, abs=0.0005)
    whole = simulated_step_s(shape, Policy.STREAM, 0.0)
    assert 1 - times[best] / whole == pytest.approx(saving, abs=0.0005)


@pytest.mark.parametrize("name", ["opt-6.7b", "opt-13b", "opt-30b", "gemma-2-9b", "llama-2-13b"])
@pytest.mark.parametrize("policy", [Policy.KVPR, Policy.RECOMPUTE])
def test_simulated_steady_state_is_the_closed_form(name, policy):
    shape = replace(published_shape(name), windowed_layers=0)
    times = paper_times(shape)
    best = recompute_fraction(times) if policy is Policy.RECOMPUTE else kvpr_fraction(times)
    tokens = PAGES * 16 * LAYERS
    predicted_s = policy_times(times)[policy] * tokens
    assert simulated_step_s(shape, policy, best) == pytest.approx(predicted_s, rel=0.02)


def test_recompute_gains_tend_to_twice_the_speed():
    reached = policy_times(paper_times(published_shape("opt-6.7b")))
    assert reached[Policy.STREAM] / reached[Policy.RECOMPUTE] == pytest.approx(2.0)
