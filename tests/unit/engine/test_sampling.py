import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import shared_model
from transformers import GenerationConfig

from headrace.engine import sampling
from headrace.engine.request import SamplingParams
from headrace.engine.sampling import Choice, RowSampler, choose_tokens
from headrace.errors import ConfigurationError, ModelError

VOCABULARY = 40
DRAWS = 300

WARPED = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.9, "min_p": 0.2},
    {"top_k": 10_000},
    {},
]
ANY = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.0, "min_tokens": 4},
    {"seed": 3, "temperature": 0.8, "top_p": 0.9},
    {"seed": 3, "top_k": 7, "frequency_penalty": 1.0, "logit_bias": {5: 3.0}},
    {"seed": 4, "min_p": 0.05, "logprobs": 0},
    {},
]
END = 11


def logits(rows=1, seed=0, vocabulary=VOCABULARY):
    return torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed)) * 3


def draws(params, count=DRAWS):
    sampler = RowSampler(params)
    return [sampler.choose(logits()[0]).token_id for _ in range(count)]


def warped_as_in_transformers(settings):
    """Return the probabilities that `generate` of `transformers` would draw from."""
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    processors = shared_model("llama")._get_logits_processor(config)
    return processors(torch.zeros((1, 1), dtype=torch.int64), logits()).softmax(dim=-1)[0]


def penalised(logits_V, params, prompt, generated):
    """Return a row's logits as the parameters' definitions have them, number by number."""
    changed = []
    for token, logit in enumerate(logits_V.tolist()):
        logit += (params.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in generated:
            over = params.repetition_penalty
            logit = logit / over if logit > 0 else logit * over
        times = generated.count(token)
        logit -= params.frequency_penalty * times + params.presence_penalty * (times > 0)
        if token == END and len(generated) < params.min_tokens:
            logit = -math.inf
        changed.append(logit)
    return torch.tensor(changed)


def test_temperature_zero_takes_the_likeliest_token_and_draws_nothing():
    sampler = RowSampler(SamplingParams(temperature=0.0, seed=3))
    state = torch.get_rng_state()
    assert sampler.greedy
    assert sampler.choose(logits()[0]) == Choice(int(logits()[0].argmax()))
    chosen = [choice.token_id for choice in choose_tokens([sampler] * 4, logits(4))]
    assert chosen == logits(4).argmax(dim=-1).tolist()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_temperature_that_would_overflow_is_greedy():
    assert RowSampler(SamplingParams(temperature=1e-30)).greedy
    assert not RowSampler(SamplingParams(temperature=1e-5)).greedy
    assert set(draws(SamplingParams(temperature=1e-5), 20)) == {int(logits()[0].argmax())}


@pytest.mark.parametrize("warped", WARPED)
def test_draws_have_the_probabilities_of_transformers(warped):
    expected = warped_as_in_transformers(warped)
    found = Counter(draws(SamplingParams(seed=11, **warped), 4000))
    assert all(expected[token] > 0 for token in found)
    for token, probability in enumerate(expected.tolist()):
        spread = math.sqrt(4000 * probability * (1 - probability))
        assert abs(found[token] - 4000 * probability) <= 4.5 * spread + 1


@pytest.mark.parametrize("warped", WARPED)
def test_a_draw_is_the_first_token_whose_summed_probability_exceeds_a_number(warped):
    expected = warped_as_in_transformers(warped).double().cumsum(dim=-1).tolist()
    generator = torch.Generator().manual_seed(11)
    for token in draws(SamplingParams(seed=11, **warped), 100):
        number = torch.rand((), generator=generator, dtype=torch.float64).item()
        assert token == next(place for place, total in enumerate(expected) if total > number)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2**-53])
def test_the_outermost_numbers_draw_tokens_that_have_a_probability(monkeypatch, number):
    first_and_last_banned = torch.full((1, 8), -torch.inf)
    first_and_last_banned[0, 2:6] = torch.tensor([1.0, 0.5, -40.0, 2.0])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(number, dtype=torch.float64))
    drawn = RowSampler(SamplingParams()).choose(first_and_last_banned[0]).token_id
    assert drawn == (2 if number == 0.0 else 5)


def test_top_k_keeps_the_likeliest_tokens():
    likeliest = set(logits()[0].topk(4).indices.tolist())
    assert set(draws(SamplingParams(temperature=5.0, top_k=4, seed=1))) == likeliest


