"""What a machine makes of a model's own work: rates, and what a call takes however small.

Attention and rebuilding are those that decoding runs, so that layout, norms, rotation and the
launching of kernels are counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headrace.hf.attachment import attached
from headrace.hf.probe_timing import REPEATS, WAIT_S, median_s
from headrace.model.cost import rebuild_flops_per_token
from headrace.model.projection import LayerProjection
from headrace.model.shape import ModelShape
from headrace.runtime.attention import EntryTable, Scoring
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.runtime.flat_decode import DecodeStep
from headrace.runtime.gpu_kernels import has_kernels
from headrace.runtime.granules import Granule
from headrace.runtime.lanes import Copy
from headrace.runtime.layer_attention import attend_granule
from headrace.runtime.pages import PageKind
from headrace.timeline import Lane

_PAGE_TOKENS = 64
_GRANULE_BYTES = 1 << 26
_GPU_GRANULE_BYTES = 1 << 28
"""On a GPU: attending to so much takes longer than launching that, on a busy host too."""

_RESIDENT_ROWS = 8
_GRANULES_IN_A_ROW = 4
_CALLS_IN_A_ROW = 16
_TIMES_LARGER = 4
"""A call that tells how much of a small one is work, measured in the small one's pages."""

_REBUILT_BYTES = 1 << 24
_WORKSPACE_BYTES = 1 << 28
_LOADED_ELEMENTS = 64


