import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from headrace.engine.frozen_mapping import FrozenMapping
from headrace.engine.request import CompletionOutput, RequestOutput, SamplingParams
from headrace.errors import ConfigurationError

NAN, INFINITE = float("nan"), float("inf")

NOT_ALLOWED = {
    "max_tokens": ([0, True, 1.5, "8", None], "an integer, 1 or more"),
    "temperature": ([-0.5, NAN, INFINITE, "0.7", True, None], "0 or more"),
    "top_p": ([0.0, 1.5, NAN, "1", None], "above 0, up to 1"),
    "top_k": ([-1, 2.0, True, None], "0 (all) or more"),
    "seed": ([-1, 1 << 64, 1.0, True, "1"], "0 to 2^64 - 1"),
    "stop": ([("end", ""), "", [""], None, 5, ("end", 5), {"end"}], "not empty"),
    "ignore_eos": ([1, None, "yes"], "True or False"),
    "min_p": ([-0.1, 1.1, NAN, "0", True], "0 to 1"),
    "repetition_penalty": ([0, -1.0, NAN, INFINITE, "1", True], "above 0"),
    "presence_penalty": ([-2.1, 2.1, NAN, "1", None], "-2 to 2"),
    "frequency_penalty": ([-2.1, 2.1, NAN, False], "-2 to 2"),
    "stop_token_ids": ([(-1,), (True,), (1.0,), 5, None, "ab"], "integers, 0 or more"),
    "n": ([0, True, 1.0, None], "1 or more"),
    "logprobs": ([-1, 21, True, 1.0], "0 to 20, or None"),
    "min_tokens": ([-1, 65, 1.0, True, None], "0 to max_tokens (64)"),
    "logit_bias": (
        [{5: 101}, {5: -101.0}, {5: NAN}, {-1: 0}, {"5": 1}, {True: 1}, {5: "1"}, {5: True}, [5]],
        "-100 to 100",
    ),
}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [(name, value, what) for name, (values, what) in NOT_ALLOWED.items() for value in values],
)
def test_a_message_names_the_setting_its_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigurationError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ")
    # Lists and single stop strings are tuples by then.
    assert isinstance(value, list | str) or repr(value) in message
    assert allowed in message
    assert "\n" not in message


def test_every_setting_is_checked():
    assert {field.name for field in fields(SamplingParams)} == set(NOT_ALLOWED)


def test_of_a_long_bias_the_wrong_entries_are_named():
    with pytest.raises(ConfigurationError, match=r"logit_bias is \{7: 200\}; allowed"):
        SamplingParams(logit_bias={**dict.fromkeys(range(300), 1.0), 7: 200})


def test_the_bounds_are_allowed():
    SamplingParams(max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    SamplingParams(seed=(1 << 64) - 1, temperature=0, top_p=1, min_p=1, repetition_penalty=1)
    for end in (-2, 2, -2.0, 2.0):
        SamplingParams(presence_penalty=end, frequency_penalty=end)
    for count in (0, 20):
        SamplingParams(logprobs=count)
    SamplingParams(max_tokens=3, min_tokens=3, logit_bias={0: -100, 9: 100.0}, stop_token_ids=(0,))
    SamplingParams(logit_bias={})


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="end").stop == ("end",)


def test_lists_become_tuples():
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3, 4])
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (3, 4))


def test_params_are_frozen_and_can_be_keys():
    bias = {3: 1.5, 4: -2}
    params = SamplingParams(logit_bias=bias, stop=["a"], stop_token_ids=[1])
    same = SamplingParams(logit_bias={4: -2, 3: 1.5}, stop=("a",), stop_token_ids=(1,))
    assert {params: 1}[same] == 1
    assert params != SamplingParams(logit_bias={3: 1.5})
    bias[3] = 99
    assert params == same
    with pytest.raises(FrozenInstanceError):
        params.n = 2
    with pytest.raises(TypeError):
        params.logit_bias[3] = 0.0


def test_params_can_be_copied_and_sent():
    params = SamplingParams(logit_bias={3: 1.5})
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params
    assert asdict(params)["logit_bias"] == {3: 1.5}
    assert replace(params, n=2).logit_bias == params.logit_bias


def test_a_frozen_mapping_is_like_its_dictionary():
    frozen = FrozenMapping({2: "b", 1: "a"})
    assert frozen == {1: "a", 2: "b"}
    assert list(frozen) == [2, 1]
    assert (len(frozen), frozen[1], repr(frozen)) == (2, "a", "{2: 'b', 1: 'a'}")
    assert hash(frozen) == hash(FrozenMapping({1: "a", 2: "b"}))


def test_samples_get_seeds_of_their_own():
    params = SamplingParams(n=5, seed=7, temperature=0.5)
    samples = [params.of_sample(index) for index in range(5)]
    seeds = [sample.seed for sample in samples]
    assert seeds[0] == 7
    assert len(set(seeds)) == 5
    assert samples == [replace(params, n=1, seed=seed) for seed in seeds]
    # They are the same in every process and version: a result can be had again.
    assert params.of_sample(1).seed == 15287739843744312862
    assert replace(params, n=2).of_sample(1).seed == seeds[1]
    assert replace(params, seed=8).of_sample(1).seed not in seeds


def test_samples_without_a_seed_get_none():
    params = SamplingParams(n=3)
    assert {params.of_sample(index) for index in range(3)} == {SamplingParams()}
    assert SamplingParams(seed=1).of_sample(0) == SamplingParams(seed=1)


@pytest.mark.parametrize("index", [-1, 2, True, 1.0])
def test_a_sample_that_is_not_asked_for_is_refused(index):
    with pytest.raises(ConfigurationError, match=r"sample is .*; allowed is 0 to 1"):
        SamplingParams(n=2).of_sample(index)


def test_params_within_a_room():
    params = SamplingParams(max_tokens=9, min_tokens=5)
    assert params.within(9) is params
    assert params.within(6) == SamplingParams(max_tokens=6, min_tokens=5)
    assert params.within(2) == SamplingParams(max_tokens=2, min_tokens=2)


@pytest.mark.parametrize("settings", [{"stop_token_ids": (3, 10)}, {"logit_bias": {10: 1.0}}])
def test_tokens_beyond_a_vocabulary_are_refused(settings):
    params = SamplingParams(**settings)
    params.check_vocabulary(11)
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))} has token 10.*0 to 9"):
        params.check_vocabulary(10)


def test_an_output_is_its_first_sample():
    first = CompletionOutput(0, "a", (1,), "stop")
    output = RequestOutput("p", (5,), (first, CompletionOutput(1, "b", (2, 3), "length")))
    assert (output.text, output.token_ids, output.finish_reason) == ("a", (1,), "stop")
    assert first.logprobs is None
