"""Rows that come and go: each has the tokens that the plain model gives it alone."""

import random

import pytest
from tests.batcher_support import WAYS
from tests.exactness.rows_life import Life
from tests.support import CONFIGS, shared_model

from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload


def rows_cache(model, rows, policy, recompute, host):
    options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=True)
    return RowsCache(model, Workload(rows, 40, 20), options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_come_and_go(name, way):
    steps, choose = 9, random.Random(str((name, way)))
    with rows_cache(shared_model(name), 6, *way) as cache:
        life = Life(name, cache, steps)
        for _ in life.come_and_go(list(range(12)), choose):
            first = choose.choice([0, 0, choose.randrange(len(life.seeds))])
            life.decode(range(first, len(life.seeds)))


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
