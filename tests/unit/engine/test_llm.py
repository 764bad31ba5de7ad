import copy
import gc
import itertools
from types import SimpleNamespace

import pytest
import torch
from tests.support import make_model

from headrace import LLM, SamplingParams
from headrace.engine.loading import LoadedModel
from headrace.errors import ConfigurationError, ContextLengthError, MemoryBudgetError, ModelError
from headrace.timeline import Lane, Origin

PROMPTS = [
    "def add(a, b):\n    return",
    "import os\n\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n" * 6,
    "for",
    "class Stack:\n    def push(self, item):\n        self.items",
]
POLICIES = [
    ("resident", None),
    ("stream", None),
    ("recompute", 0.5),
    ("recompute", 1.0),
    ("kvpr", 0.4),
]
TOKENS = 16


def greedy(max_tokens=TOKENS, **settings):
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **settings)


def open_llm(loaded, policy="stream", fraction=None, **options):
    return LLM(loaded, policy=policy, recompute_fraction=fraction, **options)


def plain(loaded, prompts, max_tokens=TOKENS):
    """Return the tokens of each row by `generate` of `transformers`, up to the end token."""
    tokenizer, model = loaded.tokenizer, loaded.model
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    made = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    rows = []
    for row in made[:, inputs["input_ids"].shape[1] :].tolist():
        last = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        rows.append(tuple(row[: last + 1]))
    return rows


@pytest.fixture
def ends_early(demo, monkeypatch):
    """Let the token that ends a line end the text, too, so that rows end at different steps."""
    newline = demo.tokenizer("x\n")["input_ids"][-1]
    monkeypatch.setattr(demo.model.generation_config, "eos_token_id", [0, newline])
    return newline


@pytest.mark.parametrize(("policy", "fraction"), POLICIES)
def test_greedy_tokens_are_those_of_transformers(demo, policy, fraction):
    llm = open_llm(demo, policy, fraction)
    outputs = llm.generate(PROMPTS, greedy())
    assert [output.token_ids for output in outputs] == plain(demo, PROMPTS)
    for output, prompt in zip(outputs, PROMPTS, strict=True):
        assert output.prompt == prompt
        assert list(output.prompt_token_ids) == demo.tokenizer(prompt)["input_ids"]
        assert output.text == demo.tokenizer.decode(output.token_ids)
        assert output.finish_reason == "length"
    assert llm.stats.policy == policy
    assert llm.stats.recompute_fraction == (fraction or 0.0)


@pytest.mark.parametrize(("policy", "fraction"), POLICIES[1:])
def test_rows_that_end_early_leave_the_others_as_they_are(demo, ends_early, policy, fraction):
    outputs = open_llm(demo, policy, fraction).generate(PROMPTS, greedy())
    made = [output.token_ids for output in outputs]
    assert made == plain(demo, PROMPTS)
    assert len({len(tokens) for tokens in made}) > 1
    for output in outputs:
        ended = output.token_ids[-1] == ends_early
        assert output.finish_reason == ("stop" if ended else "length")
        # The end token is among the tokens but not in the text.
        kept = output.token_ids[:-1] if ended else output.token_ids
        assert output.text == demo.tokenizer.decode(kept)


def test_the_end_of_text_can_be_ignored(demo, ends_early):
    expected = open_llm(demo).generate(PROMPTS, greedy(ignore_eos=True))
    assert {output.finish_reason for output in expected} == {"length"}
    assert {len(output.token_ids) for output in expected} == {TOKENS}
    assert any(ends_early in output.token_ids for output in expected)


def test_the_tokenizers_end_token_stands_in_for_one_that_is_not_configured(demo, monkeypatch):
    (first,) = open_llm(demo).generate("for", greedy(4))
    monkeypatch.setattr(demo.model.generation_config, "eos_token_id", None)
    tokenizer = copy.deepcopy(demo.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first.token_ids[1])
    (ended,) = open_llm(LoadedModel("other", demo.model, tokenizer)).generate("for", greedy(4))
    assert (ended.token_ids, ended.finish_reason) == (first.token_ids[:2], "stop")


def test_params_for_each_prompt(demo):
    whole = [output.token_ids for output in open_llm(demo).generate(PROMPTS, greedy())]
    lengths = (3, TOKENS, 1, 7)
    outputs = open_llm(demo, "recompute", 0.5).generate(PROMPTS, [greedy(n) for n in lengths])
    assert [output.token_ids for output in outputs] == [
        tokens[:count] for tokens, count in zip(whole, lengths, strict=True)
    ]
    assert {output.finish_reason for output in outputs} == {"length"}


def test_a_row_ends_before_the_first_of_its_stop_strings(demo):
    whole = open_llm(demo).generate(PROMPTS, greedy(24))
    stops = [(output.text[9:12], "never seen") for output in whole]
    stops[1] = (whole[1].text[9:12], whole[1].text[5:8])
    stopped = open_llm(demo).generate(PROMPTS, [greedy(24, stop=stop) for stop in stops])
    for before, after, strings in zip(whole, stopped, stops, strict=True):
        places = [before.text.find(text) for text in strings]
        end = min(place for place in places if place >= 0)
        assert after.text == before.text[:end]
        assert after.finish_reason == "stop"
        # No more was generated than it took to see the string.
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        seen = demo.tokenizer.decode(after.token_ids[:-1])
        assert not any(text in seen for text in strings)


