import pytest
from tests.batch_support import CHAT, line_of

from headrace.engine.batch_fields import RequestError
from headrace.engine.batch_line import read_line
from headrace.engine.batch_prompts import PromptReader

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CONTEXT, VOCABULARY = 100, 50


@pytest.fixture
def tokenizer(demo):
    return demo.tokenizer


@pytest.fixture
def chatty(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return tokenizer


def prompts_of(tokenizer, *line, vocabulary=VOCABULARY, name="a", **body):
    request = read_line(line_of(name, *line, **body), 1).request
    return list(PromptReader(tokenizer, CONTEXT, vocabulary).prompts(name, request))


def test_texts_are_handed_on(tokenizer):
    found = prompts_of(tokenizer, prompt=["x", "y"], seed=5, max_tokens=500)
    assert [prompt for prompt, _ in found] == ["x", "y"]
    assert [(params.seed, params.max_tokens) for _, params in found] == [(5, 500)] * 2


def test_tokens_end_where_the_context_does(tokenizer):
    ((prompt, params),) = prompts_of(tokenizer, prompt=[1, 2, 3], max_tokens=500, min_tokens=200)
    assert prompt == (1, 2, 3)
    assert (params.max_tokens, params.min_tokens) == (97, 97)


def test_a_prompt_without_room_is_left_to_the_engine(tokenizer):
    ((_, params),) = prompts_of(tokenizer, prompt=[1] * 100)
    assert params.max_tokens == 1


def test_requests_without_a_seed_get_one_of_their_own_that_stays(tokenizer):
    def seeds(name):
        return [params.seed for _, params in prompts_of(tokenizer, prompt=["x", "x"], name=name)]

    assert seeds("a") == seeds("a")
    assert len({*seeds("a"), *seeds("b")}) == 4
    assert all(0 <= seed < 1 << 64 for seed in seeds("a"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 50]}, "prompt"),
        ({"prompt": ["x", [50]]}, "prompt"),
        ({"logit_bias": {"50": 1}}, "logit_bias"),
        ({"stop_token_ids": [50]}, "stop_token_ids"),
    ],
)
def test_tokens_beyond_the_vocabulary_are_refused(tokenizer, body, param):
    with pytest.raises(RequestError, match=r"50.*0 to 49") as caught:
        prompts_of(tokenizer, **body)
    assert caught.value.param == param


def test_a_chat_goes_through_the_template(chatty):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    ((prompt, params),) = prompts_of(chatty, CHAT, messages=said, vocabulary=1 << 30)
    text = "[user] hi\n[assistant] yes\n[assistant] "
    assert list(prompt) == chatty(text, add_special_tokens=False)["input_ids"]
    assert chatty.decode(list(prompt)) == text
    assert params.max_tokens == CONTEXT - len(prompt)


def test_a_tokenizer_without_a_template_is_named(tokenizer):
    with pytest.raises(RequestError, match=r"no chat template; use /v1/completions") as caught:
        prompts_of(tokenizer, CHAT)
    assert (caught.value.param, caught.value.code) == ("messages", "no_chat_template")


def test_what_the_template_refuses_is_said(chatty):
    said = [{"role": "system", "content": "hi"}]
    with pytest.raises(RequestError, match="refuses the messages: no system here"):
        prompts_of(chatty, CHAT, messages=said)


def test_a_token_has_a_text(tokenizer):
    reader = PromptReader(tokenizer, CONTEXT, VOCABULARY)
    (token,) = tokenizer("return")["input_ids"][:1]
    assert "return".startswith(reader.token_text(token))
