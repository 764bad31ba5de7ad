"""How fast the host's cores attend, and what they and the link leave each other of host memory.

The device's engine and the host's cores read the same memory. How much that slows each of them is
measured with the kernel itself, at a model's shapes: cores that only read ask more of memory than
it does, since it also computes. And it is measured as decoding does it: the cores and the link read
the same pages, in turn, which are together far more than the processor's caches hold.
"""

from __future__ import annotations

import itertools
import statistics
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property

import numpy as np
import torch

from headrace.hardware.emulation import Pace
from headrace.hardware.probe_bench import uncached_bytes
from headrace.hardware.probe_device import CpuProbeDevice, ProbeDevice, Work, busy, open_device
from headrace.hardware.probes import ExtraProbes
from headrace.hardware.profile import MEASURED_PAGE_TOKENS, HardwareProfile
from headrace.hf.probe_timing import median_s
from headrace.model.shape import ModelShape
from headrace.runtime.attention import Scoring, empty_partial
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.cuda_lanes import CudaBackend
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.host_pages import shared_attention
from headrace.runtime.pages import PageKind
from headrace.runtime.store import LayerWidths, PageStore

_PAGE_TOKENS = MEASURED_PAGE_TOKENS
_SHORT_PAGE_TOKENS = 16
_CALL_BYTES = 1 << 28
"""Of a call of the kernel at least: half of all pages, so that what a call takes besides is little.

A large batch's layer has a GiB or more. On 15 cores a call takes some 0.1 ms besides its work.
"""

_ROWS = 8
_COPY_BYTES = 1 << 24
_COPIED_BYTES = 1 << 27
"""On the device, where copies go in turn."""

_COPIES_IN_A_ROW = 8
_LEAST_COPY_BYTES = 1 << 10
_LONGEST_COPY_S = 0.01
_REPEATS = 7


