import pytest
import torch
from tests.checked_backend import CheckedBackend

from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.lanes import Copy
from headrace.runtime.staging import POISON, StagingRing, StoreRing
from headrace.timeline import Lane


@pytest.fixture
def backend():
    return CheckedBackend(0)


def test_views_lie_one_after_the_other(backend):
    ring = StagingRing(backend, 3, 20, torch.float32)
    first, second = ring.views(1, [(2, 3), (4,)])
    assert (first.shape, second.shape) == ((2, 3), (4,))
    assert first.is_contiguous()
    assert second.data_ptr() == first.data_ptr() + 6 * 4
    assert ring.views(2, [(1,)])[0].data_ptr() == first.data_ptr() + 20 * 4
    assert (ring.slots, ring.size_bytes) == (3, 3 * 20 * 4)


def test_a_slot_was_read_once_it_has_been_released(backend):
    ring = StagingRing(backend, 3, 4, torch.float32)
    assert ring.reader_done(0) is None
    ring.release(0)
    assert ring.reader_done(0).made_at == backend.now
    done = backend.mark()
    ring.release(1, done)
    assert ring.reader_done(1) is done
    assert ring.reader_done(2) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_poison_is_in_every_slot_that_nothing_was_loaded_to(backend, dtype):
    ring = StagingRing(backend, 2, 4, dtype, poison=True)
    (view,) = ring.views(0, [(4,)])
    assert view.eq(POISON).all() or dtype is torch.bfloat16
    assert torch.isfinite(view).all()
    assert (view.float() > 2.9e3).all()
    view.fill_(1.0)
    ring.release(0)
    assert (view.float() > 2.9e3).all()


def test_poison_waits_for_a_load_that_nobody_reads(backend):
    ring = StagingRing(backend, 2, 4, torch.float32, poison=True)
    (view,) = ring.views(0, [(4,)])
    late = backend.transfer(Lane.LOAD_KV, [Copy(view, torch.ones(4))], [])
    ring.release(0, late)
    assert late.job.done
    assert view.eq(POISON).all()


def test_store_buffers_are_taken_in_turn_and_only_once_stored():
    backend = CpuBackend()
    try:
        ring = StoreRing(backend, 2, 8, torch.float32)
        host = torch.zeros(4, 8)
        for number in range(4):
            slot, flat = ring.take()
            assert slot == number % 2
            flat.fill_(float(number))
            event = backend.transfer(Lane.STORE_KV, [Copy(host[number], flat)], [backend.mark()])
            ring.stored(slot, event)
        backend.synchronize()
        assert host[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    finally:
        backend.close()
