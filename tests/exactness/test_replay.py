"""Forwards that were recorded once and are replayed: the plain model's tokens all the same."""

import random

import pytest
import torch
from tests.batcher_support import WAYS
from tests.exactness.rows_life import Life
from tests.op_graph import OpGraph
from tests.support import CONFIGS, shared_model

from headrace.hf import replay
from headrace.hf.planning import CacheOptions
from headrace.hf.replay import NotReplayableError, RecordedForward, Replays
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload

CPU = torch.device("cpu")

LOOKING = ("gpt2",)
"""Models whose forward looks for padding among its tokens, unless a CUDA stream is capturing."""


class CountingGraph(OpGraph):
    """Counts how often a graph is replayed."""

    replays = 0

    def replay(self):
        CountingGraph.replays += 1
        super().replay()


def rows_cache(model, policy="resident", recompute=None, host=None):
    options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=True)
    cache = RowsCache(model, Workload(6, 40, 20), options)
    cache._replays = Replays(cache._run_instead, CPU, 9, new_graph=CountingGraph)
    return cache


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_come_and_go(name, way, monkeypatch):
    monkeypatch.setattr(CountingGraph, "replays", 0)
    steps, choose = 9, random.Random(str((name, way)))
    with rows_cache(shared_model(name), *way) as cache:
        life = Life(name, cache, steps)
        for _ in life.come_and_go(list(range(12)), choose):
            life.decode(range(len(life.seeds)))
        if name in LOOKING:
            assert "not permitted when stream is capturing" in cache._replays.reason
            return
        assert cache._replays.reason is None
    assert CountingGraph.replays > shared_model(name).config.num_hidden_layers


@pytest.mark.parametrize("native", ["best", "off"])
def test_memory_that_is_made_in_a_replay_serves_plain_forwards_too(native, monkeypatch):
    """The first page is filled in a replay: what the host's lane needs is made there."""
    if native == "off":
        monkeypatch.setenv("HEADRACE_NATIVE", "off")
    model, prompt, steps = shared_model("llama"), [3, 4, 5, 6, 7], 20
    with rows_cache(model, "host") as cache:
        rows = cache.add(2)
        cache.forward(rows, [prompt] * 2)
        for _ in range(steps):
            cache.forward(rows, [[5]] * 2)
        assert list(cache._replays._kept) == [2]
        found = cache.forward(range(1), [[6]])
    with torch.no_grad():
        expected = model(torch.tensor([[*prompt, *[5] * steps, 6]])).logits[:, -1].float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_forward_is_recorded_at_the_second_of_its_number_of_rows(monkeypatch):
    monkeypatch.setattr(CountingGraph, "replays", 0)
    with rows_cache(shared_model("llama")) as cache:
        life = Life("llama", cache, 9)
        life.admit([1, 2], 20, None)
        life.decode(range(2))
        life.decode(range(1))
        assert not cache._replays._kept
        life.decode(range(2))
        assert list(cache._replays._kept) == [2]
        replayed = CountingGraph.replays
        life.decode(range(2))
        # A graph before each layer's attention, and one after the last.
        assert CountingGraph.replays == replayed + 3


def test_only_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(replay, "MOST_KEPT", 2)
    with rows_cache(shared_model("llama")) as cache:
        life = Life("llama", cache, 12)
        life.admit([1, 2, 3], 20, None)
        for rows in (1, 1, 2, 2, 1, 3, 3):
            life.decode(range(rows))
        assert list(cache._replays._kept) == [1, 3]


def test_those_kept_are_of_few_rows_together():
    with rows_cache(shared_model("llama")) as cache:
        cache._replays._most_rows = 2
        life = Life("llama", cache, 12)
        life.admit([1, 2, 3], 20, None)
        for rows, kept in ((2, []), (2, [2]), (1, [2]), (1, [2, 1]), (3, [2, 1]), (3, [2, 1, 3])):
            life.decode(range(rows))
            assert list(cache._replays._kept) == kept
        life.admit([4], 20, None)
        for rows, kept in ((4, [2, 1, 3]), (4, [1, 3, 4])):
            life.decode(range(rows))
            assert list(cache._replays._kept) == kept


def test_a_model_that_waits_for_the_device_is_run_as_it_is():
    model = shared_model("llama")

    def look(module, args):
        args[0].sum().item()

    hook = model.lm_head.register_forward_pre_hook(look)
    try:
        with rows_cache(model) as cache:
            life = Life("llama", cache, 9)
            life.admit([1, 2], 20, None)
            for _ in range(4):
                life.decode(range(2))
            assert "not permitted when stream is capturing" in cache._replays.reason
            assert not cache._replays._kept
    finally:
        hook.remove()


def test_positions_that_are_fixed_while_recording_are_noticed():
    model = shared_model("llama")
    with rows_cache(model) as cache, torch.inference_mode():

        def run(ids, positions, attend):
            fixed = torch.full_like(positions, 3) if recording else positions
            return cache._run_instead(ids, fixed, attend)

        recording = True
        made = RecordedForward(run, 2, CPU, OpGraph)
        recording = False
        with pytest.raises(NotReplayableError):
            made.check(run)
