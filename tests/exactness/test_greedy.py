"""Greedy tokens and logits in float32: every architecture, every policy, ragged rows."""

import functools

import pytest
from tests.support import (
    CONFIGS,
    POLICIES,
    Generated,
    assert_same,
    generate,
    host_cache,
    make_batch,
    plain_cache,
    shared_model,
)

ROTATED_OR_NOT = ("llama-gqa", "gemma2", "opt", "gpt-neox")
"""One of each kind, for what does not depend on how keys are made."""


@functools.cache
def expected(name: str) -> Generated:
    model = shared_model(name)
    return generate(model, make_batch(), plain_cache(model))


@pytest.mark.parametrize(("policy", "fraction"), POLICIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_the_plain_model(name, policy, fraction):
    model = shared_model(name)
    with host_cache(model, policy, fraction) as cache:
        made = generate(model, make_batch(), cache)
        assert cache.notes == ()
        cache.paged.layout.check_integrity()
    assert_same(expected(name), made)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plan_of_a_published_machine_is_exact(name):
    model = shared_model(name)
    with host_cache(model, "auto", None, profile="a100-40gb-pcie4") as cache:
        made = generate(model, make_batch(), cache)
        assert cache.plan is not None
    assert_same(expected(name), made)
