"""Greedy tokens and logits in float32: every architecture, every policy, ragged rows."""

import pytest
from tests.support import (
    CONFIGS,
    POLICIES,
    assert_same,
    generate,
    greedy_alone,
    host_cache,
    make_batch,
    shared_model,
)

from headrace.hf import planning
from headrace.plan.policies import Split
from headrace.runtime.pages import PageKind

ROTATED_OR_NOT = ("llama-gqa", "gemma2", "opt", "gpt-neox")
"""One of each kind, for what does not depend on how keys are made."""


@pytest.mark.parametrize(("policy", "fraction"), POLICIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_the_plain_model(name, policy, fraction):
    model = shared_model(name)
    with host_cache(model, policy, fraction) as cache:
        made = generate(model, make_batch(), cache)
        assert cache.notes == ()
        cache.paged.layout.check_integrity()
    assert_same(greedy_alone(name), made)


@pytest.mark.parametrize(
    "split",
    [Split(0.3, 0.3, 0.4), Split(0.5, 0.5, 0.0), Split(0.2, 0.0, 0.8), Split(0.9, 0.1, 0.0)],
)
@pytest.mark.parametrize("name", ROTATED_OR_NOT)
def test_three_paths_at_once(monkeypatch, name, split):
    model = shared_model(name)
    monkeypatch.setattr(planning, "_plain_split", lambda policy, options: (policy, split))
    with host_cache(model, "stream", None) as cache:
        made = generate(model, make_batch(), cache)
        cache.paged.layout.check_integrity()
        assert cache.paged.layout.pages(PageKind.RESIDENT)
    assert_same(greedy_alone(name), made)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plan_of_a_published_machine_is_exact(name):
    model = shared_model(name)
    with host_cache(model, "auto", None, profile="a100-40gb-pcie4") as cache:
        made = generate(model, make_batch(), cache)
        assert cache.plan is not None
    assert_same(greedy_alone(name), made)
