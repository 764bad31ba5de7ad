"""The model called by hand: rows are repeated, chosen and reordered, columns are taken back."""

import pytest
import torch
from tests.support import (
    LOGIT_TOLERANCE,
    SPLITS,
    Batch,
    forward_in_chunks,
    host_cache,
    logit_error,
    make_batch,
    plain_cache,
    shared_model,
)

from headrace.errors import ConfigurationError

KINDS = ("llama-gqa", "qwen3", "opt", "gemma2")


class Pair:
    """The plain model and ours, step by step; every step compares the logits."""

    def __init__(self, name, policy, fraction, lengths=(53, 31, 70)):
        self.model = shared_model(name)
        self.plain = plain_cache(self.model)
        self.plain.activate_past_recording()
        self.ours = host_cache(self.model, policy, fraction)
        self.batch = make_batch(lengths)
        self.done = 0
        self.seed = 100

    def __enter__(self):
        self.run([self.batch.input_ids.shape[1]])
        return self

    def __exit__(self, *error):
        self.ours.close()

    def run(self, sizes):
        caches = (self.plain, self.ours)
        expected, made = (
            forward_in_chunks(self.model, self.batch, cache, sizes, self.done) for cache in caches
        )
        seen = self.batch.attention_mask[:, self.done : self.done + sum(sizes)].bool()
        assert logit_error(expected[seen], made[seen]) <= LOGIT_TOLERANCE
        self.done += sum(sizes)
        assert self.ours.get_seq_length() == self.done
        self.ours.paged.layout.check_integrity()

    def add(self, columns, sizes=None):
        """Give every row further tokens and run them, all at once or one by one."""
        self.seed += 1
        more = make_batch((columns,) * self.batch.input_ids.shape[0], seed=self.seed)
        self.batch = self.batch.with_more(more.input_ids, more.attention_mask)
        self.run(sizes or [columns])

    def rows(self, sources):
        self.batch = Batch(self.batch.input_ids[sources], self.batch.attention_mask[sources])

    def crop(self, columns):
        self.plain.crop(-columns)
        self.ours.crop(-columns)
        self.done -= columns
        self.batch = Batch(
            self.batch.input_ids[:, : self.done], self.batch.attention_mask[:, : self.done]
        )


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_repeated_chosen_and_reordered(name, policy, fraction):
    with Pair(name, policy, fraction) as pair:
        pair.add(5, [1] * 5)
        for cache in (pair.plain, pair.ours):
            cache.batch_repeat_interleave(2)
        pair.rows([0, 0, 1, 1, 2, 2])
        pair.add(20)
        pair.add(14, [1] * 14)
        for cache in (pair.plain, pair.ours):
            cache.reorder_cache(torch.tensor([5, 0, 0, 3, 2, 1]))
        pair.rows([5, 0, 0, 3, 2, 1])
        pair.add(9, [4, 1, 4])
        for cache in (pair.plain, pair.ours):
            cache.batch_select_indices(torch.tensor([4, 1]))
        pair.rows([4, 1])
        pair.add(21, [1] * 21)
        chosen = torch.tensor([False, True])
        for cache in (pair.plain, pair.ours):
            cache.batch_select_indices(chosen)
        pair.rows([1])
        pair.add(17, [1, 16])


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", KINDS)
def test_columns_are_taken_back(name, policy, fraction):
    with Pair(name, policy, fraction) as pair:
        for taken, added in ((1, 3), (3, 1), (2, 30), (29, 4), (4, 1), (1, 17), (15, 40)):
            pair.crop(taken)
            pair.add(added)
            pair.add(6, [1] * 6)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", ["llama-gqa", "opt"])
def test_columns_are_taken_back_into_the_prompt_and_after_rows_were_shared(name, policy, fraction):
    with Pair(name, policy, fraction) as pair:
        pair.add(10, [1] * 10)
        for cache in (pair.plain, pair.ours):
            cache.reorder_cache(torch.tensor([2, 2, 0]))
        pair.rows([2, 2, 0])
        pair.add(7)
        pair.crop(40)
        pair.add(30)
        pair.crop(51)
        pair.add(12, [1] * 12)


