from collections import Counter

import pytest
import torch
from tests.support import shared_model
from transformers import GenerationConfig

from headrace.engine.request import SamplingParams
from headrace.engine.sampling import RowSampler, choose_tokens

VOCABULARY = 40
DRAWS = 300

WARPED = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.8},
    {"top_k": 10_000},
    {},
]


def logits(rows=1, seed=0):
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3


def draws(params, count=DRAWS):
    sampler = RowSampler(params)
    return [sampler.choose(logits()[0]) for _ in range(count)]


def warped_as_in_transformers(settings):
    """Return the probabilities that `generate` of `transformers` would draw from."""
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    processors = shared_model("llama")._get_logits_processor(config)
    return processors(torch.zeros((1, 1), dtype=torch.int64), logits()).softmax(dim=-1)


def test_temperature_zero_takes_the_likeliest_token_and_draws_nothing():
    sampler = RowSampler(SamplingParams(temperature=0.0, seed=3))
    state = torch.get_rng_state()
    assert sampler.greedy
    assert sampler.choose(logits()[0]) == int(logits()[0].argmax())
    assert choose_tokens([sampler] * 4, logits(4)) == logits(4).argmax(dim=-1).tolist()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", WARPED)
def test_draws_are_from_the_probabilities_of_transformers(settings):
    probabilities = warped_as_in_transformers(settings)
    generator = torch.Generator().manual_seed(11)
    expected = [int(torch.multinomial(probabilities, 1, generator=generator)) for _ in range(50)]
    assert draws(SamplingParams(seed=11, **settings), 50) == expected


def test_top_k_keeps_the_likeliest_tokens():
    likeliest = set(logits()[0].topk(4).indices.tolist())
    assert set(draws(SamplingParams(temperature=5.0, top_k=4, seed=1))) == likeliest


def test_top_p_keeps_the_fewest_tokens_that_hold_the_share():
    ordered = logits()[0].softmax(dim=-1).sort(descending=True)
    count = int((ordered.values.cumsum(dim=-1) < 0.9).sum()) + 1
    found = set(draws(SamplingParams(top_p=0.9, seed=1), 2000))
    assert found == set(ordered.indices[:count].tolist())


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_varied():
    likeliest = int(logits()[0].argmax())
    assert set(draws(SamplingParams(temperature=0.01, seed=1), 50)) == {likeliest}
    counts = Counter(draws(SamplingParams(temperature=100.0, seed=1)))
    assert len(counts) > VOCABULARY // 2


def test_the_same_seed_draws_the_same_tokens_and_another_does_not():
    first, again, other = (draws(SamplingParams(seed=seed), 30) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_rows_without_a_seed_differ():
    first, second = (draws(SamplingParams(temperature=100.0), 30) for _ in range(2))
    assert first != second


def test_a_row_draws_the_same_whatever_its_neighbours_do():
    def row(neighbours):
        samplers = [RowSampler(SamplingParams(seed=5)), *map(RowSampler, neighbours)]
        batch = torch.cat([logits(), *(logits(seed=1) for _ in neighbours)])
        return [choose_tokens(samplers, batch)[0] for _ in range(20)]

    alone = row([])
    assert row([SamplingParams(temperature=0.0)]) == alone
    assert row([SamplingParams(seed=5), SamplingParams(temperature=2.0)]) == alone


def test_global_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    draws(SamplingParams(), 3)
    assert torch.equal(torch.get_rng_state(), state)
