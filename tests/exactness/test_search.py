"""Beam search, sampling, several answers, and drafted tokens: all that moves rows and columns."""

import pytest
import torch
from tests.support import (
    CONFIGS,
    SPLITS,
    Generated,
    assert_same,
    generate,
    host_cache,
    make_batch,
    make_model,
    plain_cache,
    shared_model,
)

KINDS = ("llama-gqa", "gemma2", "mistral-window", "gpt2")


def assert_same_with(name: str, policy: str, fraction: float | None, **options) -> Generated:
    model, batch = shared_model(name), make_batch((40, 23, 61))
    torch.manual_seed(11)
    expected = generate(model, batch, plain_cache(model), **options)
    torch.manual_seed(11)
    with host_cache(model, policy, fraction) as cache:
        made = generate(model, batch, cache, **options)
        cache.paged.layout.check_integrity()
    assert_same(expected, made)
    return expected


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_beam_search(name, policy, fraction):
    assert_same_with(name, policy, fraction, num_beams=3, num_return_sequences=2)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_beam_search_that_runs_long_shares_and_parts_pages(policy, fraction):
    assert_same_with("llama-gqa", policy, fraction, num_beams=4, new_tokens=50)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", KINDS)
def test_sampling_with_a_seed(name, policy, fraction):
    options = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.95}
    made = assert_same_with(name, policy, fraction, num_return_sequences=3, **options)
    assert len({tuple(row.tolist()) for row in made.tokens[:3]}) > 1


@pytest.mark.parametrize("name", KINDS)
def test_sampling_in_beams_with_a_seed(name):
    assert_same_with(name, "recompute", 0.5, do_sample=True, num_beams=3)


def repeating_prompt(model, length: int = 66):
    """Return one row that repeats itself, so that drafts from the prompt come and are taken."""
    batch = make_batch((length,))
    batch.input_ids[0] = batch.input_ids[0, :11].repeat(length // 11)
    return batch


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2", "phi3", "gpt-neox"])
def test_tokens_looked_up_in_the_prompt_are_verified_and_taken_back(name, policy, fraction):
    model = shared_model(name)
    batch = repeating_prompt(model)
    expected = generate(model, batch, plain_cache(model), 40)
    with host_cache(model, policy, fraction) as cache:
        made = generate(model, batch, cache, 40, prompt_lookup_num_tokens=3)
        cache.paged.layout.check_integrity()
    assert_same(expected, made)


@pytest.mark.parametrize("name", ["gemma2", "mistral-window"])
def test_drafts_are_taken_back_from_windows(name):
    model = shared_model(name)
    batch = repeating_prompt(model)
    expected = generate(model, batch, plain_cache(model), 40)
    with host_cache(model, "recompute", 0.5) as cache:
        made = generate(model, batch, cache, 40, prompt_lookup_num_tokens=3)
    assert_same(expected, made)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2"])
def test_an_assistant_model_drafts(name):
    model, assistant = shared_model(name), make_model(name, seed=0)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.mul_(1 + 1e-2 * torch.randn_like(parameter))
    batch = make_batch((66,))
    expected = generate(model, batch, plain_cache(model), 40)
    with host_cache(model, "recompute", 0.5) as cache:
        made = generate(model, batch, cache, 40, assistant_model=assistant)
    assert_same(expected, made)
