from collections import defaultdict

import pytest

from headrace import LLM, SamplingParams, StreamedText
from headrace.errors import ConfigurationError, MemoryBudgetError
from headrace.hf import attachment

PROMPTS = ["def add(a, b):\n    return", "class Stack:\n    def push(self, item):\n", "import"]


def greedy(max_tokens=8, **settings):
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **settings)


@pytest.fixture(scope="module")
def llm(demo):
    return LLM(demo, policy="stream")


def joined(pieces):
    """Return the pieces of each sample, after what must hold of their order."""
    of_sample = defaultdict(list)
    for piece in pieces:
        of_sample[piece.prompt, piece.index].append(piece)
    for some in of_sample.values():
        assert [piece.finished for piece in some] == [False] * (len(some) - 1) + [True]
        assert all((piece.finish_reason is not None) == piece.finished for piece in some)
    return of_sample


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def tokens_of(pieces):
    return tuple(token for piece in pieces for token in piece.token_ids)


def assert_adds_up(pieces, sample):
    assert text_of(pieces) == sample.text
    assert tokens_of(pieces) == sample.token_ids
    assert pieces[-1].finish_reason == sample.finish_reason
    if sample.logprobs is None:
        assert {piece.logprobs for piece in pieces} == {None}
    else:
        assert tuple(one for piece in pieces for one in piece.logprobs) == sample.logprobs


def test_pieces_add_up_to_what_generate_returns(llm):
    (whole,) = llm.generate(PROMPTS[1], greedy(12))
    params = [
        SamplingParams(max_tokens=9, temperature=1.3, seed=4, n=3, logprobs=2),
        greedy(12, stop=whole.text[6:10]),
        greedy(1, logprobs=0),
    ]
    found = joined(llm.stream(PROMPTS, params))
    expected = llm.generate(PROMPTS, params)
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    for (prompt, index), pieces in found.items():
        assert_adds_up(pieces, expected[prompt].outputs[index])
        assert {len(piece.token_ids) for piece in pieces} == {1}
    assert found[1, 0][-1].finish_reason == "stop"
    assert found[2, 0][-1].finish_reason == "length"


def test_pieces_can_be_made_as_before_there_were_tokens():
    piece = StreamedText(0, 1, "text", True)
    assert (piece.token_ids, piece.finish_reason, piece.logprobs) == ((), None, None)


def test_a_cancelled_prompt_ends_and_the_others_go_on(llm):
    expected = llm.generate(PROMPTS, greedy())
    stream = llm.stream(PROMPTS, greedy())
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if piece.prompt == 1 and sum(one.prompt == 1 for one in pieces) == 3:
            stream.cancel(1)
    found = joined(pieces)
    for prompt in (0, 2):
        assert_adds_up(found[prompt, 0], expected[prompt].outputs[0])
    last = found[1, 0][-1]
    assert (last.finish_reason, last.token_ids, last.logprobs) == ("cancelled", (), None)
    assert tokens_of(found[1, 0]) == expected[1].token_ids[:3]
    assert expected[1].text.startswith(text_of(found[1, 0]))


def test_what_was_held_back_comes_with_the_end_of_a_cancelled_sample(llm):
    (whole,) = llm.generate(PROMPTS[0], greedy())
    stream = llm.stream(PROMPTS[0], greedy(stop=whole.text + "never", logprobs=1))
    first = [next(stream) for _ in range(3)]
    stream.cancel(0)
    last = next(stream)
    assert text_of(first) == ""
    assert last.text == llm.tokenizer.decode(whole.token_ids[:3])
    assert (last.finish_reason, last.logprobs) == ("cancelled", ())
    assert list(stream) == []


def test_pieces_of_a_step_come_before_those_of_a_cancellation(llm):
    params = SamplingParams(max_tokens=6, temperature=1.3, seed=4, n=3, ignore_eos=True)
    stream = llm.stream(PROMPTS[0], params)
    pieces = [next(stream)]
    stream.cancel(0)
    stream.cancel(0)
    found = joined([*pieces, *stream])
    assert [len(some) for some in found.values()] == [2, 2, 2]
    (expected,) = llm.generate(PROMPTS[0], params)
    for (_, index), some in found.items():
        assert tokens_of(some) == expected.outputs[index].token_ids[:1]
        assert some[-1].finish_reason == "cancelled"


def test_a_prompt_that_waits_can_be_cancelled_and_one_that_has_ended_stays_as_it_is(demo):
    llm = LLM(demo, policy="stream", max_rows=1)
    expected = llm.generate(PROMPTS[2], greedy(3))[0].outputs[0]
    stream = llm.stream(PROMPTS, [greedy(2), greedy(100), greedy(3)])
    stream.cancel(1)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if piece.prompt == 2:
            stream.cancel(0)
    assert pieces[0] == StreamedText(1, 0, "", True, (), "cancelled")
    found = joined(pieces)
    assert found[0, 0][-1].finish_reason == "length"
    assert_adds_up(found[2, 0], expected)


@pytest.mark.parametrize("prompt", [-1, 3])
def test_what_is_no_prompt_cannot_be_cancelled(llm, prompt):
    stream = llm.stream(PROMPTS, greedy())
    with pytest.raises(ConfigurationError, match=f"prompt is {prompt}; the stream has 3 prompts"):
        stream.cancel(prompt)


def users_of(model):
    """Return how many caches are open, and engines there are, for a model."""
    return attachment._attachments[model].users


@pytest.mark.parametrize("end", ["close", "delete", "cancel"])
def test_a_stream_that_is_ended_gives_everything_back(llm, end):
    before = users_of(llm.model)
    stream = llm.stream(PROMPTS[:2], greedy())
    next(stream)
    assert users_of(llm.model) > before
    if end == "close":
        stream.close()
        assert list(stream) == []
        stream.close()
    elif end == "cancel":
        stream.cancel(0)
        stream.cancel(1)
        assert [piece.finish_reason for piece in stream] == [None, "cancelled", "cancelled"]
    else:
        del stream
    assert users_of(llm.model) == before


def test_what_is_off_is_refused_at_once(llm):
    with pytest.raises(ConfigurationError, match="a prompt is empty"):
        llm.stream(["x", ""], greedy())


def test_a_prompt_that_does_not_fit_ends_the_stream(demo):
    llm = LLM(demo, policy="stream", host_memory="64KiB")
    stream = llm.stream(PROMPTS[1] * 20, greedy())
    with pytest.raises(MemoryBudgetError):
        next(stream)
    assert list(stream) == []
