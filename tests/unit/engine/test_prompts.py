from pathlib import Path

import pytest
import torch

import headrace
from headrace.engine import prompts
from headrace.engine.prompts import encode_prompts, max_context, source_prompts
from headrace.errors import ConfigurationError, ContextLengthError

PACKAGE = Path(headrace.__file__).parent


def lengths(demo, texts):
    return [len(demo.tokenizer(text)["input_ids"]) for text in texts]


def test_sources_exist_and_are_long_enough_for_the_demo(demo):
    for name in prompts._SOURCES:
        text = (PACKAGE / name).read_text("utf-8")
        assert lengths(demo, [text])[0] >= 400


@pytest.mark.parametrize("ragged", [False, True])
def test_source_prompts_are_whole_lines_of_about_the_length_asked(demo, ragged):
    made = source_prompts(demo.tokenizer, 4, 120, ragged)
    assert len(made) == len(set(made)) == 4
    for text, name in zip(made, prompts._SOURCES, strict=False):
        assert (PACKAGE / name).read_text("utf-8").startswith(text)
        assert text.endswith("\n")
    found = lengths(demo, made)
    wanted = [120, 113, 105, 98] if ragged else [120] * 4
    for count, most in zip(found, wanted, strict=True):
        assert most - 40 <= count <= most


def test_more_rows_than_sources_repeat_them(demo):
    count = len(prompts._SOURCES)
    made = source_prompts(demo.tokenizer, count + 1, 60, ragged=False)
    assert made[0] == made[count]


def test_a_prompt_shorter_than_a_line_is_kept(demo):
    assert source_prompts(demo.tokenizer, 1, 2)[0]


def test_given_prompts_become_tokens(demo):
    texts = ["def f(x):", "import os\n"]
    made = encode_prompts(demo.tokenizer, texts, 100)
    assert [demo.tokenizer.decode(tokens) for tokens in made] == texts


def test_an_empty_prompt_is_refused(demo):
    with pytest.raises(ConfigurationError, match="a prompt is empty"):
        encode_prompts(demo.tokenizer, ["def", ""], 100)


def test_a_prompt_must_leave_room_for_a_token(demo):
    text = "x = 1\n" * 9
    count = lengths(demo, [text])[0]
    assert len(encode_prompts(demo.tokenizer, [text], count + 1)[0]) == count
    with pytest.raises(ContextLengthError, match=f"{count} tokens.*shorten.*{count - 1} or fewer"):
        encode_prompts(demo.tokenizer, [text], count)


def test_the_context_is_the_models_or_has_no_end(demo):
    assert max_context(demo.model) == 1024
    model = torch.nn.Module()
    model.config = type("Config", (), {"get_text_config": lambda self, **_: self})()
    assert max_context(model) > 1 << 20
