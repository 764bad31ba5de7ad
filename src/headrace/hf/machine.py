"""The profile of the machine that a model runs on, measured at the model's own shapes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from headrace.hardware.profile import HardwareProfile
from headrace.hardware.store import load_or_measure
from headrace.hf.attachment import attach, detach
from headrace.hf.shape import model_shape
from headrace.model.cost import (
    head_weight_bytes,
    layer_weight_bytes,
    rebuild_flops_per_token,
)
from headrace.model.projection import LayerProjection
from headrace.model.shape import ModelShape
from headrace.runtime.attention import EntryTable, Scoring
from headrace.runtime.granules import Granule
from headrace.runtime.layer_attention import attend_granule
from headrace.runtime.pages import PageKind

_PAGE_TOKENS = 64
_GRANULE_BYTES = 1 << 26
_GRANULES_IN_A_ROW = 4
_REBUILT_BYTES = 1 << 24
_DENSE_ROWS = 8
_REPEATS = 7


def shape_of(model: nn.Module) -> ModelShape:
    """Return the shape of a loaded model, in the dtype of its weights.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    attachment = attach(model)
    try:
        return model_shape(model, attachment, next(model.parameters()).dtype)
    finally:
        detach(model)


def machine_profile(
    model: nn.Module,
    *,
    emulate: str | None = None,
    quick: bool = True,
    progress: Callable[[str], None] | None = None,
) -> HardwareProfile:
    """Return this machine's profile at a model's shapes, measured if none is kept.

    Args:
        model: on the device that is to be measured.
        emulate: a published machine whose link is emulated, or None.
        quick: measure in under 10 s.
        progress: is called with a line of text for each figure.
    """
    parameter, shape = next(model.parameters()), shape_of(model)
    return load_or_measure(
        parameter.device.type,
        shape,
        emulate=emulate,
        quick=quick,
        progress=progress,
        extra_probes={
            "attend_bytes_per_s": lambda: attend_rate(shape, parameter.device, parameter.dtype),
            "dense_bytes_per_s": lambda: dense_rate(model, shape),
            "rebuild_flops_per_s": lambda: rebuild_rate(model, shape),
        },
    )


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
    pages = max(2, _GRANULE_BYTES // page_bytes)
    rows = 2
    size = (pages, shape.num_kv_heads, _PAGE_TOKENS, shape.head_dim)
    key = torch.randn(size, device=device).to(dtype)
    value = torch.randn(size, device=device).to(dtype)
    group = shape.num_heads // shape.num_kv_heads
    query = torch.randn((rows, shape.num_kv_heads, group, shape.head_dim), device=device).to(dtype)
    row = [page * rows // pages for page in range(pages)]
    granule = Granule(
        kind=PageKind.KV,
        pages=tuple(range(pages)),
        tokens=pages * _PAGE_TOKENS,
        entry_page=None,
        entry_rows=tuple(row),
        entry_row=torch.tensor(row, device=device),
        rows=torch.arange(rows, device=device),
        table=EntryTable.of([], device),
        visible=None,
        page_index=torch.arange(pages, device=device),
    )
    scoring = Scoring(shape.head_dim**-0.5)

    def attend_several() -> None:
        for _ in range(_GRANULES_IN_A_ROW):
            attend_granule(granule, query, key, value, scoring, 1 << 28)

    return _GRANULES_IN_A_ROW * pages * page_bytes / _median_s(attend_several, device)


def rebuild_rate(model: nn.Module, shape: ModelShape) -> float:
    """Measure once at which rate a granule's keys and values are rebuilt from X.

    Returns:
        FLOPs a second, counting those of the projections alone; the plain rate of matrix products
        would leave out the layout, norms and rotation. Infinite where nothing can be rebuilt.
    """
    attachment = attach(model)
    try:
        usable = [one for one in attachment.projections if isinstance(one, LayerProjection)]
        if not usable:
            return math.inf
        parameter = next(model.parameters())
        pages = max(1, _REBUILT_BYTES // (_PAGE_TOKENS * shape.d_model * parameter.element_size()))
        size = (pages, _PAGE_TOKENS, shape.d_model)
        activations = torch.randn(size, device=parameter.device).to(parameter.dtype)
        rotary = usable[0].rotary
        if rotary is not None:
            rotary.reserve(_PAGE_TOKENS, parameter)
        positions = torch.arange(_PAGE_TOKENS, device=parameter.device).expand(pages, -1)
        # A GPU's first rebuild in a row also takes the time to launch it; a CPU has no such queue.
        in_a_row = _GRANULES_IN_A_ROW if parameter.is_cuda else 1

        def rebuild_several() -> None:
            for _ in range(in_a_row):
                usable[0].rebuild(activations, positions)

        with torch.no_grad():
            seconds = _median_s(rebuild_several, parameter.device) / in_a_row
    finally:
        detach(model)
    return pages * _PAGE_TOKENS * rebuild_flops_per_token(shape) / seconds


def dense_rate(model: nn.Module, shape: ModelShape) -> float:
    """Measure once at which rate a decode step of a few rows reads the model's weights.

    Returns:
        Bytes of weights a second, over a forward of tokens that have nothing cached.
    """
    device = next(model.parameters()).device
    token = torch.zeros((_DENSE_ROWS, 1), dtype=torch.int64, device=device)

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=token, use_cache=False)

    weights = shape.num_layers * layer_weight_bytes(shape) + head_weight_bytes(shape)
    return weights / _median_s(forward, device)


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of some work, after a warm-up."""
    seconds = []
    for _ in range(_REPEATS + 1):
        start_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds[1:])
