"""Weights that are streamed from the host, beside every way of bringing the cache to bear."""

import copy

import pytest
import torch
from tests.support import (
    CONFIGS,
    assert_same,
    assert_same_where_seen,
    chunk_sizes,
    forward_in_chunks,
    generate,
    greedy_alone,
    host_cache,
    make_batch,
    plain_cache,
    shared_model,
)

from headrace.hf.weights import PlacedWeights, placed_weights
from headrace.plan.operations import Kind
from headrace.runtime.cpu_lanes import CpuBackend

SHARES = (0.0, 0.5, 1.0)


@pytest.fixture
def placed(request):
    """A copy of a tiny model with a share of its weights streamed."""
    models = []

    def place(name, share):
        model = copy.deepcopy(shared_model(name))
        weights = PlacedWeights(model, CpuBackend(), share, poison=True)
        models.append(weights)
        return model, weights

    yield place
    for weights in models:
        weights.release()
        weights.backend.close()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_model_is_the_same(placed, name, share):
    model, weights = placed(name, share)
    assert_same(greedy_alone(name), generate(model, make_batch(), plain_cache(model)))
    assert share <= weights.share <= 1.0


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("recompute", "host"), [(None, None), (1.0, None), (0.4, 0.6)])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_the_plain_model(placed, name, recompute, host, share):
    model, weights = placed(name, share)
    with host_cache(model, "auto", recompute, host_fraction=host) as cache:
        made = generate(model, make_batch(), cache)
        program = cache.paged.decode_program()
    assert_same(greedy_alone(name), made)
    loads = [op.link_bytes for op in program.operations if op.kind is Kind.LOAD_WEIGHTS]
    assert sum(loads) == weights.streamed.host_bytes


@pytest.mark.parametrize("policy", ["resident", "stream", "kvpr"])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_every_policy(placed, name, policy):
    model, _ = placed(name, 1.0)
    with host_cache(model, policy, 0.5 if policy == "kvpr" else None) as cache:
        made = generate(model, make_batch(), cache)
    assert_same(greedy_alone(name), made)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_chunks(placed, name):
    batch = make_batch((90, 61))
    sizes = [*chunk_sizes(batch.input_ids.shape[1], 17)]
    plain = forward_in_chunks(shared_model(name), batch, plain_cache(shared_model(name)), sizes)
    model, _ = placed(name, 1.0)
    with host_cache(model, "stream", None) as cache:
        made = forward_in_chunks(model, batch, cache, sizes)
    assert_same_where_seen(plain, made, batch.attention_mask)


def test_the_plain_forward_between_steps(placed):
    """A forward without our cache may come at any time, and end anywhere."""
    model, _ = placed("llama-gqa", 1.0)
    batch = make_batch()
    ids = torch.arange(5)[None] + 7
    with torch.no_grad():
        alone = shared_model("llama-gqa")(input_ids=ids).logits
    plain = generate(shared_model("llama-gqa"), batch, plain_cache(shared_model("llama-gqa")))
    with host_cache(model, "stream", None) as cache:
        made = generate(model, batch, cache)
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, alone)
        fail = model.model.layers[1].register_forward_pre_hook(_raise)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids)
        fail.remove()
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, alone)
    assert_same(plain, made)
    with host_cache(model, "recompute", 0.5) as cache:
        assert_same(plain, generate(model, batch, cache))


def _raise(module, args):
    raise ZeroDivisionError


def test_released_weights_are_the_models_own(placed):
    model, weights = placed("opt", 0.7)
    weights.release()
    assert placed_weights(model) is None
    own = dict(shared_model("opt").named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, own[name], rtol=0, atol=0)