def test_crop_to_nothing_and_crop_of_nothing():
    with Pair("llama-gqa", "recompute", 0.5) as pair:
        pair.ours.crop(0)
        assert pair.ours.get_seq_length() == pair.done
        pair.crop(0)
        pair.ours.crop(-1000)
        pair.plain = plain_cache(pair.model)
        pair.done = 0
        assert pair.ours.get_seq_length() == 0
        pair.run([50, 20])


def test_a_window_cannot_be_taken_back_further_than_it_is_kept():
    with Pair("gemma2", "recompute", 0.5) as pair:
        pair.add(100)
        pair.crop(40)
        with pytest.raises(ConfigurationError, match="80 columns were to be taken back"):
            pair.ours.crop(-40)
        assert pair.ours.get_seq_length() == pair.done
        pair.add(3)


@pytest.mark.parametrize(("policy", "fraction"), SPLITS)
@pytest.mark.parametrize("name", ["llama-gqa", "opt", "gpt2", "mistral-window"])
def test_without_mask_and_positions(name, policy, fraction):
    model, ids = shared_model(name), make_batch((60, 60)).input_ids
    plain = plain_cache(model)
    with host_cache(model, policy, fraction) as cache, torch.no_grad():
        for part in (ids[:, :37], ids[:, 37:38], ids[:, 38:39], ids[:, 39:]):
            expected = model(part, past_key_values=plain).logits
            made = model(part, past_key_values=cache).logits
            assert logit_error(expected, made) <= LOGIT_TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "gpt2"])
def test_embeddings_instead_of_ids(name):
    model, batch = shared_model(name), make_batch((60, 33))
    plain = plain_cache(model)
    with host_cache(model, "recompute", 0.5) as cache, torch.no_grad():
        for part in (slice(0, 41), slice(41, 42), slice(42, 60)):
            inputs = {
                "inputs_embeds": model.get_input_embeddings()(batch.input_ids[:, part]),
                "attention_mask": batch.attention_mask[:, : part.stop],
                "position_ids": torch.arange(part.start, part.stop).expand(2, -1),
            }
            expected = model(**inputs, past_key_values=plain).logits
            made = model(**inputs, past_key_values=cache).logits
            seen = batch.attention_mask[:, part].bool()
            assert logit_error(expected[seen], made[seen]) <= LOGIT_TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "gpt-neox"])
def test_positions_far_beyond_what_was_reserved(name):
    model, ids = shared_model(name), make_batch((60,)).input_ids
    plain = plain_cache(model)
    with host_cache(model, "recompute", 1.0, reserve_tokens=1) as cache, torch.no_grad():
        for part, first in ((slice(0, 50), 1000), (slice(50, 51), 5000), (slice(51, 60), 9000)):
            positions = torch.arange(part.stop - part.start)[None] + first
            expected = model(ids[:, part], position_ids=positions, past_key_values=plain).logits
            made = model(ids[:, part], position_ids=positions, past_key_values=cache).logits
            assert logit_error(expected, made) <= LOGIT_TOLERANCE


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_with_gradients_and_in_inference_mode(mode):
    """Nothing of the graph is kept, and the modes of different steps may differ."""
    model, ids = shared_model("llama-gqa"), make_batch((60, 60)).input_ids
    plain = plain_cache(model)
    with host_cache(model, "recompute", 0.5) as cache:
        for part, own in (
            (slice(0, 50), mode),
            (slice(50, 51), torch.no_grad),
            (slice(51, 60), mode),
        ):
            with torch.no_grad():
                expected = model(ids[:, part], past_key_values=plain).logits
            with own():
                made = model(ids[:, part], past_key_values=cache).logits
            assert logit_error(expected, made.detach().clone()) <= LOGIT_TOLERANCE
        with torch.no_grad():
            expected = model(ids[:, :1], past_key_values=plain).logits
            made = model(ids[:, :1], past_key_values=cache).logits
        assert logit_error(expected, made) <= LOGIT_TOLERANCE
