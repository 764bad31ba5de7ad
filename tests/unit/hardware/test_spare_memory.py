import weakref
from types import SimpleNamespace

import pytest
import torch

from headrace.hardware import spare_memory
from headrace.hardware.spare_memory import release_spare_memory


class Node:
    pass


@pytest.fixture
def called(monkeypatch):
    """What is called of a torch whose CUDA is in use, newest first: all names are there."""
    names = []

    def noted(*all_names):
        return SimpleNamespace(**{name: lambda n=name: names.append(n) for name in all_names})

    cuda = noted("empty_cache")
    cuda.is_initialized = lambda: True
    fake = SimpleNamespace(
        cuda=cuda, accelerator=noted("empty_host_cache"), _C=noted("_host_emptyCache")
    )
    monkeypatch.setattr(spare_memory, "torch", fake)
    return names, fake


def test_garbage_is_collected():
    node = Node()
    node.itself = node
    left = weakref.ref(node)
    del node
    release_spare_memory()
    assert left() is None


def test_both_memories_are_given_back(called):
    names, _ = called
    release_spare_memory()
    assert names == ["empty_cache", "empty_host_cache"]


def test_an_older_torch_has_another_name_for_it(called):
    names, fake = called
    del fake.accelerator.empty_host_cache
    release_spare_memory()
    assert names == ["empty_cache", "_host_emptyCache"]


def test_a_torch_that_cannot_is_left_alone(called):
    names, fake = called
    del fake.accelerator.empty_host_cache, fake._C._host_emptyCache
    release_spare_memory()
    assert names == ["empty_cache"]


def test_cuda_is_not_started_for_it(called):
    names, fake = called
    fake.cuda.is_initialized = lambda: False
    release_spare_memory()
    assert names == []


@pytest.mark.gpu
def test_pinned_memory_goes_back_to_the_machine():
    kept = torch.ones(2**20, device="cuda").to("cpu", non_blocking=True)
    torch.cuda.synchronize()
    assert kept.is_pinned()
    before = torch.cuda.memory.host_memory_stats()["allocated_bytes.current"]
    del kept
    release_spare_memory()
    after = torch.cuda.memory.host_memory_stats()["allocated_bytes.current"]
    assert after <= before - 2**22
