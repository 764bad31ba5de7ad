"""How long queries take to the host's cores, and their results back, on a GPU.

They go through memory that both sides reach (``HostLane``): the device's own kernels write the
queries there and read the results, while loads have the link. What is measured is what a layer in
which the cores attend to next to nothing takes more than one without them, over layers in a row
that are launched before the first one begins.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from headrace.hardware.probes import ExtraProbes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.probe_timing import no_collection
from headrace.model.shape import ModelShape
from headrace.plan.device_time import mail_bytes
from headrace.runtime.attention import Scoring, empty_partial
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.runtime.granules import layer_table
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.host_lane import HostLane
from headrace.runtime.host_pages import StoreKernel
from headrace.runtime.lanes import Backend, Copy, Event
from headrace.runtime.layer_attention import LayerAttention, Results
from headrace.runtime.pages import PageKind
from headrace.runtime.store import LayerWidths, PageStore
from headrace.timeline import Lane

FEW_ROWS, MANY_ROWS = 4, 64

_PAGE_TOKENS = 16
_LAYERS, _REPEATS = 16, 5
_GATE_BYTES = 1 << 28
"""Layers wait for a load so long: until all of them have been launched."""

_BESIDE_LOADS = 3
"""So many more such loads keep the link busy meanwhile."""

_WORKSPACE_BYTES = 1 << 28


class MailProbes:
    """Measures the way of queries and results at a model's shapes; no model is needed.

    Args:
        shape: the model's.
        device: a GPU.
        dtype: of queries, keys and values.
    """

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = shape
        self._device = device
        self._dtype = dtype

    def by_name(self) -> ExtraProbes:
        """Return the probes by the fields of a profile that they fill; none but for a GPU."""
        if self._device.type != "cuda":
            return {}
        return {"mail_bytes_per_s": self.rate, "mail_call_s": self.call_s}

    def rate(self, profile: HardwareProfile) -> float:
        """Measure once at which rate many rows' queries and results go.

        Args:
            profile: what was measured so far: the link's rates, above which none can be.

        Returns:
            Bytes a second.
        """
        few_s, many_s = self.layers_s((FEW_ROWS, MANY_ROWS))
        size_bytes = (MANY_ROWS - FEW_ROWS) * mail_bytes(self._shape)
        most = min(profile.h2d_bytes_per_s, profile.d2h_bytes_per_s)
        return size_bytes / max(many_s - few_s, size_bytes / most)

    def call_s(self, profile: HardwareProfile) -> float:
        """Measure once what the way to the cores and back takes besides.

        Args:
            profile: what was measured so far, ``mail_bytes_per_s`` among it.

        Returns:
            Seconds.
        """
        (few_s,) = self.layers_s((FEW_ROWS,))
        return max(0.0, few_s - FEW_ROWS * mail_bytes(self._shape) / profile.mail_rate)

    def layers_s(self, all_rows: tuple[int, ...]) -> list[float]:
        """Return by how many seconds the cores make a layer of so many rows longer."""
        backend = CudaBackend(self._device) if self._device.type == "cuda" else CpuBackend()
        backend.timed = True
        try:
            return [self._layer_s(backend, rows) for rows in all_rows]
        finally:
            backend.close()

    def _layer_s(self, backend: Backend, rows: int) -> float:
        shape = self._shape
        widths = LayerWidths(shape.num_kv_heads, shape.head_dim, shape.d_model)
        store = PageStore(backend, {0: widths}, self._dtype, _PAGE_TOKENS)
        store.grow(PageKind.KV, rows)
        lane = HostLane(backend, StoreKernel(store))
        work = _Layer(shape, rows, self._device, self._dtype, lane)
        loads = _Loads(backend)
        try:
            with no_collection():
                times = [
                    (loads.during(work.alone), loads.during(work.with_cores))
                    for _ in range(_REPEATS + 1)
                ][1:]
            attend_s = statistics.median(work.attended_s())
        finally:
            backend.synchronize()
            lane.close()
            store.release()
            loads.release()
        return max(0.0, statistics.median(more - alone for alone, more in times) - attend_s)


class _Layer:
    """The attention of a layer to its newest tokens, with the cores' result and without."""

    def __init__(
        self,
        shape: ModelShape,
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        lane: HostLane,
    ) -> None:
        grouped = shape.num_heads // shape.num_kv_heads
        size = (rows, shape.num_kv_heads, grouped, shape.head_dim)
        self._lane = lane
        self._scoring = Scoring(shape.head_dim**-0.5)
        self._query = torch.ones(size, dtype=dtype, device=device)
        self._new = empty_partial(size, device)
        for part in (self._new.output, self._new.maximum, self._new.total):
            part.fill_(1.0)
        self._entries = RowEntries.of(rows, range(rows), range(rows), [1] * rows)
        self._tables = [layer_table([], rows, device, hosted=hosted) for hosted in (False, True)]
        self._results = Results()
        self._events: list[Event] = []

    def alone(self) -> Tensor:
        """Attend without the cores; return the output."""
        return self._merged(self._attention(hosted=False))

    def with_cores(self) -> Tensor:
        """Let the cores attend to a token of each row, too."""
        event = self._lane.begin(0, self._query, self._entries, self._scoring, None)
        self._events.append(event)
        attention = self._attention(hosted=True)
        attention.add_host(self._lane.result(self._query.shape))
        return self._merged(attention)

    def attended_s(self) -> list[float]:
        """Return how long the cores attended, each time."""
        spans = [event.times_s() for event in self._events]
        return [finish_s - start_s for start_s, finish_s in spans]

    def _attention(self, *, hosted: bool) -> LayerAttention:
        table = self._tables[hosted]
        return LayerAttention(
            *(self._query, 0, table, self._scoring),
            workspace_bytes=_WORKSPACE_BYTES,
            results_bytes=_WORKSPACE_BYTES,
            results=self._results,
        )

    def _merged(self, attention: LayerAttention) -> Tensor:
        attention.add_new(self._new)
        attention.merge()
        return attention.output()


class _Loads:
    """Loads that compute waits for, and others that keep the link busy while it works."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._source = backend.host_buffer((_GATE_BYTES,), torch.uint8)
        self._target = backend.device_buffer((_GATE_BYTES,), torch.uint8)

    def during(self, work: Callable[[], object]) -> float:
        """Do work a few times beside them; return the seconds of one time on the device."""
        copy = Copy(self._target, self._source)
        gate = self._backend.transfer(Lane.LOAD_KV, [copy], [])
        for _ in range(_BESIDE_LOADS):
            self._backend.transfer(Lane.LOAD_KV, [copy], [])
        self._backend.wait(gate)
        start = self._backend.begin_compute()
        for _ in range(_LAYERS):
            work()
        start_s, finish_s = self._backend.end_compute(start).times_s()
        self._backend.synchronize()
        return (finish_s - start_s) / _LAYERS

    def release(self) -> None:
        """Give back the host memory."""
        self._backend.free_host(self._source)
