import pytest

from headrace import LLM, SamplingParams
from headrace.engine.request import TokenLogprob
from headrace.engine.row import Row
from headrace.engine.sampling import Choice
from headrace.errors import ConfigurationError

PROMPT = "def add(a, b):\n    return"
OTHER = "class Stack:\n    def push(self, item):\n        self.items"


def greedy(max_tokens=8, **settings):
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **settings)


@pytest.fixture(scope="module")
def llm(demo):
    return LLM(demo, policy="resident")


def test_a_row_keeps_text_tokens_and_logprobs(demo):
    (first,) = demo.tokenizer("return")["input_ids"]
    row = Row(demo.tokenizer, SamplingParams(max_tokens=2, logprobs=1), [5], {0})
    row.take(Choice(first, -0.5, ((7, -0.25),)))
    assert (row.news(), row.finished) == ("return", False)
    row.take(Choice(0, -1.0, ((0, -1.0),)))
    assert row.finished
    # The tokens of a static batch go on coming when a row has ended.
    row.take(Choice(9, -3.0, ()))
    assert row.news() == ""
    made = row.output(4)
    assert (made.index, made.text, made.token_ids, made.finish_reason) == (
        4,
        "return",
        (first, 0),
        "stop",
    )
    assert made.logprobs == (
        TokenLogprob(first, -0.5, ((7, -0.25),)),
        TokenLogprob(0, -1.0, ((0, -1.0),)),
    )


def test_a_row_under_way_is_cancelled(demo):
    row = Row(demo.tokenizer, SamplingParams(), [5], {0})
    row.take(Choice(9))
    made = row.output(0)
    assert (made.finish_reason, made.token_ids, made.logprobs) == ("cancelled", (9,), None)


def test_samples_are_what_their_own_params_give(llm):
    params = SamplingParams(max_tokens=6, temperature=1.2, seed=5, n=3)
    both = llm.generate([PROMPT, OTHER], [params, greedy(6)])
    assert [len(one.outputs) for one in both] == [3, 1]
    assert [sample.index for sample in both[0].outputs] == [0, 1, 2]
    for sample in both[0].outputs:
        (alone,) = llm.generate(PROMPT, params.of_sample(sample.index))
        assert alone.token_ids == sample.token_ids
        assert alone.text == sample.text
    assert len({sample.token_ids for sample in both[0].outputs}) == 3
    assert both[1] == llm.generate(OTHER, greedy(6))[0]
    assert both[0].prompt == PROMPT
    assert both[0].token_ids == both[0].outputs[0].token_ids


def test_every_token_has_its_logprobs(llm):
    (output,) = llm.generate(PROMPT, greedy(5, logprobs=2))
    entries = output.outputs[0].logprobs
    assert [entry.token_id for entry in entries] == list(output.token_ids)
    for entry in entries:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 2
    assert llm.generate(PROMPT, greedy(5))[0].outputs[0].logprobs is None


def test_penalties_and_biases_reach_the_row(llm):
    (plain,) = llm.generate(PROMPT, greedy())
    (biased,) = llm.generate(PROMPT, greedy(logit_bias={plain.token_ids[0]: -100}))
    assert biased.token_ids[0] != plain.token_ids[0]
    seen = llm.tokenizer(PROMPT)["input_ids"]
    (fresh,) = llm.generate(PROMPT, greedy(repetition_penalty=1e6))
    assert len({*fresh.token_ids, *seen}) == len(fresh.token_ids) + len(set(seen))


def test_a_stop_token_ends_a_row_but_not_too_early(llm):
    (whole,) = llm.generate(PROMPT, greedy())
    token = whole.token_ids[2]
    place = whole.token_ids.index(token)
    (stopped,) = llm.generate(PROMPT, greedy(stop_token_ids=[token]))
    assert stopped.token_ids == whole.token_ids[: place + 1]
    assert stopped.text == llm.tokenizer.decode(whole.token_ids[:place])
    assert stopped.finish_reason == "stop"
    (longer,) = llm.generate(PROMPT, greedy(stop_token_ids=[token], min_tokens=6))
    assert token not in longer.token_ids[:6]
    assert len(longer.token_ids) >= 6


def test_the_context_bounds_the_least_tokens_too(demo, monkeypatch):
    count = len(demo.tokenizer(PROMPT)["input_ids"])
    monkeypatch.setattr(demo.model.config, "max_position_embeddings", count + 3)
    (output,) = LLM(demo, policy="resident").generate(PROMPT, greedy(20, min_tokens=10))
    assert (len(output.token_ids), output.finish_reason) == (3, "length")


@pytest.mark.parametrize("settings", [{"logit_bias": {4096: 1.0}}, {"stop_token_ids": (4096,)}])
def test_tokens_that_the_model_lacks_are_refused(llm, settings):
    with pytest.raises(ConfigurationError, match=r"token 4096; .* allows 0 to 4095"):
        llm.generate([PROMPT, OTHER], [greedy(), greedy(**settings)])
