"""Launches a Triton kernel quickly: looked up by what can differ, not argument by argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes; memory so aligned is read in the widest words."""


class Launcher:
    """Launches a kernel, past Triton's own look-up once it has been compiled.

    That look-up takes longer than most kernels here, for it goes through every argument.

    Args:
        kernel: its arguments are pointers, numbers, and constants, in this order.
        warps: of a program.
    """

    def __init__(self, kernel: Any, warps: int) -> None:
        self._kernel = kernel
        self._warps = warps
        self._compiled: dict[tuple[object, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int],
        pointers: tuple[Tensor, ...],
        numbers: tuple[int, ...],
        constants: tuple[object, ...],
        aligned: int = 0,
    ) -> None:
        """Launch on the current stream.

        Args:
            grid: programs.
            pointers: whose memory is read and written.
            numbers: further arguments, for which nothing is compiled anew.
            constants: known when the kernel is compiled.
            aligned: so many of the first pointers are compiled for as they are aligned.
        """
        first = pointers[0]
        if not first.is_cuda:
            self._kernel[grid](*pointers, *numbers, *constants)
            return
        misaligned = any(pointer.data_ptr() % _ALIGNMENT for pointer in pointers[:aligned])
        dtypes = tuple([pointer.dtype for pointer in pointers])
        key = (dtypes, first.device.index, misaligned, constants)
        compiled = self._compiled.get(key)
        if compiled is None:
            made = self._kernel[grid](*pointers, *numbers, *constants, num_warps=self._warps)
            self._compiled[key] = made
            return
        stream = torch._C._cuda_getCurrentRawStream(first.device.index)
        addresses = [pointer.data_ptr() for pointer in pointers]
        compiled[(*grid, 1, 1)](*addresses, *numbers, *constants, stream=stream)
