"""Host memory that a CUDA device reaches by itself, registered for as long as it is kept."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor

from headrace.errors import MemoryBudgetError

_PORTABLE, _MAPPED = 1, 2


class CudaRuntime(Protocol):
    """What is called of CUDA's runtime, as ``torch.cuda.cudart()`` has it."""

    def cudaHostRegister(self, address: int, size: int, flags: int) -> Any:  # noqa: N802
        """Register memory; return 0 or an error."""

    def cudaHostUnregister(self, address: int) -> Any:  # noqa: N802
        """Take it back, once the device has done with it."""


class RegisteredMemory:
    """Buffers in host memory that are registered.

    Memory that is freed while it is registered makes whatever is allocated there next unusable. So
    each buffer is kept here until its registration has been taken back: by ``free``, or when this
    is no longer of use to anybody.

    Args:
        runtime: registers.
    """

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._buffers: dict[int, Tensor] = {}
        finish = weakref.finalize(self, _free_all, runtime, self._buffers)
        # The end of the process frees all, and CUDA may be gone by then.
        finish.atexit = False

    def register(self, buffer: Tensor) -> None:
        """Register a buffer and keep it.

        Raises:
            MemoryBudgetError: CUDA refuses.
        """
        size = buffer.numel() * buffer.element_size()
        flags = _PORTABLE | _MAPPED
        status = int(self._runtime.cudaHostRegister(buffer.data_ptr(), size, flags))
        if status != 0:
            raise MemoryBudgetError(
                f"could not register {size} bytes of host memory with CUDA (error {status}); "
                "lower host_memory, or raise the limit of locked memory (ulimit -l)"
            )
        self._buffers[buffer.data_ptr()] = buffer

    def free(self, buffer: Tensor) -> None:
        """Take a buffer's registration back; the memory goes with its last tensor."""
        if buffer.data_ptr() in self._buffers:
            self._runtime.cudaHostUnregister(buffer.data_ptr())
            del self._buffers[buffer.data_ptr()]

    def free_all(self) -> None:
        """Take back all that are left."""
        _free_all(self._runtime, self._buffers)


def _free_all(runtime: CudaRuntime, buffers: dict[int, Tensor]) -> None:
    while buffers:
        address = next(iter(buffers))
        runtime.cudaHostUnregister(address)
        del buffers[address]
