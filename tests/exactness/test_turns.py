"""A second turn on the same cache, rows that end early, and a mask that hides cached tokens."""

import pytest
import torch
from tests.support import (
    CONFIGS,
    PAD,
    SPLITS,
    Batch,
    Generated,
    assert_same,
    generate,
    host_cache,
    make_batch,
    make_model,
    plain_cache,
    shared_model,
)


def after(turn: Batch, made: Generated, length: int, seed: int) -> Batch:
    """Return the conversation so far with the user's next tokens."""
    rows, columns = turn.input_ids.shape
    reply = made.tokens[:, columns:]
    user = make_batch((length,) * rows, seed=seed).input_ids
    more = torch.cat([reply, user], dim=1)
    return turn.with_more(more, torch.ones_like(more))


def assert_later_turns(name: str, policy: str, fraction: float | None, lengths: list[int]) -> None:
    model, first = shared_model(name), make_batch((53, 31, 70))
    plain = plain_cache(model)
    with host_cache(model, policy, fraction) as cache:
        batch = first
        expected, made = generate(model, batch, plain), generate(model, batch, cache)
        assert_same(expected, made)
        for turn, length in enumerate(lengths):
            batch = after(batch, expected, length, seed=10 + turn)
            expected = generate(model, batch, plain)
            made = generate(model, batch, cache)
            assert_same(expected, made)
            cache.paged.layout.check_integrity()


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_second_turn_continues_the_cache(name, policy, fraction):
    assert_later_turns(name, policy, fraction, [37])


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_many_turns_of_odd_lengths_go_beyond_what_was_reserved(name):
    assert_later_turns(name, "recompute", 0.6, [1, 2, 15, 16, 17, 90])


def first_turn_with_early_ends(name: str) -> tuple[object, Batch, int]:
    """Return a model, a batch, and a token which ends some row of it early."""
    model = make_model(name)
    batch = make_batch((53, 31, 70))
    free = generate(model, batch, plain_cache(model), 24).tokens[:, 70:]
    for token in free[:, 5:12].flatten().tolist():
        ends = [row.index(token) if token in row else 99 for row in free.tolist()]
        if min(ends) > 2 and max(ends) == 99:
            return model, batch, token
    raise AssertionError("no row ends early with this seed")


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "opt", "gemma2", "mistral-window"])
@pytest.mark.parametrize("user_length", [4, 40])
def test_padding_after_the_end_of_a_row_is_hidden_later(name, policy, fraction, user_length):
    model, batch, end = first_turn_with_early_ends(name)
    plain = plain_cache(model)
    with host_cache(model, policy, fraction) as cache:
        expected = generate(model, batch, plain, 24, eos_token_id=end)
        made = generate(model, batch, cache, 24, eos_token_id=end)
        assert_same(expected, made)
        reply = expected.tokens[:, 70:]
        padding = (reply == PAD) & ((reply == end).cumsum(1) > 0)
        assert padding.any()
        user = make_batch((user_length,) * 3, seed=5).input_ids
        second = batch.with_more(
            torch.cat([reply, user], dim=1),
            torch.cat([~padding, torch.ones_like(user, dtype=torch.bool)], dim=1),
        )
        expected = generate(model, second, plain, 20)
        made = generate(model, second, cache, 20)
        assert_same(expected, made)
        assert any(row.hidden for row in cache.paged.layout.rows)
        cache.paged.layout.check_integrity()


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "mistral-window"])
def test_a_second_turn_may_be_ragged_itself(name, policy, fraction):
    """Padding lies between the turns; windows count columns, as the plain model does."""
    model, first = shared_model(name), make_batch((53, 31, 70))
    plain = plain_cache(model)
    with host_cache(model, policy, fraction) as cache:
        expected, made = generate(model, first, plain), generate(model, first, cache)
        assert_same(expected, made)
        user = make_batch((5, 33, 20), seed=6)
        reply = expected.tokens[:, 70:]
        second = first.with_more(reply, torch.ones_like(reply)).with_more(
            user.input_ids, user.attention_mask
        )
        expected, made = generate(model, second, plain), generate(model, second, cache)
        assert_same(expected, made)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
def test_a_mask_may_hide_tokens_anywhere_and_show_them_again(policy, fraction):
    model, first = shared_model("llama-gqa"), make_batch((60, 60))
    plain = plain_cache(model)
    with host_cache(model, policy, fraction) as cache:
        generate(model, first, plain), generate(model, first, cache)
        columns = plain.get_seq_length()
        assert cache.get_seq_length() == columns
        generator = torch.Generator().manual_seed(3)
        for _ in range(6):
            total = plain.get_seq_length() + 1
            mask = (torch.rand(2, total, generator=generator) < 0.6).to(torch.int64)
            mask[:, -1] = 1
            inputs = {
                "input_ids": torch.full((2, 1), 7),
                "attention_mask": mask,
                "position_ids": torch.full((2, 1), total - 1),
            }
            with torch.no_grad():
                expected = model(**inputs, past_key_values=plain).logits
                made = model(**inputs, past_key_values=cache).logits
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
