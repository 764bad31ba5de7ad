import pytest

from headrace import LLM, SamplingParams
from headrace.engine.batch_engine import Request
from headrace.engine.batch_static import StaticEngine
from headrace.errors import ConfigurationError

PROMPTS = ["def add(a, b):\n    return", "import os\n", "class Stack:", "x = 1\n" * 20, "for"]


def greedy(max_tokens=4, **settings):
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **settings)


@pytest.fixture
def llm(demo):
    return LLM(demo, policy="stream")


@pytest.fixture
def calls(monkeypatch):
    """The counts of prompts that reached the model, call by call."""
    made, generate = [], LLM.generate

    def counted(self, prompts, params):
        outputs = generate(self, prompts, params)
        made.append(len(prompts))
        return outputs

    monkeypatch.setattr(LLM, "generate", counted)
    return made


def completed(engine, requests):
    found = {one.request_id: one for one in engine.complete(requests)}
    assert found.keys() == {request.request_id for request in requests}
    return found


def test_requests_are_completed_in_chunks(llm, calls):
    wanted = [llm.generate([prompt], [greedy()])[0].token_ids for prompt in PROMPTS]
    calls.clear()
    requests = [Request(f"r{place}", prompt, greedy()) for place, prompt in enumerate(PROMPTS)]
    found = completed(StaticEngine(llm, 2), requests)
    assert calls == [2, 2, 1]
    assert [found[f"r{place}"].output.token_ids for place in range(5)] == wanted
    assert all(one.error is None for one in found.values())


def test_tokens_are_a_prompt_too(llm):
    tokenizer = llm.tokenizer
    (wanted,) = llm.generate([PROMPTS[0]], greedy())
    requests = [
        Request("ids", tokenizer(PROMPTS[0])["input_ids"], greedy()),
        Request("text", PROMPTS[1], greedy()),
    ]
    found = completed(StaticEngine(llm, 2), requests)
    assert found["ids"].output == wanted
    assert llm.tokenizer is tokenizer


def test_samples_count_as_rows(llm, calls):
    requests = [
        Request(str(place), "x =", SamplingParams(max_tokens=2, seed=1, n=count))
        for place, count in enumerate((2, 2, 5, 1))
    ]
    found = completed(StaticEngine(llm, 4), requests)
    assert calls == [2, 1, 1]
    assert [len(found[str(place)].output.outputs) for place in range(4)] == [2, 2, 5, 1]


def test_an_error_is_of_the_request_that_made_it(llm, calls):
    long = Request("long", "x = 1\n" * 2000, greedy())
    empty = Request("empty", "", greedy())
    good = [Request(str(place), prompt, greedy()) for place, prompt in enumerate(PROMPTS[:3])]
    found = completed(StaticEngine(llm, 8), [good[0], long, good[1], empty, good[2]])
    assert "shorten the prompt" in found["long"].error
    assert found["long"].code == "context_length_exceeded"
    assert "a prompt is empty" in found["empty"].error
    assert (found["empty"].output, found["empty"].code) == (None, None)
    assert all(found[str(place)].output is not None for place in range(3))


def test_a_chunk_without_room_is_split_and_what_never_fits_is_an_error(demo, calls):
    words = [Request(str(place), "x = 1\n" * 60, greedy()) for place in range(4)]
    need = 2 * (120 + 4) * _bytes_per_token(demo)
    found = completed(StaticEngine(LLM(demo, policy="stream", host_memory=need * 2), 4), words)
    assert all(one.error is None for one in found.values())
    assert len(calls) > 1
    found = completed(StaticEngine(LLM(demo, policy="stream", host_memory=1024), 4), words)
    assert {one.code for one in found.values()} == {"memory_budget_exceeded"}


def _bytes_per_token(demo):
    config = demo.model.config
    width = config.num_key_value_heads * config.head_dim
    return config.num_hidden_layers * 2 * width * 4


def test_requests_are_asked_for_as_there_is_room(llm):
    asked = []

    def requests():
        for place, prompt in enumerate(PROMPTS):
            asked.append(place)
            yield Request(str(place), prompt, greedy(1))

    ended = StaticEngine(llm, 2).complete(requests())
    next(ended)
    assert len(asked) == 3
    ended.close()


def test_rows_are_at_least_one(llm):
    with pytest.raises(ConfigurationError, match="max_rows is 0; allowed is 1 or more"):
        StaticEngine(llm, 0)
