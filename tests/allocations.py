"""Every tensor's memory from birth to death, to hold an accounting against."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headrace.runtime.cpu_lanes import CpuBackend


class Allocations(TorchDispatchMode):
    """Follows the memory of tensors: of some that there are, and of all that are made meanwhile.

    What an operation of torch's takes for itself and gives back before it ends is not seen.

    Args:
        tensors: there are already, and count.

    Attributes:
        live_bytes: of memory that is there.
        peak_bytes: the most that there was at once, since it was last set.
    """

    def __init__(self, tensors=()):
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._sizes = {}
        for tensor in tensors:
            self._note(tensor.untyped_storage())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._died, key)

    def _died(self, key):
        self.live_bytes -= self._sizes.pop(key)

    def leave_out(self, tensor):
        """Do not count a tensor's memory, for it is none of the device's."""
        key = tensor.untyped_storage()._cdata
        self.live_bytes -= self._sizes[key]
        self._sizes[key] = 0


class CountingBackend(CpuBackend):
    """A CPU whose host memory is told from its device's.

    Attributes:
        host_bytes: host memory that was asked for and not given back.
    """

    def __init__(self, device_memory):
        super().__init__()
        self.host_bytes = 0
        self._device_memory = device_memory

    def host_buffer(self, shape, dtype):
        """Return plain memory that is not counted as the device's."""
        buffer = super().host_buffer(shape, dtype)
        self.host_bytes += buffer.untyped_storage().nbytes()
        self._device_memory.leave_out(buffer)
        return buffer

    def free_host(self, buffer):
        """Count a buffer no longer."""
        self.host_bytes -= buffer.untyped_storage().nbytes()
