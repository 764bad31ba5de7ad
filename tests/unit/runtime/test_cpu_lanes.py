"""The lanes of a CPU: order, waiting, pacing, errors, and their end."""

import itertools
import threading
import time

import pytest
import torch

from headrace.errors import HeadraceError
from headrace.runtime import cpu_lanes
from headrace.runtime.cpu_lanes import CpuBackend, CpuEvent
from headrace.runtime.lanes import Attended, Copy
from headrace.timeline import D2H_LANES, H2D_LANES, Lane, Origin


@pytest.fixture
def backend():
    made = CpuBackend()
    yield made
    made.close()


def copy_of(count=64, value=1.0):
    return Copy(torch.zeros(count), torch.full((count,), value))


def watch_copies(monkeypatch):
    """Return a list that gets the first source value of every copy, in the order of the copying."""
    order, whole = [], cpu_lanes._memmove

    def memmove(copy):
        order.append(float(copy.source[0]))
        whole(copy)

    monkeypatch.setattr(cpu_lanes, "_memmove", memmove)
    return order


@pytest.mark.parametrize("lanes", [H2D_LANES, D2H_LANES])
def test_transfers_of_a_direction_run_in_the_order_of_the_calls(monkeypatch, backend, lanes):
    order = watch_copies(monkeypatch)
    gate = CpuEvent()
    events = [
        backend.transfer(lanes[number % len(lanes)], [copy_of(value=float(number))], [gate])
        for number in range(30)
    ]
    assert not order
    gate.happen(0.0, 0.0)
    for event in events:
        event.wait_on_host()
    assert order == [float(number) for number in range(30)]


def test_directions_do_not_wait_for_each_other(backend):
    gate = CpuEvent()
    held = backend.transfer(Lane.LOAD_KV, [copy_of()], [gate])
    backend.transfer(Lane.STORE_KV, [copy_of()], []).wait_on_host()
    assert not held.happened
    gate.happen(0.0, 0.0)
    held.wait_on_host()


def test_a_transfer_copies_every_byte(backend):
    size = 3 * cpu_lanes._PIECE_BYTES // 4 + 5
    source = torch.arange(size, dtype=torch.float32)
    copies = [Copy(torch.zeros(size), source), Copy(torch.zeros(7), source[:7])]
    backend.wait(backend.transfer(Lane.LOAD_KV, copies, []))
    for copy in copies:
        assert torch.equal(copy.destination, copy.source)


def test_a_transfer_waits_for_what_it_was_told_to(backend):
    gate = CpuEvent()
    first = copy_of(value=5.0)
    second = Copy(torch.zeros(64), first.destination)
    stored = backend.transfer(Lane.STORE_KV, [first], [gate])
    loaded = backend.transfer(Lane.LOAD_KV, [second], [stored])
    gate.happen(0.0, 0.0)
    backend.wait(loaded)
    assert second.destination.eq(5.0).all()


@pytest.mark.parametrize("lane", [Lane.LOAD_KV, Lane.STORE_KV])
def test_an_emulated_link_is_no_faster_than_its_rate(lane):
    backend = CpuBackend(h2d_bytes_per_s=1e6, d2h_bytes_per_s=1e6)
    try:
        copies = [copy_of(count=500) for _ in range(10)]
        start_s = time.perf_counter()
        events = [backend.transfer(lane, [copy], []) for copy in copies]
        for event in events:
            event.wait_on_host()
        taken_s = time.perf_counter() - start_s
        assert taken_s >= 10 * 2000 / 1e6
        times = [event.times_s() for event in events]
        for start, finish in times:
            assert finish - start == pytest.approx(2000 / 1e6)
        for (_, finish), (start, _) in itertools.pairwise(times):
            assert start >= finish - 1e-9
        assert backend.origin is Origin.EMULATED
    finally:
        backend.close()


def test_the_lanes_of_a_direction_share_its_rate():
    backend = CpuBackend(h2d_bytes_per_s=1e6)
    try:
        lanes = (Lane.LOAD_KV, Lane.LOAD_ACTIVATIONS) * 4
        start_s = time.perf_counter()
        events = [backend.transfer(lane, [copy_of(count=500)], []) for lane in lanes]
        for event in events:
            event.wait_on_host()
        assert time.perf_counter() - start_s >= 8 * 2000 / 1e6
    finally:
        backend.close()