def test_top_p_keeps_the_fewest_tokens_that_hold_the_share():
    ordered = logits()[0].softmax(dim=-1).sort(descending=True)
    count = int((ordered.values.cumsum(dim=-1) < 0.9).sum()) + 1
    found = set(draws(SamplingParams(top_p=0.9, seed=1), 2000))
    assert found == set(ordered.indices[:count].tolist())


def test_min_p_keeps_tokens_that_are_likely_enough_beside_the_likeliest():
    probabilities = logits()[0].softmax(dim=-1)
    kept = (probabilities >= 0.1 * probabilities.max()).nonzero().squeeze(-1).tolist()
    assert set(draws(SamplingParams(min_p=0.1, seed=1), 2000)) == set(kept)
    assert set(draws(SamplingParams(min_p=1.0, seed=1), 20)) == {int(probabilities.argmax())}


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_varied():
    likeliest = int(logits()[0].argmax())
    assert set(draws(SamplingParams(temperature=0.01, seed=1), 50)) == {likeliest}
    counts = Counter(draws(SamplingParams(temperature=100.0, seed=1)))
    assert len(counts) > VOCABULARY // 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prompt=st.lists(st.integers(0, VOCABULARY + 3), max_size=12),
    repetition=st.sampled_from([1.0, 0.5, 1.7]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.75, -0.5]),
    least=st.sampled_from([0, 3]),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=4),
)
def test_greedy_tokens_are_the_likeliest_after_all_changes(
    seed, prompt, repetition, presence, frequency, least, bias
):
    params = SamplingParams(
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        min_tokens=least,
        logit_bias=bias or None,
    )
    sampler = RowSampler(params, prompt, (END, -1, VOCABULARY))
    generated = []
    for _ in range(8):
        # Few tokens are likely, so that they are repeated.
        row = logits(seed=seed)[0]
        changed = penalised(row, params, prompt, generated)
        (choice,) = choose_tokens([sampler], row[None])
        assert changed[choice.token_id] >= changed.max() - 1e-4
        generated.append(choice.token_id)


def test_sampled_tokens_have_the_probabilities_after_all_changes():
    params = {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.3,
        "logit_bias": {4: 2.5, 9: -100},
        "min_tokens": 5,
        "temperature": 1.5,
    }
    prompt, generated = [1, 2, 3], []
    sampler = RowSampler(SamplingParams(seed=2, **params), prompt, (END,))
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        changed = penalised(logits()[0], SamplingParams(**params), prompt, generated)
        sums = (changed / 1.5).double().softmax(dim=-1).cumsum(dim=-1)
        number = torch.rand((), generator=generator, dtype=torch.float64)
        generated.append(sampler.choose(logits()[0]).token_id)
        assert generated[-1] == int((sums <= number).sum())
    assert END not in generated[:5]


def test_penalties_make_a_greedy_row_go_on_to_other_tokens():
    ordered = logits()[0].argsort(descending=True).tolist()
    sampler = RowSampler(SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(ordered[:2], -9)))
    assert sampler.choose(logits()[0]).token_id == ordered[2]
    sampler = RowSampler(SamplingParams(temperature=0.0, frequency_penalty=2.0))
    assert len({sampler.choose(logits()[0]).token_id for _ in range(20)}) > 3
    assert len(set(draws(SamplingParams(temperature=0.0), 20))) == 1


def test_end_and_stop_tokens_do_not_come_too_early():
    first, second = logits()[0].topk(2).indices.tolist()
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(second,))
    sampler = RowSampler(params, (), (first,))
    assert not sampler.plain
    made = [sampler.choose(logits()[0]).token_id for _ in range(3)]
    assert made[2] == first
    assert made[0] == made[1]
    assert made[0] not in (first, second)
    assert sampler.plain


def test_an_end_token_that_is_ignored_may_come_at_once():
    likeliest = int(logits()[0].argmax())
    params = SamplingParams(temperature=0.0, min_tokens=2, ignore_eos=True)
    assert RowSampler(params, (), (likeliest,)).choose(logits()[0]).token_id == likeliest


@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"seed": 1, "temperature": 3.0}])
def test_logprobs_are_of_the_models_own_distribution(count, how):
    expected = logits()[0].log_softmax(dim=-1)
    changes = {"logit_bias": {7: 50.0}, "repetition_penalty": 1.5, "top_k": 3}
    for params in (how, {**how, **changes}):
        sampler = RowSampler(SamplingParams(logprobs=count, **params), [1, 2])
        choice = sampler.choose(logits()[0])
        assert choice.logprob == expected[choice.token_id].item()
        assert [token for token, _ in choice.top] == expected.topk(count).indices.tolist()
        assert [value for _, value in choice.top] == expected.topk(count).values.tolist()
        assert all(before >= after for (_, before), (_, after) in pairwise(choice.top))


