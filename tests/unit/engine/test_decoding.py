import pytest
import torch
from tests.support import host_cache, plain_cache, shared_model

from headrace.engine.decoding import StaticBatch, pad_left

PROMPTS = ([5, 6, 7], [8], [9, 10])


class Forwards:
    """Stands in for a model: keeps what it is called with, and takes positions."""

    def __init__(self):
        self.given = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def parameters(self):
        return iter([self.weight])

    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep=0):
        raise AssertionError("only its signature is read")

    def __call__(self, **given):
        self.given.append(given)
        logits = torch.zeros((len(given["input_ids"]), 1, 4), dtype=torch.bfloat16)
        return type("Output", (), {"logits": logits})()


class ForwardsWithoutPositions(Forwards):
    def forward(self, input_ids, attention_mask):
        raise AssertionError("only its signature is read")


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_left(PROMPTS, 1)
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8], [1, 9, 10]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_positions_count_each_rows_own_tokens():
    model = Forwards()
    batch = StaticBatch(model, *pad_left(PROMPTS, 1), cache=None)
    batch.prefill()
    batch.step(torch.tensor([20, 21, 22]))
    batch.step(torch.tensor([23, 24, 25]), torch.tensor([True, False, True]))
    batch.step(torch.tensor([26, 27, 28]), torch.tensor([False, False, True]))
    prompt, *steps = (given["position_ids"].tolist() for given in model.given)
    assert prompt == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    # A finished row's position stays where it was.
    assert steps == [[[3], [1], [2]], [[4], [1], [3]], [[4], [1], [4]]]


def test_finished_rows_take_part_as_padding():
    model = Forwards()
    batch = StaticBatch(model, *pad_left(PROMPTS, 1), cache=None)
    batch.prefill()
    batch.step(torch.tensor([20, 21, 22]))
    batch.step(torch.tensor([23, 24, 25]), torch.tensor([True, False, True]))
    assert model.given[1]["input_ids"].tolist() == [[20], [21], [22]]
    masks = [given["attention_mask"].tolist() for given in model.given]
    assert masks[1] == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    assert masks[2] == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_logits_are_float32_and_each_forward_is_timed():
    model = Forwards()
    batch = StaticBatch(model, *pad_left(PROMPTS, 1), cache=None)
    assert batch.prefill().dtype == torch.float32
    batch.step(torch.zeros(3, dtype=torch.int64))
    assert len(batch.forward_s) == 2
    assert min(batch.forward_s) > 0
    assert model.given[0]["logits_to_keep"] == 1


def test_what_a_model_does_not_take_is_not_given():
    model = ForwardsWithoutPositions()
    StaticBatch(model, *pad_left(PROMPTS, 1), cache=None).prefill()
    assert not {"position_ids", "logits_to_keep"} & model.given[0].keys()


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("ours", [False, True])
def test_a_row_has_the_logits_that_it_has_alone_also_beside_finished_rows(name, ours):
    """The mask hides padding and what finished rows are fed; their neighbours see neither."""
    model = shared_model(name)
    prompts = ([5, 6, 7, 8, 9, 10, 11], [12, 13, 14])
    new = torch.tensor([[20, 30], [21, 31], [22, 32]])
    running = torch.tensor([[True, True], [True, False], [True, False]])

    def opened():
        return host_cache(model, "recompute", 0.5) if ours else plain_cache(model)

    cache = opened()
    batch = StaticBatch(model, *pad_left(prompts, 0), cache)
    made = [batch.prefill()[0], *(batch.step(*step)[0] for step in zip(new, running, strict=True))]
    if ours:
        cache.close()
    alone = StaticBatch(model, *pad_left(prompts[:1], 0), plain_cache(model))
    expected = [alone.prefill()[0], *(alone.step(step[:1])[0] for step in new)]
    torch.testing.assert_close(torch.stack(made), torch.stack(expected), rtol=1e-4, atol=1e-3)
