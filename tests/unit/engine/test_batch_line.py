import json

import pytest
from tests.batch_support import CHAT, COMPLETIONS, fields_of, line_of

from headrace.engine.batch_line import INVALID_JSON, read_line
from headrace.engine.batch_parameters import WITHOUT_MAX_TOKENS


def request_of(url=COMPLETIONS, **body):
    read = read_line(line_of("a", url, **body), 1)
    assert read.error is None, str(read.error)
    return read.request


def error_of(url=COMPLETIONS, **body):
    read = read_line(line_of("a", url, **body), 1)
    assert read.request is None
    assert read.custom_id == "a"
    return read.error


def test_a_completion_has_openais_defaults():
    request = request_of()
    assert (request.url, request.model, request.messages) == (COMPLETIONS, None, ())
    assert request.prompts == ("x =",)
    params = request.params
    assert (params.max_tokens, params.temperature, params.n, params.logprobs) == (16, 1, 1, None)


def test_a_chat_may_fill_the_context():
    request = request_of(CHAT, model="gpt-x")
    assert (request.url, request.model, request.prompts) == (CHAT, "gpt-x", ())
    assert request.messages == ({"role": "user", "content": "hello"},)
    assert request.params.max_tokens == WITHOUT_MAX_TOKENS[CHAT]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("max_tokens", 7, 7),
        ("temperature", 0.5, 0.5),
        ("temperature", 0, 0),
        ("top_p", 0.9, 0.9),
        ("top_k", 40, 40),
        ("min_p", 0.1, 0.1),
        ("repetition_penalty", 1.2, 1.2),
        ("presence_penalty", -1, -1),
        ("frequency_penalty", 2.0, 2.0),
        ("seed", 123, 123),
        ("stop", "\n", ("\n",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", [], ()),
        ("stop_token_ids", [1, 2], (1, 2)),
        ("n", 3, 3),
        ("logit_bias", {"5": -100, "7": 1.5}, {5: -100, 7: 1.5}),
        ("min_tokens", 4, 4),
        ("ignore_eos", True, True),
    ],
)
def test_each_parameter_is_handed_on(url, name, given, wanted):
    assert getattr(request_of(url, **{name: given}).params, name) == wanted


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_what_is_null_is_as_if_it_was_not_there(url):
    names = (
        "temperature",
        "stop",
        "n",
        "logprobs",
        "logit_bias",
        "seed",
        "stream",
        "model",
        "user",
    )
    assert request_of(url, **dict.fromkeys(names)) == request_of(url)


def test_user_metadata_and_no_stream_are_accepted():
    plain = request_of()
    assert request_of(user="u", metadata={"k": "v"}, stream=False) == plain


def test_both_names_of_the_length_mean_the_same():
    assert request_of(CHAT, max_completion_tokens=5).params.max_tokens == 5
    assert request_of(CHAT, max_completion_tokens=5, max_tokens=5).params.max_tokens == 5
    error = error_of(CHAT, max_completion_tokens=5, max_tokens=6)
    assert "max_tokens is 6 and max_completion_tokens is 5" in str(error)