def test_of_equal_tokens_the_first_are_reported_as_they_are_chosen():
    equal = torch.zeros(VOCABULARY)
    equal[30] = 1.0
    choice = RowSampler(SamplingParams(temperature=0.0, logprobs=3)).choose(equal)
    assert [token for token, _ in choice.top] == [30, 0, 1]
    choice = RowSampler(SamplingParams(temperature=0.0, logprobs=2)).choose(torch.zeros(9))
    assert choice.token_id == choice.top[0][0] == 0


def test_more_logprobs_than_tokens_are_all_of_them():
    choice = RowSampler(SamplingParams(logprobs=20, seed=1)).choose(torch.arange(6.0))
    assert [token for token, _ in choice.top] == [5, 4, 3, 2, 1, 0]


def test_without_logprobs_there_are_none():
    assert RowSampler(SamplingParams(seed=1)).choose(logits()[0]).logprob is None


def test_the_same_seed_draws_the_same_tokens_and_another_does_not():
    first, again, other = (draws(SamplingParams(seed=seed), 30) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_rows_without_a_seed_differ():
    first, second = (draws(SamplingParams(temperature=100.0), 30) for _ in range(2))
    assert first != second


@settings(max_examples=40, deadline=None)
@given(
    own=st.sampled_from(ANY[:-1]),
    company=st.lists(st.sampled_from(ANY), max_size=5),
    place=st.integers(0, 5),
    vocabulary=st.sampled_from([VOCABULARY, 1003]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(own, company, place, vocabulary, dtype):
    def made(company, place):
        samplers = [RowSampler(SamplingParams(**one), [2, 3], (END,)) for one in company]
        samplers.insert(place, RowSampler(SamplingParams(**own), [5, 6], (END,)))
        choices = []
        for step in range(6):
            rows = [logits(1, 100 * step + row, vocabulary) for row in range(len(company))]
            rows.insert(place, logits(1, 50 + step, vocabulary))
            choices.append(choose_tokens(samplers, torch.cat(rows).to(dtype))[place])
        return choices

    assert made(company, min(place, len(company))) == made([], 0)


def test_the_logits_given_stay_as_they_are():
    given = logits(len(ANY))
    choose_tokens([RowSampler(SamplingParams(**one), [1], (END,)) for one in ANY], given)
    assert torch.equal(given, logits(len(ANY)))


def test_global_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    draws(SamplingParams(), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_rows_that_are_not_plain_are_copied(monkeypatch):
    copied = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda given: copied.append(given.shape[0]) or cpu(given)
    )
    plain, other = SamplingParams(temperature=0.0), SamplingParams(seed=1)
    for params, expected in (
        ([plain] * 3, []),
        ([plain, other, plain, other], [2]),
        ([other] * 3, [3]),
    ):
        copied.clear()
        choose_tokens([RowSampler(one) for one in params], logits(len(params)))
        assert copied == expected


def test_plain_rows_are_not_chosen_for_one_by_one(monkeypatch):
    chosen = []
    choose = RowSampler.choose
    monkeypatch.setattr(
        sampling.RowSampler, "choose", lambda *given: chosen.append(1) or choose(*given)
    )
    params = [SamplingParams(temperature=0.0)] * 5
    choose_tokens([RowSampler(one) for one in params], logits(5))
    assert chosen == []


def test_rows_and_samplers_must_be_as_many():
    for params in (SamplingParams(temperature=0.0), SamplingParams()):
        with pytest.raises(ValueError, match="zip"):
            choose_tokens([RowSampler(params)] * 2, logits(3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"temperature": 0.0, "logprobs": 1}])
def test_what_is_not_a_number_is_an_error(value, params):
    broken = logits()[0]
    broken[3] = value
    with pytest.raises(ModelError, match="not all numbers"):
        RowSampler(SamplingParams(**params)).choose(broken)


def test_a_bias_beyond_the_vocabulary_is_an_error():
    with pytest.raises(ConfigurationError, match="logit_bias has token 40"):
        RowSampler(SamplingParams(logit_bias={VOCABULARY: 1.0})).choose(logits()[0])
