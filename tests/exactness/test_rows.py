"""Rows that come and go: each has the tokens that the plain model gives it alone."""

import functools
import random

import pytest
import torch
from tests.support import CONFIGS, LOGIT_TOLERANCE, VOCABULARY, logit_error, shared_model

from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload

WAYS = [("resident", None, None), ("stream", None, None), ("auto", 0.5, None), ("auto", 0.3, 0.4)]


def rows_cache(model, rows, policy, recompute, host):
    options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=True)
    return RowsCache(model, Workload(rows, 40, 20), options)


@functools.cache
def prompt(seed):
    choose = random.Random(seed)
    return [choose.randrange(3, VOCABULARY) for _ in range(choose.randrange(1, 120))]


@functools.cache
def alone(name, seed, steps):
    """Greedy tokens and logits of a prompt by itself, without any cache."""
    model, ids, logits = shared_model(name), list(prompt(seed)), []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([ids])).logits[0, -1])
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt(seed)) :], logits


class Life:
    """Some rows, each with what it has made so far."""

    def __init__(self, name, cache, steps):
        self.name, self.cache, self.steps = name, cache, steps
        self.seeds, self.made = [], []

    def admit(self, seeds, chunk, next_rows):
        rows = self.cache.add(len(seeds))
        longest = max(len(prompt(seed)) for seed in seeds)
        if chunk < longest:
            # Chunks that follow each other concern one row each.
            for row, seed in zip(rows, seeds, strict=True):
                tokens = prompt(seed)
                for start in range(0, len(tokens), chunk):
                    some = [tokens[start : start + chunk]]
                    logits = self.cache.forward(range(row, row + 1), some, next_rows)
                self.note(seed, [], logits[0])
                self.made.append([int(logits[0].argmax())])
        else:
            logits = self.cache.forward(rows, [prompt(seed) for seed in seeds], next_rows)
            for seed, of_row in zip(seeds, logits, strict=True):
                self.note(seed, [], of_row)
                self.made.append([int(of_row.argmax())])
        self.seeds += seeds

    def note(self, seed, made, logits):
        tokens, expected = alone(self.name, seed, self.steps)
        assert made == tokens[: len(made)]
        assert logit_error(expected[len(made)], logits) <= LOGIT_TOLERANCE

    def decode(self, rows):
        tokens = [[self.made[row][-1]] for row in rows]
        logits = self.cache.forward(rows, tokens)
        for row, of_row in zip(rows, logits, strict=True):
            self.note(self.seeds[row], self.made[row], of_row)
            self.made[row].append(int(of_row.argmax()))

    def arrange(self, sources):
        self.cache.arrange(sources)
        self.seeds = [self.seeds[source] for source in sources]
        self.made = [list(self.made[source]) for source in sources]

    def drop_finished(self):
        self.arrange([row for row, made in enumerate(self.made) if len(made) < self.steps])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_come_and_go(name, way):
    steps, choose = 9, random.Random(str((name, way)))
    with rows_cache(shared_model(name), 6, *way) as cache:
        life = Life(name, cache, steps)
        seeds = list(range(12))
        while seeds or life.seeds:
            room = min(cache.capacity - len(life.seeds), len(seeds))
            if room and choose.random() < 0.6:
                count = choose.randint(1, room)
                decoding = range(len(life.seeds))
                life.admit(seeds[:count], choose.choice([7, 33, 200]), decoding or None)
                seeds = seeds[count:]
            elif life.seeds:
                first = choose.choice([0, 0, choose.randrange(len(life.seeds))])
                life.decode(range(first, len(life.seeds)))
                life.drop_finished()
            cache.paged.layout.check_integrity()


def test_rows_fork():
    with rows_cache(shared_model("llama-gqa"), 8, "auto", 0.4, None) as cache:
        life = Life("llama-gqa", cache, 9)
        life.admit([1, 2], 200, None)
        life.decode(range(2))
        life.arrange([0, 0, 1, 1, 0])
        for _ in range(4):
            life.decode(range(5))
        life.arrange([3, 0])
        life.decode(range(2))
