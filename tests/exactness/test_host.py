"""Attention by the host's cores, by itself and beside the other paths."""

import pytest
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

from headrace.plan.operations import Kind


@pytest.mark.parametrize(
    ("recompute", "host"), [(None, 0.25), (None, 0.6), (None, 1.0), (0.37, 0.25), (0.4, 0.6)]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_the_plain_model(name, recompute, host):
    model = shared_model(name)
    with host_cache(model, "auto", recompute, host_fraction=host) as cache:
        made = generate(model, make_batch(), cache)
        kinds = {op.kind for op in cache.paged.decode_program().operations}
        # A model all of whose layers are windowed has nothing on the host.
        assert (Kind.HOST_ATTEND in kinds) is (name != "mistral-window")
    assert_same(greedy_alone(name), made)


@pytest.mark.parametrize("size", [3, 16, 17])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_several_new_tokens_at_once(name, size):
    model, batch = shared_model(name), make_batch((90, 61))
    sizes = [64, *chunk_sizes(batch.input_ids.shape[1] - 64, size)]
    plain = forward_in_chunks(model, batch, plain_cache(model), sizes)
    with host_cache(model, "host", None) as cache:
        made = forward_in_chunks(model, batch, cache, sizes)
    assert_same_where_seen(plain, made, batch.attention_mask)


def test_beams_share_pages_on_the_host():
    model, batch = shared_model("llama-gqa"), make_batch((70, 45))
    options = {"num_beams": 3}
    plain = generate(model, batch, plain_cache(model), **options)
    with host_cache(model, "host", None) as cache:
        made = generate(model, batch, cache, **options)
    assert_same(plain, made)
