"""Up to 64 rows that come and go in any order, whatever brings their cache and their weights."""

import functools
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.batcher_support import (
    MOST_TOKENS,
    WAYS,
    alone,
    assert_as_alone,
    batcher_of,
    beginning,
    greedy,
    run,
)
from tests.support import PAD, make_model

from headrace.engine.rows_batch import RowsBatch
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.hf.weights import PlacedWeights
from headrace.plan.workload import Workload
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.timeline import Lane

MODELS = ["llama-gqa", "opt", "mistral-window"]
SHARES = [0.0, 0.5, 1.0]
"""Of the layers' weights, streamed: resident, half, fully."""

MOST_ROWS = 64


@functools.cache
def placed(name, share):
    """A model some of whose weights are streamed; all tests share it."""
    model = make_model(name)
    if share:
        PlacedWeights(model, CpuBackend(), share, poison=True)
    return model


@functools.cache
def pool():
    """Prompts of random lengths, many of which begin alike: few, so that each is computed once."""
    choose = random.Random(7)
    prompts = []
    for number in range(96):
        shared = beginning(number % 3)[: choose.choice([0, 0, 33, 64, 128, 150])]
        prompts.append(shared + beginning(100 + number)[: choose.choice([1, 2, 17, 31, 32, 90])])
    return prompts


def crowd(choose, rows):
    """Return requests whose samples are that many, and the steps at which some are cancelled."""
    requests, cancel_at = [], {}
    together = choose.random() < 0.3
    while rows:
        samples = min(rows, choose.choice([1, 1, 1, 1, 2, 5]))
        rows -= samples
        params = greedy(choose.choice([1, 2, choose.randint(1, MOST_TOKENS)]), n=samples)
        comes = 0 if together else choose.randrange(30)
        if choose.random() < 0.1:
            cancel_at[len(requests)] = comes + choose.randrange(20)
        requests.append((choose.choice(pool()), params, comes))
    return requests, cancel_at


@given(
    rows=st.integers(1, MOST_ROWS),
    seed=st.integers(0, 10_000),
    max_rows=st.sampled_from([7, 23, MOST_ROWS]),
    name=st.sampled_from(MODELS),
    way=st.sampled_from(WAYS),
    streamed=st.sampled_from(SHARES),
    share=st.booleans(),
    prefill_tokens=st.sampled_from([40, 300, 4000]),
)
@example(64, 1, 64, "llama-gqa", WAYS[3], 0.5, True, 4000)
@example(64, 2, 64, "opt", WAYS[2], 1.0, True, 300)
@example(64, 3, 64, "mistral-window", WAYS[1], 0.0, False, 4000)
@example(64, 4, 64, "llama-gqa", WAYS[0], 1.0, True, 4000)
@settings(max_examples=16, deadline=None)
def test_a_crowd_gets_what_each_gets_alone(
    rows, seed, max_rows, name, way, streamed, share, prefill_tokens
):
    requests, cancel_at = crowd(random.Random(seed), rows)
    batcher = batcher_of(placed(name, streamed), way, max_rows, prefill_tokens, share_prompts=share)
    try:
        jobs = run(batcher, requests, cancel_at)
    finally:
        batcher.close()
    assert_as_alone(name, requests, jobs, cancel_at)
    assert share or batcher.shared_tokens == 0


def padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, torch.tensor(mask)


@pytest.mark.parametrize("batches", [1, 3, 64])
@pytest.mark.parametrize("streamed", SHARES)
@pytest.mark.parametrize("way", WAYS)
def test_row_by_row_and_column_by_column(way, streamed, batches):
    """64 rows in one forward a step, in three, and each by itself."""
    name, steps = "llama-gqa", 6 if batches == MOST_ROWS else 20
    prompts = random.Random(str((way, streamed))).sample(pool(), MOST_ROWS)
    policy, recompute, host = way
    options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=True)
    workload = Workload(MOST_ROWS, max(map(len, prompts)), steps)
    made = []
    with RowsCache(placed(name, streamed), workload, options) as cache:
        batch = RowsBatch(*padded(prompts), cache, batches)
        logits = batch.prefill()
        for _ in range(steps):
            made.append(logits.argmax(-1))
            logits = batch.step(made[-1])
        made.append(logits.argmax(-1))
        cache.paged.layout.check_integrity()
    for prompt, tokens in zip(prompts, torch.stack(made, 1).tolist(), strict=True):
        assert tuple(tokens) == alone(name, prompt, MOST_TOKENS)[: steps + 1]


@pytest.mark.parametrize("streamed", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [90, 30])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_loaded_ahead_of_prompts_is_of_use(monkeypatch, way, tokens, streamed):
    """Nothing for another row's prompt, for a part what went before, for a step the first of it."""
    loads, transfer, run_forward = [], CpuBackend.transfer, RowsCache.forward

    def noted(backend, lane, copies, after, timed=False):
        if lane in (Lane.LOAD_KV, Lane.LOAD_ACTIVATIONS):
            loads[-1] += sum(copy.size_bytes for copy in copies)
        return transfer(backend, lane, copies, after, timed)

    def forward(cache, *arguments):
        loads.append(0)
        return run_forward(cache, *arguments)

    def run_one(ahead):
        loads.clear()
        monkeypatch.setattr(RowsCache, "forward", ahead)
        policy, recompute, host = way
        options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=True)
        prompts = [beginning(row)[:90] for row in range(3)]
        with RowsCache(
            placed("llama-gqa", streamed), Workload(3, 90, 8), options, prefill_tokens=tokens
        ) as cache:
            RowsBatch(*padded(prompts), cache).prefill()
            forward(cache, range(3), [[0]] * 3, range(0))
        return list(loads)

    monkeypatch.setattr(CpuBackend, "transfer", noted)
    needed = run_one(lambda cache, rows, some, *_: forward(cache, rows, some, range(0)))
    found = run_one(forward)
    parts = 90 // tokens
    if not streamed:
        # What comes with streamed weights comes ahead of any step.
        assert needed[0] == 0
        assert sum(found) == sum(needed)
    if sum(needed):
        # The last prompt's forward, too, brings something for the step.
        assert found[-2] > (0 if parts == 1 else needed[-2])
    if parts == 1:
        assert found[:-2] == [0] * 2 or streamed
    elif way[0] != "resident":
        assert found[0] > 0