def attended(backend, *after, read_bytes=20_000, query_bytes=0, result_bytes=0):
    return Attended(
        after or (backend.mark(),), backend.now_s(), read_bytes, query_bytes, result_bytes
    )


def test_emulated_cores_are_no_faster_than_their_rate():
    backend = CpuBackend(1e9, 1e9, host_attend_bytes_per_s=1e6)
    ready, begin_s = backend.mark(), time.perf_counter()
    first, second = (backend.end_attended(attended(backend, ready)) for _ in range(2))
    assert time.perf_counter() - begin_s >= 2 * 20_000 / 1e6
    assert first[0] == pytest.approx(ready.times_s()[1])
    assert second[0] == pytest.approx(first[1])
    for start, finish in (first, second):
        assert finish - start >= 20_000 / 1e6 - 1e-9


def test_queries_and_results_take_their_time_on_the_emulated_link():
    backend = CpuBackend(1e6, 2e6, host_attend_bytes_per_s=1e6)
    work = attended(backend, read_bytes=1_000, query_bytes=2_000, result_bytes=6_000)
    start, finish = backend.end_attended(work)
    assert finish - start >= (1_000 + 2_000 + 3_000) / 1e6 - 1e-9


def test_emulated_cores_begin_when_all_that_they_wait_for_has_happened():
    backend = CpuBackend(1e9, 1e9, host_attend_bytes_per_s=1e12)
    early, late = CpuEvent(), CpuEvent()
    early.happen(0.0, 0.0)
    late.happen(0.0, backend.now_s())
    start, finish = backend.end_attended(attended(backend, early, late))
    assert start == pytest.approx(late.times_s()[1])
    # The work itself took until now at least.
    assert finish >= start


def test_cores_that_are_not_emulated_are_never_held_up(backend):
    work = attended(backend, read_bytes=10**15)
    start, finish = backend.end_attended(work)
    assert start == work.start_s
    assert start <= finish <= backend.now_s()


def test_a_plain_link_is_measured(backend):
    assert backend.origin is Origin.MEASURED
    start, finish = backend.transfer(Lane.LOAD_KV, [copy_of()], []).times_s()
    assert 0 <= start <= finish


def test_an_error_reaches_whoever_waits(monkeypatch, backend):
    def fail(copy):
        raise MemoryError("no such page")

    with monkeypatch.context() as patch:
        patch.setattr(cpu_lanes, "_memmove", fail)
        failed = backend.transfer(Lane.STORE_KV, [copy_of()], [])
        with pytest.raises(HeadraceError, match="a transfer failed: no such page"):
            backend.wait(failed)
    after = copy_of(value=3.0)
    with pytest.raises(HeadraceError, match="a transfer failed"):
        backend.wait(backend.transfer(Lane.LOAD_KV, [after], [failed]))
    assert not after.destination.any()
    # Neither lane is stuck.
    for lane in (Lane.STORE_KV, Lane.LOAD_KV):
        backend.wait(backend.transfer(lane, [copy_of()], []))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("headrace-")]


def test_close_ends_the_threads_after_their_work():
    before = len(threads())
    backend = CpuBackend(h2d_bytes_per_s=1e6)
    copies = [copy_of(count=500, value=2.0) for _ in range(5)]
    for copy in copies:
        backend.transfer(Lane.LOAD_KV, [copy], [])
    backend.transfer(Lane.STORE_KV, [copy_of()], [])
    assert len(threads()) == before + 2
    backend.close()
    assert len(threads()) == before
    assert all(copy.destination.eq(2.0).all() for copy in copies)
    backend.close()


def test_synchronize_waits_for_every_transfer(backend):
    copies = [copy_of(count=10_000, value=2.0) for _ in range(20)]
    for number, copy in enumerate(copies):
        backend.transfer((Lane.LOAD_KV, Lane.STORE_KV)[number % 2], [copy], [])
    backend.synchronize()
    assert all(copy.destination.eq(2.0).all() for copy in copies)


def test_compute_is_done_when_its_call_returns(backend):
    start = backend.begin_compute()
    event = backend.end_compute(start)
    assert event.happened
    assert event.times_s()[0] <= event.times_s()[1]
    assert backend.mark().happened
