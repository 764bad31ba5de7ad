"""The accounting of memory is complete: held against every tensor that there is."""

import pytest
import torch
from tests.allocations import Allocations, CountingBackend
from tests.support import VOCABULARY, make_model

from headrace.errors import MemoryBudgetError
from headrace.hf import attached_cache
from headrace.hf.embedding import HostEmbedding
from headrace.hf.placing import choose_placing
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.hf.set_aside import INDEX_BYTES
from headrace.hf.weights import PlacedWeights
from headrace.plan.workload import Workload

MACHINE = "a100-40gb-pcie4"
WORKLOAD = Workload(8, 200, 40)
WIDTHS = {"hidden_size": 128, "intermediate_size": 256}

SMALL_BYTES = 16 << 10


class Device:
    """A model, its cache, and all memory of the device that they take."""

    def __init__(self, monkeypatch, name, share, embedding_on_host=False, **changes):
        self.model = make_model(name, **changes)
        self.memory = Allocations([*self.model.parameters(), *self.model.buffers()])
        self.backend = CountingBackend(self.memory)
        with self.memory:
            if embedding_on_host:
                HostEmbedding(self.model, self.backend)
            self.weights = PlacedWeights(self.model, self.backend, share) if share else None
        monkeypatch.setattr(attached_cache, "open_backend", lambda device, profile: self.backend)

    def run(self, options, workload=WORKLOAD):
        """Prefill all rows and decode; yield the cache when it is open, then after each forward."""
        with self.memory, RowsCache(self.model, workload, options) as cache:
            self.memory.peak_bytes = self.memory.live_bytes
            yield cache
            rows = cache.add(workload.rows)
            prompts = [
                [
                    (7 * row + 5 * place) % (VOCABULARY - 3) + 3
                    for place in range(workload.prompt_len)
                ]
                for row in rows
            ]
            tokens, at_once = [], max(1, cache.prefill_tokens // workload.prompt_len)
            for first in range(0, workload.rows, at_once):
                some = range(first, min(first + at_once, workload.rows))
                for start in range(0, workload.prompt_len, cache.prefill_tokens):
                    end = start + cache.prefill_tokens
                    parts = [prompts[row][start:end] for row in some]
                    logits = self._forward(cache, some, parts)
                    yield cache
                tokens += logits
            for _ in range(workload.generate_len):
                tokens = self._forward(cache, rows, [[token] for token in tokens])
                yield cache

    def _forward(self, cache, rows, tokens):
        return cache.forward(rows, tokens).argmax(-1).tolist()


@pytest.mark.parametrize("embedding_on_host", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("policy", "recompute", "host"),
    [
        ("resident", None, None),
        ("stream", None, None),
        ("kvpr", 0.5, None),
        ("recompute", 1.0, None),
        ("auto", 0.3, 0.4),
    ],
)
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2"])
def test_all_that_stays_is_accounted_for(
    monkeypatch, name, policy, recompute, host, share, embedding_on_host
):
    device = Device(monkeypatch, name, share, embedding_on_host, **WIDTHS)
    before, host_before = device.memory.live_bytes, device.backend.host_bytes
    options = CacheOptions.checked(policy, None, None, recompute, host, None, poison=False)
    for cache in device.run(options):
        allowed = SMALL_BYTES + INDEX_BYTES * sum(cache.lengths)
        unaccounted = device.memory.live_bytes - cache.kept_gpu_bytes
        assert abs(unaccounted) <= allowed
        on_host = device.backend.host_bytes - host_before - cache.paged.host_bytes
        assert 0 <= on_host <= SMALL_BYTES
    del cache
    assert device.memory.live_bytes - before <= SMALL_BYTES


@pytest.mark.parametrize("embedding_on_host", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("policy", ["auto", "stream", "recompute"])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_the_peak_keeps_within_the_budget(monkeypatch, name, policy, share, embedding_on_host):
    """Of the smallest budgets for which a cache is opened: where it is refused, a little more."""
    device = Device(monkeypatch, name, share, embedding_on_host, **WIDTHS)
    budget, opened = device.memory.live_bytes, 0
    while opened < 3:
        budget = int(budget * 1.15)
        options = CacheOptions.checked(policy, budget, None, None, None, MACHINE, poison=False)
        try:
            for _ in device.run(options):
                assert device.memory.peak_bytes <= budget
        except MemoryBudgetError:
            continue
        opened += 1


@pytest.mark.parametrize("policy", ["auto", "stream", "recompute", "host"])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "opt"])
def test_a_prompt_in_parts_keeps_within_the_budget(monkeypatch, name, policy):
    """Of the smallest budgets for which a cache is opened."""
    workload = Workload(4, 480, 8)
    device = Device(monkeypatch, name, 0.0, **WIDTHS)
    budget, parts = device.memory.live_bytes, 0
    for _ in range(40):
        budget = int(budget * 1.1)
        options = CacheOptions.checked(policy, budget, None, None, None, MACHINE, poison=False)
        try:
            for cache in device.run(options, workload):
                assert cache.prefill_tokens < workload.prompt_len
                assert device.memory.peak_bytes <= budget
        except MemoryBudgetError:
            continue
        parts += 1
        if parts == 2:
            return
    pytest.fail("no cache was opened")


@pytest.mark.parametrize("asked", [64, 256, 400])
def test_the_tokens_of_prompts_that_are_asked_for_are_planned(asked):
    model = make_model("llama-gqa", **WIDTHS)
    options = CacheOptions.checked("auto", 8_000_000, None, None, None, MACHINE, poison=False)
    with RowsCache(model, WORKLOAD, options, prefill_tokens=asked) as cache:
        assert cache.prefill_tokens == cache.plan.prefill_tokens == asked
        forward = cache.plan.gpu_items["forward"]
    with RowsCache(model, WORKLOAD, options, prefill_tokens=2 * asked) as cache:
        assert cache.plan.gpu_items["forward"] >= forward


def test_a_model_thrice_the_budget_keeps_within_it(monkeypatch):
    """Of its layers as much is streamed as the plan says that was made before it was loaded."""
    changes = {**WIDTHS, "num_hidden_layers": 24}
    config = make_model("llama-gqa", **changes).config
    model_bytes = sum(
        parameter.nbytes for parameter in make_model("llama-gqa", **changes).parameters()
    )
    budget, workload = model_bytes // 3, Workload(8, 100, 20)
    options = CacheOptions.checked("auto", budget, None, None, None, MACHINE, poison=False)
    cpu = torch.device("cpu")
    placing = choose_placing(config, torch.float32, cpu, options, workload)
    device = Device(monkeypatch, "llama-gqa", placing.share, **changes)
    assert placing.share > 0.6
    for cache in device.run(options, workload):
        assert cache.kept_gpu_bytes <= device.memory.peak_bytes <= budget
    assert device.backend.host_bytes > 0.6 * model_bytes
