import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from headrace.hf import host_probes
from headrace.hf.host_probes import HostProbes
from headrace.hf.machine import machine_profile, shape_of
from headrace.runtime.pages import PageKind

CPU = torch.device("cpu")


@pytest.fixture
def probes(demo, small):
    made = HostProbes(shape_of(demo.model), CPU, torch.float32)
    yield made
    made.close()


@pytest.fixture
def background(monkeypatch):
    """What is busy while something is measured: a list of what began."""
    begun, real = [], host_probes.busy

    @contextmanager
    def busy(device, work):
        begun.append(work)
        with real(device, work):
            yield

    monkeypatch.setattr(host_probes, "busy", busy)
    return begun


def test_every_figure_is_measured_alone_and_in_an_emulation(probes, emulated):
    for emulates in (None, "t4-pcie3"):
        for probe in probes.by_name().values():
            assert 0 < probe(replace(emulated, emulates=emulates)) < math.inf


def test_short_pages_are_measured_for_a_gpu(probes, emulated, demo):
    assert 0 <= probes.page_s(emulated) < math.inf
    shape = shape_of(demo.model)
    names = {
        device: set(HostProbes(shape, torch.device(device), torch.float32).by_name())
        for device in ("cpu", "cuda")
    }
    assert names["cuda"] - names["cpu"] == {"host_page_s"}


def test_the_cores_can_be_kept_at_work(probes, background):
    with probes.attending():
        assert background == [probes._attending[64]]


def test_a_page_of_a_head_takes_what_short_pages_take_longer(probes, emulated, monkeypatch):
    seconds = {64: 0.5, 16: 0.8}
    monkeypatch.setattr(probes, "_call_s", seconds.__getitem__)
    heads = probes._shape.num_kv_heads
    assert probes.page_s(emulated) == pytest.approx(0.3 / (3 * probes._call_pages * heads))
    seconds[16] = 0.4
    assert probes.page_s(emulated) == 0


def test_the_pages_are_made_once_and_given_back(probes, emulated):
    for probe in probes.by_name().values():
        probe(emulated)
    store = probes._store
    assert store.growths == 1
    released = []
    store.release = lambda: released.append(store)
    probes.close()
    probes.close()
    assert released == [store]
    probes.attend_rate(emulated)
    assert probes._store is not store


@pytest.mark.parametrize("page_tokens", [64, 16])
def test_each_call_attends_to_other_pages_until_all_have_been_read(
    probes, page_tokens, monkeypatch
):
    """The memory is a multiple of what the processor's caches hold: all of it is gone through."""
    read, calls = [], 2

    class Kernel:
        def attend(self, query, pages, entries, scoring, result):
            assert pages.page_tokens == page_tokens
            assert entries.tokens == probes._call_pages * 64
            read.append(sorted(entries.page.tolist()))

    monkeypatch.setattr(host_probes, "shared_attention", Kernel)
    monkeypatch.setattr(host_probes, "uncached_bytes", lambda least: 8 * least)
    for _ in range(2 * calls):
        probes._attending[page_tokens]()
    assert len(read[0]) * page_tokens // 64 * probes._page_bytes == 4 << 20
    seen = [page for pages in read[:calls] for page in pages]
    in_store = probes._store.capacity(PageKind.KV) * 64 // page_tokens
    assert sorted(seen) == list(range(in_store))
    assert read[calls:] == read[:calls]


def test_copies_bring_the_values_that_the_cores_attend_to(probes):
    copied = []

    class Link:
        def device_buffer(self, size):
            return torch.empty(size, dtype=torch.uint8)

        def transfer(self, target, source):
            copied.append(source)

    probes.__dict__["_link"] = Link()
    copy = probes._copying(1 << 16)
    _, values = probes._parts(probes._store)
    parts = values.nbytes // (1 << 16)
    for _ in range(parts + 1):
        copy()
    assert all(source.nbytes == 1 << 16 for source in copied)
    starts = [source.data_ptr() - values.data_ptr() for source in copied]
    assert starts == [*range(0, values.nbytes, 1 << 16), 0]


def test_the_cores_compute_besides_only_in_an_emulation(probes, background, emulated):
    real = replace(emulated, emulates=None)
    named = replace(emulated, emulates="t4-pcie3")
    counts = []
    for profile in (real, named):
        for probe in (probes.attend_rate, probes.attend_rate_beside_link):
            background.clear()
            probe(profile)
            counts.append(len(background))
    assert counts == [0, 1, 1, 2]


def test_the_pages_are_given_back_when_a_machine_has_been_measured(
    demo, small, emulated, monkeypatch
):
    closed = []
    monkeypatch.setattr(HostProbes, "close", lambda self: closed.append(self))
    monkeypatch.setattr("headrace.hf.machine.load_or_measure", lambda *_, **__: emulated)
    assert machine_profile(demo.model) is emulated
    assert len(closed) == 1
