"""Prompts that come in pieces: odd chunk sizes, padding in every place."""

import pytest
import torch
from tests.support import (
    CONFIGS,
    SPLITS,
    Batch,
    assert_same,
    assert_same_where_seen,
    chunk_sizes,
    forward_in_chunks,
    generate,
    host_cache,
    make_batch,
    plain_cache,
    shared_model,
)

KINDS = ("llama-gqa", "mistral-window", "gemma2", "gpt-neox", "gpt2", "opt")


@pytest.mark.parametrize("size", [7, 13, 41])
@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_in_chunks_has_the_logits_of_the_plain_model(name, policy, fraction, size):
    model, batch = shared_model(name), make_batch()
    sizes = chunk_sizes(batch.input_ids.shape[1], size)
    expected = forward_in_chunks(model, batch, plain_cache(model), sizes)
    with host_cache(model, policy, fraction) as cache:
        made = forward_in_chunks(model, batch, cache, sizes)
        cache.paged.layout.check_integrity()
        assert cache.paged.layout.lengths == [83, 50, 97]
    assert_same_where_seen(expected, made, batch.attention_mask)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_chunks_of_one_token_and_of_everything_may_be_mixed(policy, fraction):
    model, batch = shared_model("llama-gqa"), make_batch()
    sizes = [1, 1, 30, 1, 17, 1, 40, 6]
    expected = forward_in_chunks(model, batch, plain_cache(model), [97])
    with host_cache(model, policy, fraction) as cache:
        made = forward_in_chunks(model, batch, cache, sizes)
    assert_same_where_seen(expected, made, batch.attention_mask)


@pytest.mark.parametrize("size", [7, 13, 64])
@pytest.mark.parametrize("name", KINDS)
def test_generate_prefills_in_chunks(name, size):
    model, batch = shared_model(name), make_batch()
    expected = generate(model, batch, plain_cache(model))
    with host_cache(model, "recompute", 0.5) as cache:
        made = generate(model, batch, cache, prefill_chunk_size=size)
    assert_same(expected, made)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_a_chunk_in_which_no_row_has_more_than_one_token(policy, fraction):
    """The padding is wider than the chunk, so the only tokens of the chunk are its last column."""
    model, inner = shared_model("llama-gqa"), make_batch((61, 40, 61))
    wide = torch.zeros(3, 6, dtype=torch.int64)
    batch = Batch(
        torch.cat([wide, inner.input_ids], dim=1), torch.cat([wide, inner.attention_mask], dim=1)
    )
    sizes = chunk_sizes(67, 7)
    expected = forward_in_chunks(model, batch, plain_cache(model), [67])
    with host_cache(model, policy, fraction) as cache:
        made = forward_in_chunks(model, batch, cache, sizes)
    assert_same_where_seen(expected, made, batch.attention_mask)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_padding_on_the_right_and_in_the_middle_is_not_cached(policy, fraction):
    model, batch = shared_model("qwen3"), make_batch((90, 90, 90))
    batch.attention_mask[0, 70:] = 0
    batch.attention_mask[1, 20:33] = 0
    expected = forward_in_chunks(model, batch, plain_cache(model), [90])
    with host_cache(model, policy, fraction) as cache:
        made = forward_in_chunks(model, batch, cache, [50, 40])
        assert cache.paged.layout.lengths == [70, 77, 90]
    assert_same_where_seen(expected, made, batch.attention_mask)


@pytest.mark.parametrize("name", ["gemma2", "mistral-window"])
def test_a_prompt_shorter_than_the_window_and_one_token_long(name):
    model = shared_model(name)
    for lengths in ((1, 1), (9, 3), (24, 23)):
        batch = make_batch(lengths)
        expected = generate(model, batch, plain_cache(model), 30)
        with host_cache(model, "recompute", 1.0) as cache:
            assert_same(expected, generate(model, batch, cache, 30))