def attend_rate(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Measure once at which rate decode attention reads the keys and values of a granule.

    Args:
        shape: the model.
        device: where it runs.
        dtype: of keys and values.

    Returns:
        Bytes a second.
    """
    page_bytes = 2 * shape.d_kv * _PAGE_TOKENS * dtype.itemsize
    pages = max(2, _attended_bytes(device) // page_bytes)
    attend = _attending(shape, device, dtype, pages)
    seconds = median_s(attend, device, _GRANULES_IN_A_ROW)
    return pages * page_bytes / seconds


def _attended_bytes(device: torch.device) -> int:
    return _GPU_GRANULE_BYTES if device.type == "cuda" else _GRANULE_BYTES


def resident_attend_rate(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Measure once at which rate decode attention reads contiguous rows, all of them resident.

    Returns:
        Bytes a second.
    """
    row_bytes = 2 * shape.d_kv * dtype.itemsize
    tokens = max(1, _attended_bytes(device) // (_RESIDENT_ROWS * row_bytes))
    size = (_RESIDENT_ROWS, shape.num_kv_heads, tokens, shape.head_dim)
    keys, values = _keys_and_values(size, device, dtype)
    query = _queries(shape, device, dtype, _RESIDENT_ROWS)
    ends = [tokens] * _RESIDENT_ROWS
    step = DecodeStep(
        range(_RESIDENT_ROWS),
        [tokens - 1] * _RESIDENT_ROWS,
        ends,
        [set()] * _RESIDENT_ROWS,
        tokens,
        device,
        _WORKSPACE_BYTES,
    )
    scoring = Scoring(shape.head_dim**-0.5)
    seconds = median_s(
        lambda: step.attend(query, keys, values, scoring), device, _GRANULES_IN_A_ROW
    )
    return _RESIDENT_ROWS * tokens * row_bytes / seconds


def attend_call_s(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Measure once how many seconds attending to a granule takes, however small it is.

    On a CPU: besides its work (see ``_call_s``).
    """

    def seconds(pages: int) -> float:
        return _one_call_s(_attending(shape, device, dtype, pages), device)

    return _call_s(seconds, 2, device)


def load_call_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measure once how many seconds starting the load of a granule takes whoever starts it."""
    backend = CudaBackend(device) if device.type == "cuda" else CpuBackend()
    try:
        source = backend.host_buffer((2, _LOADED_ELEMENTS), dtype).zero_()
        target = backend.device_buffer((2, _LOADED_ELEMENTS), dtype)
        copies = [Copy(target[part], source[part]) for part in range(2)]
        seconds = []
        for _ in range(REPEATS + 1):
            start_s = time.perf_counter()
            for _ in range(_CALLS_IN_A_ROW):
                backend.transfer(Lane.LOAD_KV, copies, [backend.mark()])
            seconds.append((time.perf_counter() - start_s) / _CALLS_IN_A_ROW)
            backend.synchronize()
        return statistics.median(seconds[1:])
    finally:
        backend.close()


def _attending(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, pages: int
) -> Callable[[], object]:
    """Return work that attends to a granule of so many pages."""
    size = (pages, shape.num_kv_heads, _PAGE_TOKENS, shape.head_dim)
    key, value = _keys_and_values(size, device, dtype)
    query, granule = _queries(shape, device, dtype, 2), _granule(pages, device)
    scoring = Scoring(shape.head_dim**-0.5)
    return lambda: attend_granule(granule, query, key, value, scoring, _WORKSPACE_BYTES)


def _keys_and_values(
    size: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return buffers that hold some number: which one, attention takes as long."""
    keys = torch.full(size, 0.5, dtype=dtype, device=device)
    return keys, torch.full_like(keys, 0.25)


def _queries(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, rows: int
) -> torch.Tensor:
    """Return grouped queries ``[B, H, G, D]``."""
    group = shape.num_heads // shape.num_kv_heads
    return torch.randn((rows, shape.num_kv_heads, group, shape.head_dim), device=device).to(dtype)


def _granule(pages: int, device: torch.device) -> Granule:
    """Return a granule of pages of two rows."""
    row = [page * 2 // pages for page in range(pages)]
    return Granule(
        kind=PageKind.KV,
        pages=tuple(range(pages)),
        tokens=pages * _PAGE_TOKENS,
        entry_places=tuple(range(pages)),
        entry_page=None,
        entry_rows=tuple(row),
        entry_row=torch.tensor(row, device=device),
        rows=torch.arange(2, device=device),
        table=EntryTable.of([], device),
        visible=None,
        page_index=torch.arange(pages, device=device),
    )


def rebuild_rate(model: nn.Module, shape: ModelShape) -> float:
    """Measure once at which rate a granule's keys and values are rebuilt from X.

    Returns:
        FLOPs a second, counting those of the projections alone; the plain rate of matrix products
        would leave out the layout, norms and rotation. Infinite where nothing can be rebuilt.
    """
    parameter = next(model.parameters())
    pages = max(1, _REBUILT_BYTES // (_PAGE_TOKENS * shape.d_model * parameter.element_size()))
    # A GPU's first rebuild in a row also takes the time to launch it; a CPU has no such queue.
    in_a_row = _GRANULES_IN_A_ROW if parameter.is_cuda else 1
    with _rebuilding(model, shape, pages) as rebuild:
        if rebuild is None:
            return math.inf
        seconds = median_s(rebuild, parameter.device, in_a_row)
    return pages * _PAGE_TOKENS * rebuild_flops_per_token(shape) / seconds


def rebuild_call_s(model: nn.Module, shape: ModelShape) -> float:
    """Measure once how many seconds rebuilding a granule takes, however small it is.

    Returns:
        Seconds; on a CPU those besides its work (see ``_call_s``). 0 where nothing can be rebuilt.
    """
    device = next(model.parameters()).device

    def seconds(pages: int) -> float:
        with _rebuilding(model, shape, pages) as rebuild:
            return 0.0 if rebuild is None else _one_call_s(rebuild, device)

    return _call_s(seconds, 1, device)


def _call_s(seconds: Callable[[int], float], pages: int, device: torch.device) -> float:
    """Return what a call takes, however little its work is.

    On a GPU that is the time of a small call, which hides its work or is hidden by it. A CPU does
    one after the other, and a page is much work for it: there it is what is left of a small call
    without its work, which is taken to grow with the pages.

    Args:
        seconds: measures a call for so many pages.
        pages: of a small call.
        device: what is measured.
    """
    small_s = seconds(pages)
    if device.type == "cuda":
        return small_s
    work_s = (seconds(_TIMES_LARGER * pages) - small_s) / (_TIMES_LARGER - 1)
    return max(0.0, small_s - work_s)


def _one_call_s(work: Callable[[], object], device: torch.device) -> float:
    """Return what a call takes in a step.

    A GPU's calls are launched in a row. A CPU's follow a wait for the link or the host's cores:
    its threads sleep and its caches hold other things, which a call after another would not show.
    """
    if device.type == "cuda":
        return median_s(work, device, _CALLS_IN_A_ROW)
    return median_s(work, device, wait_s=WAIT_S)


@contextmanager
def _rebuilding(
    model: nn.Module, shape: ModelShape, pages: int
) -> Iterator[Callable[[], object] | None]:
    """Yield work that rebuilds a layer's pages from X; None where nothing can be rebuilt."""
    with attached(model) as attachment:
        usable = [one for one in attachment.projections if isinstance(one, LayerProjection)]
        if not usable:
            yield None
            return
        parameter = next(model.parameters())
        size = (pages, _PAGE_TOKENS, shape.d_model)
        activations = torch.randn(size, device=parameter.device).to(parameter.dtype)
        rotary = usable[0].rotary
        if rotary is not None:
            rotary.table.reserve(_PAGE_TOKENS, parameter)
        positions = torch.arange(_PAGE_TOKENS, device=parameter.device).expand(pages, -1)
        # Kernels of our own rotate keys while they attend.
        unrotated = usable[0].rotates_last and has_kernels(parameter.device)
        with torch.no_grad():
            if unrotated:
                yield lambda: usable[0].rebuild_unrotated(activations)
            else:
                yield lambda: usable[0].rebuild(activations, positions)