def test_of_two_stop_strings_in_one_token_the_first_counts(demo):
    outputs = open_llm(demo).generate(PROMPTS, greedy(1))
    row, text = next((row, one.text) for row, one in enumerate(outputs) if len(one.text) > 1)
    (stopped,) = open_llm(demo).generate(PROMPTS[row], greedy(4, stop=(text[1:], text)))
    assert (stopped.text, stopped.finish_reason, len(stopped.token_ids)) == ("", "stop", 1)


def test_a_single_string_is_one_prompt(demo):
    outputs = open_llm(demo).generate(PROMPTS[0], greedy(4))
    assert [output.token_ids for output in outputs] == plain(demo, PROMPTS[:1], 4)


def test_without_params_tokens_are_sampled(demo):
    (output,) = open_llm(demo).generate(PROMPTS[0])
    assert 1 <= len(output.token_ids) <= SamplingParams().max_tokens


def test_sampled_rows_depend_on_their_seed_alone(demo):
    params = [SamplingParams(max_tokens=8, temperature=0.9, seed=seed) for seed in range(4)]
    together = open_llm(demo).generate(PROMPTS, params)
    for prompt, one, expected in zip(PROMPTS, params, together, strict=True):
        assert open_llm(demo).generate(prompt, one)[0].token_ids == expected.token_ids
    (other,) = open_llm(demo).generate(PROMPTS[0], SamplingParams(max_tokens=8, seed=77))
    assert other.token_ids != together[0].token_ids


def test_greedy_and_sampled_rows_share_a_batch(demo):
    mixed = [greedy(6), SamplingParams(max_tokens=6, seed=1), greedy(6), greedy(6)]
    made = open_llm(demo).generate(PROMPTS, mixed)
    expected = plain(demo, PROMPTS, 6)
    for row in (0, 2, 3):
        assert made[row].token_ids == expected[row]


def test_no_prompts_give_no_outputs(demo):
    assert open_llm(demo).generate([]) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_params_must_be_as_many_as_prompts(demo, count):
    with pytest.raises(ConfigurationError, match=f"{count} sampling params .* 2 prompts"):
        open_llm(demo).generate(PROMPTS[:2], [greedy()] * count)


def test_a_prompt_as_long_as_the_context_is_refused(demo, monkeypatch):
    count = len(demo.tokenizer(PROMPTS[3])["input_ids"])
    monkeypatch.setattr(demo.model.config, "max_position_embeddings", count)
    with pytest.raises(ContextLengthError, match=f"{count} tokens.*to {count - 1} or fewer"):
        open_llm(demo).generate([PROMPTS[2], PROMPTS[3]], greedy())
    monkeypatch.setattr(demo.model.config, "max_position_embeddings", count + 1)
    short, full = open_llm(demo).generate([PROMPTS[2], PROMPTS[3]], greedy())
    assert (len(short.token_ids), len(full.token_ids)) == (TOKENS, 1)


