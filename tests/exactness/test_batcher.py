"""Requests that come and go: each gets the tokens that the plain model gives it alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batcher_support import (
    MOST_TOKENS,
    WAYS,
    assert_as_alone,
    batcher_of,
    beginning,
    greedy,
    run,
)
from tests.support import make_model, shared_model

from headrace.engine.request import SamplingParams
from headrace.errors import ConfigurationError, MemoryBudgetError
from headrace.hf.weights import PlacedWeights
from headrace.runtime.cpu_lanes import CpuBackend


@st.composite
def request_lists(draw):
    """Prompts of any length, many of which begin alike, that come at any time."""
    requests = []
    for _ in range(draw(st.integers(1, 9))):
        shared = beginning(draw(st.integers(0, 1)))[: draw(st.sampled_from([0, 0, 40, 64, 150]))]
        seed = draw(st.integers(0, 5))
        own = beginning(10 + seed)[: draw(st.integers(1, 100))]
        params = SamplingParams(
            max_tokens=draw(st.integers(1, MOST_TOKENS)),
            temperature=0.0,
            ignore_eos=True,
            n=draw(st.sampled_from([1, 1, 1, 2, 4])),
        )
        requests.append((shared + own, params, draw(st.integers(0, 25))))
    return requests


@given(
    requests=request_lists(),
    name=st.sampled_from(["llama-gqa", "opt", "mistral-window"]),
    way=st.sampled_from(WAYS),
    share=st.booleans(),
    prefill_tokens=st.sampled_from([13, 70, 1000]),
    cancel=st.none() | st.tuples(st.integers(0, 20), st.integers(0, 8)),
)
@settings(max_examples=60, deadline=None)
def test_requests_get_what_they_get_alone(requests, name, way, share, prefill_tokens, cancel):
    batcher = batcher_of(
        shared_model(name), way, prefill_tokens=prefill_tokens, share_prompts=share
    )
    try:
        jobs = run(batcher, requests, None if cancel is None else {cancel[1]: cancel[0]})
    finally:
        batcher.close()
    assert_as_alone(name, requests, jobs, () if cancel is None else (cancel[1],))
    if not share:
        assert batcher.shared_tokens == 0


@given(requests=request_lists(), way=st.sampled_from(WAYS), share=st.sampled_from([0.5, 1.0]))
@settings(max_examples=15, deadline=None)
def test_streamed_weights_change_nothing(requests, way, share):
    model = make_model("llama-gqa")
    weights = PlacedWeights(model, CpuBackend(), share, poison=True)
    batcher = batcher_of(model, way)
    try:
        jobs = run(batcher, requests)
    finally:
        batcher.close()
        weights.release()
        weights.backend.close()
    assert_as_alone("llama-gqa", requests, jobs)


@pytest.mark.parametrize("way", WAYS)
def test_a_common_beginning_goes_through_the_model_once(way):
    requests = [(beginning(0)[:128] + beginning(20 + n)[:30], greedy(9), 0) for n in range(8)]
    batcher = batcher_of(shared_model("llama-gqa"), way)
    jobs = run(batcher, requests)
    block = batcher.cache.block_tokens
    batcher.close()
    assert batcher.shared_tokens == 8 * (128 // block * block)
    assert_as_alone("llama-gqa", requests, jobs)


def test_a_common_beginning_that_leaves_too_few_rows_is_not_shared():
    requests = [(beginning(0)[:64] + beginning(20 + n)[:9], greedy(3, n=4), 0) for n in range(3)]
    batcher = batcher_of(shared_model("llama-gqa"), WAYS[1], max_rows=4)
    jobs = [batcher.add(str(place), list(one[0]), one[1]) for place, one in enumerate(requests)]
    for _ in range(100):
        batcher.step()
    assert not batcher.has_work
    batcher.close()
    assert_as_alone("llama-gqa", requests, jobs)


def test_rows_wait_where_host_memory_is_short():
    """The budget holds two or three rows; nobody fails, and nothing is lost."""
    requests = [(beginning(30 + n)[:120], greedy(25), 0) for n in range(6)]
    model = shared_model("llama-gqa")
    batcher = batcher_of(model, ("stream", None, None), host_memory=300_000)
    most = 0
    jobs = [batcher.add(str(place), list(one[0]), one[1]) for place, one in enumerate(requests)]
    while batcher.has_work:
        batcher.step()
        most = max(most, batcher.decoding)
        assert batcher.cache.paged.host_bytes <= 300_000
    batcher.close()
    assert 1 <= most < len(requests)
    assert_as_alone("llama-gqa", requests, jobs)


def test_a_row_that_does_not_fit_alone_fails_by_itself():
    model = shared_model("llama-gqa")
    batcher = batcher_of(model, ("stream", None, None), host_memory=200_000)
    short = [batcher.add(str(n), list(beginning(n)[:20]), greedy(5)) for n in range(3)]
    long = batcher.add("long", list(beginning(7)) * 3, greedy(5))
    later = batcher.add("later", list(beginning(8)[:20]), greedy(5))
    while batcher.has_work:
        batcher.step()
    batcher.close()
    assert isinstance(long.error, MemoryBudgetError)
    assert all(job.error is None and job.finished for job in (*short, later))


def test_samples_beyond_the_rows_are_refused():
    batcher = batcher_of(shared_model("opt"), WAYS[0], max_rows=2)
    with pytest.raises(ConfigurationError, match="n is 3, but at most 2 rows"):
        batcher.add("a", [5], greedy(1, n=3))


@pytest.mark.parametrize("setting", ["max_rows", "prefill_tokens"])
def test_numbers_below_one_are_refused(setting):
    with pytest.raises(ConfigurationError, match=f"{setting} is 0"):
        batcher_of(shared_model("opt"), WAYS[0], **{setting: 0})
