import pytest
from tests.batch_support import CHAT, answer_of, line_of

from headrace.engine.batch_line import read_line
from headrace.engine.batch_results import answer
from headrace.engine.request import CompletionOutput, RequestOutput, TokenLogprob

TEXTS = {1: "a", 2: "ü", 3: "\ufffd", 4: "a"}


def body_of(line, *outputs):
    request = read_line(line, 1).request
    return answer(
        request,
        outputs,
        digest="0f",
        created=7,
        model="served",
        token_text=lambda token: TEXTS.get(token) or chr(token),
    )


def with_logprobs(*logprobs):
    tokens = tuple(one.token_id for one in logprobs)
    return RequestOutput("x", (5,), (CompletionOutput(0, "aü", tokens, "stop", logprobs),))


def test_a_chat_is_answered_with_messages():
    request = read_line(line_of("a", CHAT, n=2, model="mine"), 1).request
    output = answer_of("hello", request.params)
    body = body_of(line_of("a", CHAT, n=2, model="mine"), output)
    assert (body["id"], body["object"], body["created"], body["model"]) == (
        "chatcmpl-0f",
        "chat.completion",
        7,
        "mine",
    )
    assert body["choices"] == [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": output.outputs[index].text,
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "length",
        }
        for index in range(2)
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_a_completion_is_answered_with_texts():
    request = read_line(line_of(), 1).request
    body = body_of(line_of(), answer_of("hello", request.params))
    assert (body["id"], body["object"], body["model"]) == ("cmpl-0f", "text_completion", "served")
    (choice,) = body["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason"}


def test_logprobs_of_a_chat():
    output = with_logprobs(
        TokenLogprob(1, -0.5, ((2, -0.25), (1, -0.5))), TokenLogprob(3, float("-inf"), ())
    )
    (choice,) = body_of(line_of("a", CHAT, logprobs=True, top_logprobs=2), output)["choices"]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "ü", "logprob": -0.25, "bytes": [195, 188]},
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                ],
            },
            {"token": "\ufffd", "logprob": -9999.0, "bytes": None, "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_logprobs_of_a_completion():
    output = with_logprobs(
        TokenLogprob(1, -0.5, ((1, -0.5), (4, -1.5))), TokenLogprob(2, -0.25, ())
    )
    (choice,) = body_of(line_of(logprobs=2), output)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", "ü"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"a": -0.5}, {"ü": -0.25}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_reason_of_the_end_is_handed_on(reason):
    output = RequestOutput("x", (1,), (CompletionOutput(0, "y", (1,), reason),))
    assert body_of(line_of(), output)["choices"][0]["finish_reason"] == reason