def test_a_row_ends_where_the_context_does(demo, monkeypatch):
    monkeypatch.setattr(demo.model.config, "max_position_embeddings", 20)
    prompts = [PROMPTS[2], PROMPTS[3]]
    lengths = [len(demo.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    outputs = open_llm(demo).generate(prompts, greedy(50, ignore_eos=True))
    assert [len(output.token_ids) for output in outputs] == [20 - length for length in lengths]
    assert {output.finish_reason for output in outputs} == {"length"}


def test_every_position_of_a_model_with_learned_positions_is_used(demo):
    """Such a model has no position beyond its context to look up."""
    small = make_model("opt", vocab_size=len(demo.tokenizer), max_position_embeddings=24)
    small.generation_config.eos_token_id = -1
    llm = open_llm(LoadedModel("small", small, demo.tokenizer))
    count = len(demo.tokenizer(PROMPTS[3])["input_ids"])
    (output,) = llm.generate(PROMPTS[3], greedy(100))
    assert count + len(output.token_ids) == 24


def test_stats_say_what_a_call_took(demo):
    llm = open_llm(demo, "recompute", 1.0)
    assert llm.stats is None
    llm.generate(PROMPTS, greedy(6))
    stats = llm.stats
    assert (stats.origin, stats.policy, stats.recompute_fraction) == (
        Origin.MEASURED,
        "recompute",
        1.0,
    )
    assert stats.prefill_s > 0
    assert stats.step_s > 0
    assert stats.tokens_per_s > 0
    assert stats.predicted_step_s is None
    assert llm.plan is None
    assert stats.link_bytes_per_step > 0
    assert stats.host_bytes > 0
    weights = sum(parameter.nbytes for parameter in demo.model.parameters())
    assert stats.peak_gpu_bytes > weights
    assert stats.notes == ()


def test_one_token_takes_no_step(demo):
    llm = open_llm(demo)
    (output,) = llm.generate(PROMPTS[0], greedy(1))
    assert len(output.token_ids) == 1
    assert (llm.stats.step_s, llm.stats.tokens_per_s) == (0.0, 0.0)


def test_rates_count_the_rows_that_still_run(demo, monkeypatch):
    """Three rows of 1, 2 and 4 tokens: after the prompts, 1 + 1 + 2 tokens in 3 steps."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("headrace.engine.llm.time", clock)
    llm = open_llm(demo)
    llm.generate(PROMPTS[:3], [greedy(1), greedy(2), greedy(4)])
    assert (llm.stats.prefill_s, llm.stats.step_s) == (1.0, 1.0)
    assert llm.stats.tokens_per_s == pytest.approx(4 / 3)


def test_a_second_call_is_like_the_first(demo):
    llm = open_llm(demo, "kvpr", 0.5)
    first = llm.generate(PROMPTS, greedy(6))
    other = llm.generate(PROMPTS[2], greedy(9))
    assert len(other[0].token_ids) == 9
    assert llm.generate(PROMPTS, greedy(6)) == first


def test_the_model_is_left_as_it_was(demo):
    before = plain(demo, PROMPTS, 4)
    implementation = demo.model.config._attn_implementation
    open_llm(demo, "recompute", 1.0).generate(PROMPTS, greedy(4))
    assert demo.model.config._attn_implementation == implementation
    assert not any(module._forward_pre_hooks for module in demo.model.modules())
    assert gc.get_freeze_count() == 0
    assert plain(demo, PROMPTS, 4) == before


@pytest.mark.parametrize("policy", ["auto", "kvpr", "recompute"])
def test_a_published_machine_is_planned_for(demo, policy):
    llm = open_llm(demo, policy, profile="a100-40gb-pcie4")
    outputs = llm.generate(PROMPTS, greedy())
    assert [output.token_ids for output in outputs] == plain(demo, PROMPTS)
    assert llm.plan is not None
    assert llm.stats.policy == llm.plan.policy
    assert llm.stats.predicted_step_s > 0
    assert llm.stats.origin is Origin.MEASURED


def test_a_traced_call_keeps_what_was_measured_and_predicted(demo, emulated):
    llm = open_llm(demo, "recompute", 1.0, profile=emulated)
    llm.trace()
    llm.generate(PROMPTS, greedy(4))
    predicted, measured = llm.timelines()
    assert (predicted.origin, measured.origin) == (Origin.PREDICTED, Origin.EMULATED)
    assert llm.stats.origin is Origin.EMULATED
    assert predicted.label == measured.label == "demo, recompute"
    # Steps of the same number are compared; loads ahead of a step that never ran are left out.
    assert predicted.steps == measured.steps == (0, 1, 2)
    for timeline in (predicted, measured):
        assert timeline.select([Lane.COMPUTE])
        assert timeline.select([Lane.LOAD_ACTIVATIONS])


def test_without_a_profile_there_is_no_prediction_beside_a_trace(demo):
    llm = open_llm(demo)
    llm.trace()
    llm.generate(PROMPTS[0], greedy(4))
    (measured,) = llm.timelines()
    assert measured.origin is Origin.MEASURED
    assert measured.steps == (0, 1, 2)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"policy": "fast"}, ("policy is 'fast'", "resident")),
        ({"recompute_fraction": 2.0}, ("recompute_fraction is 2.0", "0 to 1")),
        ({"policy": "stream", "recompute_fraction": 0.5}, ("'stream' rebuilds", "'recompute'")),
        ({"gpu_memory": "much"}, ("gpu_memory is 'much'",)),
        ({"host_memory": -1}, ("host_memory is -1",)),
    ],
)
def test_settings_are_checked_before_a_model_is_loaded(options, parts):
    with pytest.raises(ConfigurationError) as caught:
        LLM("/no/such/model", **options)
    for part in parts:
        assert part in str(caught.value)


def test_a_batch_that_does_not_fit_is_refused(demo):
    with pytest.raises(MemoryBudgetError, match="gpu_memory"):
        open_llm(demo, gpu_memory="1MiB", profile="t4-pcie3").generate(PROMPTS, greedy())
    with pytest.raises(MemoryBudgetError, match="host_memory"):
        open_llm(demo, host_memory="64KiB").generate(PROMPTS, greedy())
    # And what is smaller runs afterwards.
    assert open_llm(demo).generate(PROMPTS[0], greedy(2))


def test_a_model_without_a_tokenizer_is_refused(demo):
    with pytest.raises(ModelError, match="'bare' has no tokenizer"):
        LLM(LoadedModel("bare", demo.model, None))


def test_a_model_is_loaded_by_name():
    llm = LLM("demo", policy="resident", device="cpu", dtype="float32")
    assert next(llm.model.parameters()).dtype == torch.float32
    assert llm.generate("import", greedy(2))
