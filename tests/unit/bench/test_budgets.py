from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from headrace.bench import budgets
from headrace.bench.budgets import choose_budget, choose_wanted
from headrace.bench.catalogue import CASES
from headrace.bench.sizes import Limits, Most, fit
from headrace.engine import loading
from headrace.engine.loading import dummy_model
from headrace.hardware.catalog import machine
from headrace.hf import placing
from headrace.hf.machine import shape_of
from headrace.hf.placing import place
from headrace.hf.set_aside import LIBRARY_BYTES, set_aside_of
from headrace.plan.plan import make_plan
from headrace.plan.workload import Workload
from headrace.units import parse_bytes

STEPS = 11
ROOMY = Limits(host_bytes=1 << 45, device_bytes=1 << 45)


def chosen(emulated, name, most=None, narrow=8):
    """Return a case's sizes, model, wish and budget, for layers that are very narrow."""
    case = CASES[name]
    fitted = fit(case, "bfloat16", ROOMY, STEPS, most)
    if most is not None:
        fitted = replace(fitted, sizes=replace(fitted.sizes, narrow=narrow))
    sizes = fitted.sizes
    model = dummy_model(sizes.model, layers=2, narrow=narrow, device="cpu").model
    wanted = choose_wanted(case, fitted, model, emulated, STEPS)
    place(model, wanted.placing, torch.device("cpu"), emulated)
    return fitted, model, wanted, choose_budget(case, fitted, wanted, model, emulated, STEPS)


@pytest.fixture
def profile(emulated):
    return replace(emulated, host_attend_bytes_per_s=2e9)


def plan_of(fitted, model, budget, profile):
    sizes = fitted.sizes
    shape = shape_of(model)
    work = Workload(sizes.rows, sizes.prompt_len, STEPS + 1)
    return make_plan(
        shape,
        work,
        replace(profile, device_memory_bytes=1 << 40),
        gpu_memory_bytes=set_aside_of(model, work).left_of(budget.gpu_bytes),
        weights_streamed=budget.weights_on_host,
        embedding_on_host=shape.embedding_on_host,
    )


def test_a_small_slice_has_room_for_the_same_share_of_the_cache(profile):
    fitted, model, wanted, budget = chosen(profile, "opt-6.7b-24gib", Most(2, 8, 512))
    assert budget.weights_on_host == wanted.placing.share == 0.0
    assert 0.1 < wanted.resident < 0.5
    plan = plan_of(fitted, model, budget, profile)
    assert plan.feasible
    assert plan.split.resident == pytest.approx(wanted.resident, abs=0.08)
    assert "24GiB asked" in budget.words
    # Buffers of full transfer may be larger than such a cache.
    assert budget.of("auto") == budget.gpu_bytes
    assert budget.of("stream") is None


def test_a_model_that_does_not_fit_streams_the_same_share_of_its_weights(profile):
    fitted, model, wanted, budget = chosen(profile, "opt-13b-16gib", Most(2, 8, 512))
    share = wanted.placing.share
    assert 0.2 < share < 0.8
    # A parameter is streamed whole or not at all.
    assert share <= budget.weights_on_host < share + 0.15
    assert plan_of(fitted, model, budget, profile).feasible


def test_at_full_size_the_budget_is_what_is_asked_for(emulated):
    machine_profile = replace(machine("a100-40gb-pcie4"), device="cpu")
    case = replace(CASES["opt-6.7b-24gib"], weights_on_host=0.0)
    fitted = fit(case, "bfloat16", ROOMY, STEPS)
    model = dummy_model("opt-6.7b", layers=1, narrow=8, device="cpu").model
    wanted = choose_wanted(case, fitted, model, machine_profile, STEPS)
    budget = choose_budget(case, fitted, wanted, model, machine_profile, STEPS)
    assert (budget.gpu_bytes, budget.words, budget.only_auto) == (24 << 30, "", False)
    assert budget.of("stream") == budget.of("auto") == 24 << 30


def test_a_case_without_a_budget_gets_none(profile):
    _, _, wanted, budget = chosen(profile, "fits-1", Most(2))
    assert wanted.resident is None
    assert (budget.gpu_bytes, budget.weights_on_host, budget.words) == (None, 0.0, "")


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_of_80_gib_every_policy_of_every_case_fits(name, monkeypatch):
    host_bytes = 120 << 30
    monkeypatch.setattr(placing, "available_host_memory_bytes", lambda: host_bytes)
    profile = replace(machine("h100-80gb-pcie5"), host_memory_bytes=host_bytes)
    case = CASES[name]
    sizes = fit(case, "bfloat16", Limits(host_bytes, 80 << 30), STEPS).sizes
    context = sizes.prompt_len + STEPS + 1
    config = loading._config(sizes.shape, sizes.layers, sizes.shape.vocab_size, context)
    weight = torch.empty(0, dtype=torch.bfloat16)
    model = SimpleNamespace(config=config, parameters=lambda: iter([weight]))
    found = budgets._placing(case, sizes, model, profile, STEPS)
    room = case.gpu_memory and parse_bytes(case.gpu_memory, setting="") - LIBRARY_BYTES
    for policy in case.policies:
        plan = make_plan(
            replace(sizes.shape, max_context=context),
            Workload(sizes.rows, sizes.prompt_len, STEPS + 1),
            profile,
            policy=policy,
            gpu_memory_bytes=room,
            weights_streamed=found.share,
            embedding_on_host=found.embedding_on_host,
        )
        assert plan.feasible, (policy, plan.reasons)