class HostProbes:
    """Measures what the host's cores do at a model's shapes; no model is needed.

    The pages are made for the first figure, and kept for the others.

    Args:
        shape: the model's.
        device: at the other end of the link.
        dtype: of keys and values.
    """

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = shape
        self._device = device
        self._dtype = dtype

    def by_name(self) -> ExtraProbes:
        """Return the probes by the fields of a profile that they fill."""
        probes = {
            "host_attend_bytes_per_s": self.attend_rate,
            "host_attend_while_h2d_bytes_per_s": self.attend_rate_beside_link,
            "h2d_while_attend_bytes_per_s": self.link_rate_beside_attention,
        }
        if self._device.type != "cuda":
            # In an emulation the cores are held to a rate, whatever pages there are.
            return probes
        return probes | {"host_page_s": self.page_s}

    def close(self) -> None:
        """Give back the pages; the next figure makes others."""
        self.__dict__.pop("_attending", None)
        store: PageStore | None = self.__dict__.pop("_store", None)
        if store is not None:
            store.release()

    def attend_rate(self, profile: HardwareProfile) -> float:
        """Measure once at which rate the cores attend to keys and values where they lie.

        In an emulation they compute besides, as they are the device, too.

        Args:
            profile: what was measured so far: whether a machine is emulated.

        Returns:
            Bytes of keys and values a second.
        """
        with ExitStack() as beside:
            if profile.emulates is not None:
                beside.enter_context(self._computing())
            return self._call_bytes / self._call_s(_PAGE_TOKENS)

    def attend_rate_beside_link(self, profile: HardwareProfile) -> float:
        """Measure once at which rate the cores attend while the link to the device is busy.

        In an emulation the copies are held to the link's pace, and the cores compute besides.

        Args:
            profile: what was measured so far: whether a link is emulated, and its rate.

        Returns:
            Bytes of keys and values a second.
        """
        with ExitStack() as beside:
            if profile.emulates is None:
                beside.enter_context(busy(self._link, self._copying(_COPY_BYTES)))
            else:
                # An emulated link is slow: short copies let it stop soon.
                chunk = max(_LEAST_COPY_BYTES, int(_LONGEST_COPY_S * profile.h2d_bytes_per_s))
                chunk = min(_COPY_BYTES, chunk)
                pace = Pace(h2d=profile.h2d_bytes_per_s)
                beside.enter_context(busy(self._link, pace.held(self._copying(chunk), chunk)))
                beside.enter_context(self._computing())
            return self._call_bytes / self._call_s(_PAGE_TOKENS)

    def page_s(self, _: HardwareProfile) -> float:
        """Measure once what a page of a head takes the cores besides, while the link is busy.

        Returns:
            Seconds, of all cores together; 0 where short pages take no longer.
        """
        with busy(self._link, self._copying(_COPY_BYTES)):
            usual_s, short_s = map(self._call_s, (_PAGE_TOKENS, _SHORT_PAGE_TOKENS))
        head_tokens = self._call_pages * _PAGE_TOKENS * self._shape.num_kv_heads
        more_pages = head_tokens * (1 / _SHORT_PAGE_TOKENS - 1 / _PAGE_TOKENS)
        return max(0.0, short_s - usual_s) / more_pages

    def link_rate_beside_attention(self, _: HardwareProfile) -> float:
        """Measure once at which rate large copies reach the device while the cores attend.

        Returns:
            Bytes a second.
        """
        copy = self._copying(_COPY_BYTES)

        def copies() -> None:
            for _ in range(_COPIES_IN_A_ROW):
                copy()

        with self.attending():
            seconds = statistics.median(self._link.seconds(copies) for _ in range(_REPEATS))
        return _COPIES_IN_A_ROW * _COPY_BYTES / seconds

    def attending(self) -> AbstractContextManager[None]:
        """Let the cores attend all the while."""
        return busy(CpuProbeDevice(), self._attending[_PAGE_TOKENS])

    def _call_s(self, page_tokens: int) -> float:
        return median_s(self._attending[page_tokens], torch.device("cpu"))

    def _computing(self) -> AbstractContextManager[None]:
        """Keep the cores busy with matrix products of the K/V projections' shape, over a page."""
        shape, dtype = self._shape, self._dtype
        activations = torch.randn(_PAGE_TOKENS, shape.d_model).to(dtype)
        weight = torch.randn(shape.d_model, 2 * shape.d_kv).to(dtype)
        out = torch.empty(_PAGE_TOKENS, 2 * shape.d_kv, dtype=dtype)
        return busy(CpuProbeDevice(), lambda: torch.mm(activations, weight, out=out))

    @cached_property
    def _link(self) -> ProbeDevice:
        return open_device(self._device.type)

    @property
    def _page_bytes(self) -> int:
        return 2 * self._shape.d_kv * _PAGE_TOKENS * self._dtype.itemsize

    @cached_property
    def _call_pages(self) -> int:
        size = max(_CALL_BYTES, uncached_bytes(_CALL_BYTES) // 2)
        return max(2 * _ROWS, size // self._page_bytes)

    @property
    def _call_bytes(self) -> int:
        return self._call_pages * self._page_bytes

    @cached_property
    def _store(self) -> PageStore:
        """Pages of a layer, where and as a cache would have them."""
        shape = self._shape
        backend = CudaBackend(self._device) if self._device.type == "cuda" else CpuBackend()
        widths = LayerWidths(shape.num_kv_heads, shape.head_dim, shape.d_model)
        store = PageStore(backend, {0: widths}, self._dtype, _PAGE_TOKENS)
        calls = max(1, uncached_bytes(_CALL_BYTES) // (self._call_pages * self._page_bytes))
        store.grow(PageKind.KV, calls * self._call_pages)
        for part in self._parts(store):
            part.copy_(torch.randn(part.shape[1:]))
        return store

    @staticmethod
    def _parts(store: PageStore) -> tuple[torch.Tensor, ...]:
        """Return the keys and the values of all pages ``[P, H, T, D]``."""
        return store.pages(PageKind.KV, 0, 0, store.capacity(PageKind.KV))

    @cached_property
    def _attending(self) -> dict[int, Work]:
        """Work in which the cores attend to pages of a few rows, each time to others.

        By the tokens of a page: the same memory is so many short pages, too.
        """
        return {tokens: self._attending_to(tokens) for tokens in (_PAGE_TOKENS, _SHORT_PAGE_TOKENS)}

    def _attending_to(self, page_tokens: int) -> Work:
        shape = self._shape
        size = (_ROWS, shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, shape.head_dim)
        query, result = torch.randn(size).to(self._dtype), empty_partial(size)
        as_pages = (-1, shape.num_kv_heads, page_tokens, shape.head_dim)
        keys, values = (part.view(as_pages) for part in self._parts(self._store))
        pages, scoring = LayerPages.of([keys], [values]), Scoring(shape.head_dim**-0.5)
        count = self._call_pages * _PAGE_TOKENS // page_tokens
        rows = np.arange(count) * _ROWS // count
        turns = itertools.cycle(
            [
                RowEntries.of(_ROWS, rows, first + np.arange(count), np.full(count, page_tokens))
                for first in range(0, pages.count, count)
            ]
        )
        kernel = shared_attention()
        return lambda: kernel.attend(query, pages, next(turns), scoring, result)

    def _copying(self, size: int) -> Work:
        """Return work that copies ``size`` bytes of the pages to the device, each time others."""
        _, values = self._parts(self._store)
        source = values.reshape(-1).view(torch.uint8)
        target = self._link.device_buffer(_COPIED_BYTES)
        sources, targets = (
            itertools.cycle(whole[: len(whole) // size * size].split(size))
            for whole in (source, target)
        )
        return lambda: self._link.transfer(next(targets), next(sources))
