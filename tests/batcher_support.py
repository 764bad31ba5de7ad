"""Requests that come and go: a batcher, and what the plain model gives each of them alone."""

import functools
import random

import torch
from tests.support import VOCABULARY, shared_model

from headrace.engine.batcher import Batcher
from headrace.engine.request import SamplingParams
from headrace.hf.planning import CacheOptions

WAYS = [("resident", None, None), ("stream", None, None), ("auto", 0.5, None), ("auto", 0.3, 0.4)]
"""Policies with their fractions: rebuilt, and attended to by the host."""

MOST_TOKENS = 30
"""Tokens that a request generates at most."""


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, tokens, **options):
        return "".join(chr(48 + token) for token in tokens)


def batcher_of(model, way, max_rows=5, prefill_tokens=70, host_memory=None, **options):
    """Return a batcher with poisoned staging."""
    policy, recompute, host = way
    asked = CacheOptions.checked(policy, None, host_memory, recompute, host, None, poison=True)
    return Batcher(model, Letters(), asked, (), max_rows, prefill_tokens, **options)


def greedy(count, **settings):
    """Return params of a greedy request."""
    return SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, **settings)


@functools.cache
def beginning(number):
    """Return 150 tokens that a number stands for."""
    choose = random.Random(1000 + number)
    return tuple(choose.randrange(3, VOCABULARY) for _ in range(150))


@functools.cache
def alone(name, prompt, count):
    """Return the plain model's greedy tokens of a prompt by itself."""
    made = shared_model(name).generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=count, min_new_tokens=count
    )
    return tuple(made[0, len(prompt) :].tolist())


def run(batcher, requests, cancel_at=None, check=lambda cache: None):
    """Run requests (prompt, params, step at which it comes); return what each made.

    Args:
        batcher: of any model.
        requests: in any order.
        cancel_at: by request, the step before which it is cancelled.
        check: called with the cache after each step.
    """
    coming = sorted(enumerate(requests), key=lambda entry: entry[1][2])
    jobs, step = {}, 0
    while coming or batcher.has_work:
        while coming and (coming[0][1][2] <= step or not batcher.has_work):
            place, (prompt, params, _) = coming.pop(0)
            jobs[place] = batcher.add(str(place), list(prompt), params)
        for place, at in (cancel_at or {}).items():
            if at == step and place in jobs:
                batcher.cancel(jobs[place])
        batcher.step()
        if batcher.has_work and batcher.opened:
            batcher.cache.paged.layout.check_integrity()
            check(batcher.cache)
        step += 1
    return [jobs[place] for place in range(len(requests))]


def assert_as_alone(name, requests, jobs, cancelled=()):
    """Fail unless each sample has the plain model's tokens; a cancelled one, the first of them."""
    for place, ((prompt, params, _), job) in enumerate(zip(requests, jobs, strict=True)):
        assert job.error is None
        expected = alone(name, prompt, MOST_TOKENS)[: params.max_tokens]
        for row in job.rows:
            made = row.output(0).token_ids
            if place in cancelled:
                assert made == expected[: len(made)]
            else:
                assert made == expected
