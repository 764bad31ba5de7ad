"""The input embedding on the host, beside every way of bringing the cache to bear."""

import copy
import gc
import weakref
from argparse import Namespace

import pytest
import torch
from tests.support import (
    CONFIGS,
    assert_same,
    generate,
    greedy_alone,
    host_cache,
    make_batch,
    make_model,
    plain_cache,
    shared_model,
)

from headrace.cli import bench
from headrace.engine.loading import LoadedModel
from headrace.errors import ConfigurationError, UnsupportedModelError
from headrace.hardware.catalog import machine
from headrace.hf.embedding import HostEmbedding, has_own_table, host_embedding
from headrace.hf.machine import shape_of
from headrace.hf.placing import Placing, choose_placing, place
from headrace.hf.planning import CacheOptions
from headrace.hf.weights import device_bytes, placed_weights
from headrace.plan.workload import Workload
from headrace.runtime.cpu_lanes import CpuBackend

MACHINE = "a100-40gb-pcie4"
CPU = torch.device("cpu")
OWN = [name for name in CONFIGS if has_own_table(shared_model(name))]
"""Models whose embedding is not the head as well."""


def table_of(model):
    return model.get_input_embeddings().weight


@pytest.fixture
def placed():
    """A copy of a tiny model whose embedding is on the host, and some of its weights too."""

    def make(name, share=0.0):
        model = copy.deepcopy(shared_model(name))
        place(model, Placing(share, None, None, embedding_on_host=True), CPU, None)
        return model

    return make


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("policy", ["resident", "stream", "recompute", "host", "auto"])
@pytest.mark.parametrize("name", OWN)
def test_greedy_tokens_are_those_of_the_plain_model(placed, name, policy, share):
    model = placed(name, share)
    with host_cache(model, policy, 0.5 if policy == "recompute" else None) as cache:
        assert_same(greedy_alone(name), generate(model, make_batch(), cache))


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3"])
def test_it_is_counted_with_the_host_and_comes_back(placed, name):
    whole = shared_model(name)
    all_bytes = device_bytes(whole, CPU)
    model = placed(name)
    embedding = host_embedding(model)
    assert embedding.size_bytes == table_of(whole).nbytes
    assert device_bytes(model, CPU) == all_bytes - embedding.size_bytes
    assert shape_of(model).embedding_on_host
    embedding.release()
    embedding.release()
    assert host_embedding(model) is None
    assert device_bytes(model, CPU) == all_bytes
    assert not shape_of(model).embedding_on_host
    assert_same(greedy_alone(name), generate(model, make_batch(), plain_cache(model)))


def test_it_is_moved_once(placed):
    model = placed("llama-gqa")
    with pytest.raises(ConfigurationError, match="on the host already"):
        HostEmbedding(model, CpuBackend())


def test_a_table_that_the_head_reads_stays_on_the_device():
    model = make_model("llama-gqa", tie_word_embeddings=True)
    assert not has_own_table(model)
    with pytest.raises(UnsupportedModelError, match="used by 2 of its modules"):
        HostEmbedding(model, CpuBackend())
    place(model, Placing(0.0, None, None, embedding_on_host=True), CPU, None)
    assert host_embedding(model) is None


def test_a_model_without_an_embedding_is_refused():
    with pytest.raises(UnsupportedModelError, match="no input embedding"):
        HostEmbedding(torch.nn.Linear(2, 2), CpuBackend())


@pytest.mark.parametrize(
    ("budget", "longest", "short"),
    # Weights of 390 kB and 16 rows of 1 kB a token: 8 MB for rows as long as there are positions.
    [(16_000_000, False, False), (2_000_000, True, False), (400_000, True, True)],
)
def test_it_is_placed_for_rows_as_long_as_the_model_allows(budget, longest, short):
    config = make_model("llama-gqa", vocab_size=500).config
    options = CacheOptions.checked("auto", budget, None, None, None, MACHINE, poison=False)
    assert choose_placing(config, torch.float32, CPU, options).embedding_on_host is longest
    work = Workload(1, 8, 8)
    assert choose_placing(config, torch.float32, CPU, options, work).embedding_on_host is short


def test_the_share_that_is_asked_for_is_streamed_beside_it(placed):
    model = placed("llama-gqa")
    loaded = LoadedModel("tiny", model, None)
    share = bench._place(Namespace(weights_on_host=0.5), loaded, machine(MACHINE)).share
    assert placed_weights(model).share == share >= 0.5
    assert host_embedding(model) is not None


def test_where_the_host_has_little_memory_it_stays_on_the_device():
    config = make_model("llama-gqa", vocab_size=5000).config
    table = 5000 * config.hidden_size * 4
    for host, on_host in ((9 * table, True), (7 * table, False)):
        options = CacheOptions.checked("auto", 4_000_000, host, None, None, MACHINE, poison=False)
        placing = choose_placing(config, torch.float32, CPU, options)
        assert placing.embedding_on_host is on_host


def test_a_model_ends_with_its_last_user(placed):
    model = placed("llama-gqa")
    ended = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert ended() is None
    finally:
        gc.enable()


def test_a_model_that_got_another_table_has_it_on_the_device(placed):
    model = placed("llama-gqa")
    copied = copy.deepcopy(model)
    assert host_embedding(copied) is None
    model.to(torch.bfloat16)
    assert host_embedding(model) is None
    model._headrace_host_embedding.release()
    assert table_of(model).dtype is torch.bfloat16
    HostEmbedding(copied, CpuBackend())
    assert host_embedding(copied).size_bytes == table_of(copied).nbytes


def test_what_is_planned_is_what_there_is():
    """A budget that has no room for the table has some for the cache once it is on the host."""
    whole, model = (
        make_model("llama-gqa", vocab_size=5000),
        make_model("llama-gqa", vocab_size=5000),
    )
    place(model, Placing(0.0, None, None, embedding_on_host=True), CPU, None)
    table = table_of(whole).nbytes
    kept = []
    for one in (whole, model):
        with host_cache(one, "auto", None, gpu_memory=3_200_000, profile=MACHINE) as cache:
            generate(one, make_batch(), cache)
            kept.append(cache.plan)
            assert cache.kept_gpu_bytes <= 3_200_000
    assert not kept[0].embedding_on_host
    assert kept[1].embedding_on_host
    assert kept[1].host_items["embedding"] == table
    assert kept[0].gpu_items["weights"] - kept[1].gpu_items["weights"] == table
    assert placed_weights(model) is None
