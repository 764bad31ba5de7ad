import gc

import pytest
import torch

from headrace.errors import MemoryBudgetError
from headrace.runtime.registered import RegisteredMemory


class FakeRuntime:
    """Keeps the books that CUDA would keep."""

    def __init__(self, status=0):
        self.status = status
        self.registered = {}

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        assert address not in self.registered, "registered twice"
        if self.status == 0:
            self.registered[address] = size
        return self.status

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]
        return 0


def test_what_is_freed_is_no_longer_registered():
    runtime = FakeRuntime()
    memory = RegisteredMemory(runtime)
    first, second = torch.empty(10), torch.empty(6, dtype=torch.int16)
    memory.register(first)
    memory.register(second)
    assert runtime.registered == {first.data_ptr(): 40, second.data_ptr(): 12}
    memory.free(first)
    memory.free(first)
    assert list(runtime.registered) == [second.data_ptr()]
    memory.free_all()
    memory.free_all()
    assert not runtime.registered


def test_memory_is_kept_while_it_is_registered_and_given_back_with_its_keeper():
    runtime = FakeRuntime()
    memory = RegisteredMemory(runtime)
    memory.register(torch.empty(1000))
    (address,) = runtime.registered
    assert all(torch.empty(1000).data_ptr() != address for _ in range(20))
    # In a cycle, as whoever keeps it may be.
    cycle = [memory]
    cycle.append(cycle)
    del memory, cycle
    gc.collect()
    assert not runtime.registered


def test_what_cuda_refuses_is_not_kept():
    runtime = FakeRuntime(status=712)
    with pytest.raises(MemoryBudgetError, match=r"40 bytes of host memory with CUDA \(error 712\)"):
        RegisteredMemory(runtime).register(torch.empty(10))
    assert not runtime.registered
