"""Rows of a cache, each held to the tokens that the plain model gives it alone."""

import functools
import random

import torch
from tests.support import LOGIT_TOLERANCE, VOCABULARY, logit_error, shared_model


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

    def come_and_go(self, seeds, choose):
        """Admit prompts at random moments, and yield where rows are to decode, until all ended."""
        while seeds or self.seeds:
            room = min(self.cache.capacity - len(self.seeds), len(seeds))
            if room and choose.random() < 0.6:
                count = choose.randint(1, room)
                decoding = range(len(self.seeds))
                self.admit(seeds[:count], choose.choice([7, 33, 200]), decoding or None)
                seeds = seeds[count:]
            elif self.seeds:
                yield
                self.drop_finished()
            self.cache.paged.layout.check_integrity()