@pytest.mark.parametrize(
    ("url", "body", "wanted"),
    [
        (CHAT, {"logprobs": True}, 0),
        (CHAT, {"logprobs": True, "top_logprobs": 20}, 20),
        (CHAT, {"logprobs": False}, None),
        (COMPLETIONS, {"logprobs": 0}, 0),
        (COMPLETIONS, {"logprobs": 5}, 5),
    ],
)
def test_each_endpoint_has_its_own_logprobs(url, body, wanted):
    assert request_of(url, **body).params.logprobs == wanted


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("model", 5, "a string"),
        ("max_tokens", "7", "a whole number, 1 or more"),
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", True, "a whole number"),
        ("max_tokens", 7.5, "a whole number"),
        ("max_completion_tokens", -1, "1 or more"),
        ("temperature", "hot", "a number"),
        ("temperature", False, "a number"),
        ("temperature", 10**400, "a number"),
        ("temperature", -0.5, "0 or more"),
        ("top_p", [1], "a number"),
        ("top_p", 1.5, "up to 1"),
        ("top_k", 1.5, "a whole number"),
        ("top_k", -3, "0 (all) or more"),
        ("min_p", {}, "a number"),
        ("min_p", 2, "0 to 1"),
        ("repetition_penalty", "1", "a number"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", "1", "a number"),
        ("presence_penalty", 3, "-2 to 2"),
        ("frequency_penalty", "1", "a number"),
        ("frequency_penalty", -3, "-2 to 2"),
        ("seed", "x", "a whole number"),
        ("seed", -1, "0 to 2^64 - 1"),
        ("stop", 5, "a string, or a list"),
        ("stop", ["x"] * 17, "up to 16"),
        ("stop", "", "not empty"),
        ("stop_token_ids", 5, "a list of token ids"),
        ("n", 0, "from 1 to 128"),
        ("n", "2", "a whole number"),
        ("logprobs", "yes", ""),
        ("logit_bias", [1], "an object such as"),
        ("min_tokens", "1", "a whole number"),
        ("min_tokens", -1, "0 to max_tokens"),
        ("ignore_eos", 1, "true or false"),
        ("stream", "no", "true or false"),
        ("stream", True, "false"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(url, name, given, allowed):
    error = error_of(url, **{name: given})
    assert error.param == name
    assert str(error).startswith(f"{name} is ")
    assert allowed in str(error)


@pytest.mark.parametrize(
    ("body", "param", "allowed"),
    [
        ({"stop": ["a", 5]}, "stop[1]", "a string"),
        ({"stop_token_ids": [1, "x"]}, "stop_token_ids[1]", "a whole number"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "from 0"),
        ({"logit_bias": {"x": 1}}, "logit_bias", '"50256"'),
        ({"logit_bias": {"²": 1}}, "logit_bias", '"50256"'),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", '"50256"'),
        ({"logit_bias": {"5": "x"}}, 'logit_bias["5"]', "a number"),
        ({"logit_bias": {"5": 101}}, 'logit_bias["5"]', "-100 to 100"),
        ({"prompt": 5}, "prompt", "a string, a list of strings"),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": ["a", 5]}, "prompt[1]", "a string or a list"),
        ({"prompt": [1, "a"]}, "prompt[1]", "a whole number"),
        ({"prompt": [[1], []]}, "prompt[1]", "at least one"),
        ({"prompt": "half \ud800"}, "prompt", "surrogate"),
        ({"prompt": ...}, "prompt", "a list of strings"),
        ({"prompt": None}, "prompt", "a list of strings"),
        ({"logprobs": True}, "logprobs", "a whole number"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"messages": []}, "messages", "prompt"),
        ({"echo": True}, "echo", "max_tokens"),
    ],
)
def test_what_is_off_in_a_completion_is_named(body, param, allowed):
    error = error_of(**body)
    assert error.param == param
    assert allowed in str(error)


def said(**fields):
    return {"messages": [{"role": "user", "content": "hello"} | fields]}


@pytest.mark.parametrize(
    ("body", "param", "allowed"),
    [
        ({"messages": ...}, "messages", '"role": "user"'),
        ({"messages": "hi"}, "messages", "a list of messages"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hi"]}, "messages[0]", "a message"),
        (said(role="robot"), "messages[0].role", "system, user, assistant, tool"),
        (said(role=["user"]), "messages[0].role", "system, user, assistant, tool"),
        (said(content=None), "messages[0].content", "a list of parts"),
        (said(content=5), "messages[0].content", "a list of parts"),
        (said(content=["x"]), "messages[0].content[0]", "a part"),
        (said(content=[{"type": "image_url"}]), "messages[0].content[0].type", "text only"),
        (said(content=[{"type": "text"}]), "messages[0].content[0].text", "a string"),
        (said(tool_calls=[{}]), "messages[0].tool_calls", "role, content"),
        (said(name=5), "messages[0].name", "a string"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
        ({"prompt": "x"}, "prompt", "messages"),
        ({"tools": []}, "tools", "stop_token_ids"),
    ],
)
def test_what_is_off_in_a_chat_is_named(body, param, allowed):
    error = error_of(CHAT, **body)
    assert error.param == param
    assert allowed in str(error)


def test_the_parts_of_a_content_follow_each_other():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = request_of(CHAT, **said(content=parts, name="me")).messages
    assert messages == ({"role": "user", "content": "one two", "name": "me"},)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("x", ("x",)),
        (["x", "y"], ("x", "y")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["x", [3]], ("x", (3,))),
    ],
)
def test_a_prompt_has_several_forms(given, wanted):
    assert request_of(prompt=given).prompts == wanted


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b'{"custom_id": "a"',
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe",
        b'{"custom_id": "a", "body": NaN}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_a_line_that_is_no_object_is_named_by_its_number(line):
    read = read_line(line, 17)
    assert (read.custom_id, read.request, read.error.code) == ("line:17", None, INVALID_JSON)
    assert "object" in str(read.error)


@pytest.mark.parametrize("custom_id", [..., None, 5, "", "\ud800"])
def test_a_line_without_a_name_gets_one(custom_id):
    fields = fields_of()
    del fields["custom_id"]
    if custom_id is not ...:
        fields["custom_id"] = custom_id
    read = read_line(json.dumps(fields).encode(), 3)
    assert (read.custom_id, read.error.param) == ("line:3", "custom_id")
    assert "a string" in str(read.error)


@pytest.mark.parametrize(
    ("change", "param", "allowed"),
    [
        ({"method": "GET"}, "method", '"POST"'),
        ({"method": None}, "method", '"POST"'),
        ({"url": "/v1/embeddings"}, "url", '"/v1/chat/completions" or "/v1/completions"'),
        ({"url": ["/v1/completions"]}, "url", '"/v1/completions"'),
        ({"body": None}, "body", "an object"),
        ({"body": "x"}, "body", "an object"),
        ({"priority": 1}, "priority", "custom_id, method, url, body"),
    ],
)
def test_what_is_off_around_the_body_is_named(change, param, allowed):
    read = read_line(json.dumps(fields_of() | change).encode(), 1)
    assert (read.custom_id, read.error.param) == ("a", param)
    assert allowed in str(read.error)


def test_a_mark_of_the_byte_order_is_passed_over():
    assert read_line(b"\xef\xbb\xbf" + line_of("a"), 1).error is None


def test_what_is_long_is_cut_off_in_messages():
    assert len(str(error_of(stop_token_ids="x" * 10_000))) < 300
