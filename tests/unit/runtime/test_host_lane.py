"""The lane of the host's cores: results come up, failures are told, and nobody waits for ever."""

import time

import numpy as np
import pytest
import torch

from headrace.errors import HeadraceError
from headrace.runtime.attention import Scoring, attend
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.host_lane import HostLane
from headrace.runtime.host_pages import StoreKernel, row_entries
from headrace.runtime.lanes import Busy
from headrace.runtime.pages import Page, PageKind, Row
from headrace.runtime.store import LayerWidths, PageStore

BLOCK, HEADS, WIDTH, GROUP = 16, 2, 32, 3
SCORING = Scoring(WIDTH**-0.5)


@pytest.fixture
def backend():
    made = CpuBackend()
    yield made
    made.close()


@pytest.fixture
def store(backend):
    made = PageStore(backend, {0: LayerWidths(HEADS, WIDTH, 8)}, torch.float32, BLOCK)
    made.grow(PageKind.KV, 3)
    made.grow(PageKind.KV, 2)
    torch.manual_seed(0)
    for first, count in ((0, 3), (3, 2)):
        for part in made.pages(PageKind.KV, 0, first, count):
            part.copy_(torch.randn(part.shape))
    return made


def pages_of(*lengths):
    """Page number and row of each page, and the rows: row i has as many pages as are given."""
    rows, uses, number = [Row() for _ in lengths], [], 0
    for row, count in enumerate(lengths):
        for _ in range(count):
            uses.append((Page(PageKind.KV, number, np.arange(BLOCK)), row))
            number += 1
    return uses, rows


def test_each_row_attends_to_its_pages(backend, store):
    uses, rows = pages_of(2, 0, 3)
    entries = row_entries(uses, rows, BLOCK)
    assert entries.tokens == 5 * BLOCK
    query = torch.randn(3, HEADS, GROUP, WIDTH)
    lane = HostLane(backend, StoreKernel(store))
    try:
        event = lane.begin(0, query, entries, SCORING, None)
        result = lane.result(query.shape)
        start_s, finish_s = event.times_s()
        assert 0 <= start_s <= finish_s
        lane.check()
        for row, numbers in ((0, [0, 1]), (2, [2, 3, 4])):
            key, value = (
                torch.cat(list(part.unbind(0)), dim=1)[None]
                for part in store.gather(PageKind.KV, 0, numbers)
            )
            whole = attend(query[row : row + 1], key, value, SCORING)
            made, plain = (
                one.output[place] / one.total[place, ..., None]
                for one, place in ((result, row), (whole, 0))
            )
            torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-6)
        assert (result.total[1] == 0).all()
        assert (result.maximum[1] == float("-inf")).all()
    finally:
        lane.close()


def test_the_backend_is_told_what_the_cores_read_and_says_when_they_ended(backend, store):
    told = []

    def end_attended(attended):
        told.append(attended)
        return 3.0, 5.0

    backend.end_attended = end_attended
    query = torch.randn(2, HEADS, GROUP, WIDTH)
    lane = HostLane(backend, StoreKernel(store))
    event = lane.begin(0, query, row_entries(*pages_of(2, 1), BLOCK), SCORING, None)
    assert event.times_s() == (3.0, 5.0)
    lane.close()
    (attended,) = told
    assert attended.after
    assert attended.read_bytes == 3 * BLOCK * HEADS * 2 * WIDTH * 4
    assert attended.query_bytes == query.nbytes
    assert attended.result_bytes == (query.numel() + 2 * query[..., 0].numel()) * 4


def test_it_says_how_long_the_cores_were_busy(store):
    class Instant(CpuBackend):
        """Says that the cores took a second a call, a quarter of it for queries and results."""

        def end_attended(self, attended):
            return attended.start_s, attended.start_s + 1.0

        def mail_s(self, query_bytes, result_bytes):
            return 0.25 if query_bytes and result_bytes else 0.0

    backend = Instant()
    lane = HostLane(backend, StoreKernel(store))
    assert lane.busy() == Busy()
    query = torch.randn(2, HEADS, GROUP, WIDTH)
    for lengths in ((2, 1), (1, 1)):
        event = lane.begin(0, query, row_entries(*pages_of(*lengths), BLOCK), SCORING, None)
        lane.result(query.shape)
        event.wait_on_host()
    busy = lane.busy()
    assert busy.seconds == pytest.approx(1.5)
    assert busy.read_bytes == 5 * BLOCK * HEADS * 2 * WIDTH * 4
    assert lane.busy() == Busy()
    lane.close()
    backend.close()


def test_no_result_is_seen_before_slower_cores_would_have_been_done(store):
    slow = CpuBackend(1e9, 1e9, host_attend_bytes_per_s=1e6)
    entries = row_entries(*pages_of(1), BLOCK)
    query = torch.randn(1, HEADS, GROUP, WIDTH)
    lane = HostLane(slow, StoreKernel(store))
    begin_s = time.perf_counter()
    lane.begin(0, query, entries, SCORING, None)
    lane.result(query.shape)
    assert time.perf_counter() - begin_s >= BLOCK * HEADS * 2 * WIDTH * 4 / 1e6
    lane.close()
    slow.close()


def test_hidden_tokens_are_not_seen(backend, store):
    uses, rows = pages_of(1)
    rows[0].hidden.update({3, 5})
    entries = row_entries(uses, rows, BLOCK)
    query = torch.randn(1, HEADS, GROUP, WIDTH)
    lane = HostLane(backend, StoreKernel(store))
    lane.begin(0, query, entries, SCORING, None)
    result = lane.result(query.shape)
    key, value = store.gather(PageKind.KV, 0, [0])
    seen = torch.ones(BLOCK, dtype=torch.bool)
    seen[[3, 5]] = False
    plain = attend(query, key, value, SCORING, seen)
    torch.testing.assert_close(
        result.output / result.total[..., None], plain.output / plain.total[..., None]
    )
    lane.close()


def test_a_failure_is_told_and_nobody_waits_for_ever(backend, store):
    class Broken:
        def attend(self, *_):
            raise ValueError("no such page")

    entries = row_entries(*pages_of(1), BLOCK)
    query = torch.randn(1, HEADS, GROUP, WIDTH)
    lane = HostLane(backend, Broken())
    lane.begin(0, query, entries, SCORING, None).wait_on_host()
    lane.result(query.shape)
    with pytest.raises(HeadraceError, match="attention failed: no such page"):
        lane.check()
    with pytest.raises(HeadraceError, match="no such page"):
        lane.begin(0, query, entries, SCORING, None)
    lane.close()


def test_a_larger_batch_gets_larger_mailboxes(backend, store):
    lane = HostLane(backend, StoreKernel(store))
    for lengths in ((1,), (1, 1, 1), (2,)):
        entries = row_entries(*pages_of(*lengths), BLOCK)
        query = torch.randn(len(lengths), HEADS, GROUP, WIDTH)
        lane.begin(0, query, entries, SCORING, None)
        assert (lane.result(query.shape).total > 0).all()
    lane.close()
