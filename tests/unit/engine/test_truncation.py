import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from headrace.engine.request import SamplingParams
from headrace.engine.truncation import TopPByBins, Truncation

NO_IDS = torch.empty((1, 0), dtype=torch.int64)


def kept(warper, scores):
    return (warper(NO_IDS, scores)[0] > -torch.inf).nonzero().squeeze(-1).tolist()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 2, 50, 5000]),
    spread=st.sampled_from([0.01, 1.0, 5.0, 40.0]),
    top_p=st.floats(0.001, 0.9995),
    banned=st.booleans(),
)
def test_top_p_keeps_what_transformers_keeps(seed, vocabulary, spread, top_p, banned):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((1, vocabulary), generator=generator) * spread
    if banned:
        scores[0, 1::3] = -torch.inf
    made, expected = kept(TopPByBins(top_p), scores), kept(TopPLogitsWarper(top_p), scores)
    probabilities = scores[0].double().softmax(dim=-1)
    different = set(made) ^ set(expected)
    # Rounding may decide at the edge of the share, between tokens that hardly matter there.
    assert sum(probabilities[token].item() for token in different) < 2e-5 or len(different) <= 1
    if made != expected:
        held = probabilities[made].sum().item()
        assert abs(held - top_p) < probabilities[made].min().item() + 2e-5


def test_of_equal_tokens_top_p_keeps_as_many_as_it_takes_and_the_first():
    assert kept(TopPByBins(0.5), torch.zeros((1, 8))) == [0, 1, 2, 3]
    assert kept(TopPByBins(0.51), torch.zeros((1, 8))) == [0, 1, 2, 3, 4]
    assert kept(TopPByBins(1e-9), torch.zeros((1, 8))) == [0]


def test_tokens_far_below_the_likeliest_are_reached():
    scores = torch.full((1, 100), -1e30)
    scores[0, 42] = 0.0
    assert kept(TopPByBins(0.9999999), scores) == [42]
    assert kept(TopPByBins(1 - 2**-53), torch.linspace(0, -20, 5000)[None])[-1] > 3000


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, None),
        ({"temperature": 0.5}, None),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 4, "top_p": 0.6}, [4]),
        ({"top_k": 4, "min_p": 0.3}, [1, 4]),
        ({"top_k": 4, "top_p": 0.99, "min_p": 0.1}, [1, 2, 4]),
        # At a low temperature the others are less likely beside the likeliest.
        ({"temperature": 0.5, "min_p": 0.3}, [4]),
    ],
)
def test_what_is_left_and_the_tokens_it_is_of(params, tokens):
    logits = torch.tensor([[-3.0, 2.0, 1.0, -2.0, 3.0, -torch.inf]])
    scores, left = Truncation(SamplingParams(**params))(logits)
    assert (left if left is None else left.tolist()) == tokens
    expected = logits[0] if tokens is None else logits[0, tokens]
    torch.testing.assert_close(scores, expected / params.get("temperature", 1.0))
