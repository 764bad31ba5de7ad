"""The native lane: it waits for a number in memory, attends, and raises another; no interpreter."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from headrace.errors import HeadraceError
from headrace.runtime.attention import Scoring, attend, empty_partial, normalised
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_entries import LayerPages, RowEntries
from headrace.runtime.host_lane import HostLane, NativeHostEvent
from headrace.runtime.host_pages import StoreKernel
from headrace.runtime.lanes import Event, Flag
from headrace.runtime.pages import PageKind
from headrace.runtime.store import LayerWidths, PageStore

ROWS, HEADS, GROUP, WIDTH, TOKENS = 3, 2, 2, 32, 16
SCORING = Scoring(WIDTH**-0.5)
PATIENCE_S = 20.0


@pytest.fixture
def attention():
    with HostAttention(threads=2) as made:
        if made.reason is not None:
            pytest.skip(f"no native library: {made.reason}")
        yield made


@pytest.fixture
def lane(attention):
    made = attention.lane()
    yield made
    made.close()


def word() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32)


def some_call(attention):
    """Return a call, its result, and what plain attention makes of it."""
    key, value = torch.randn(2, ROWS, HEADS, TOKENS, WIDTH).unbind(0)
    query = torch.randn(ROWS, HEADS, GROUP, WIDTH)
    result = empty_partial(query.shape, query.device)
    entries = RowEntries.of(ROWS, range(ROWS), range(ROWS), [TOKENS] * ROWS)
    pages = LayerPages.of([key], [value])
    call = attention.prepare(query, pages, entries, SCORING, result)
    return call, result, attend(query, key, value, SCORING)


def wait_for(done):
    start_s = time.perf_counter()
    while done.status < 0:
        assert time.perf_counter() - start_s < PATIENCE_S
        time.sleep(1e-4)
    return done.status


def check_result(result, expected):
    made, plain = (normalised(part, torch.float32) for part in (result, expected))
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-6)


def test_nothing_happens_before_the_signal_and_the_flag_rises_after_the_work(attention, lane):
    call, result, expected = some_call(attention)
    signal, flag = word(), word()
    done = lane.push(call, (signal.data_ptr(), 7), (flag.data_ptr(), 3))
    signal[0] = 6
    time.sleep(0.02)
    assert (done.status, int(flag)) == (-1, 0)

    told_s = time.perf_counter()
    signal[0] = 8
    assert wait_for(done) == 0
    assert told_s <= done.start_s <= done.finish_s <= time.perf_counter()
    check_result(result, expected)
    start_s = time.perf_counter()
    while int(flag) != 3:
        assert time.perf_counter() - start_s < PATIENCE_S


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
def test_what_is_written_after_the_cores_read_ahead_is_attended_to(attention, lane, wait_s):
    rows, tokens, page = 3, 1000, 100
    torch.manual_seed(0)
    query = torch.randn(rows, HEADS, GROUP, WIDTH)
    key, value = torch.randn(2, rows * tokens // page, HEADS, page, WIDTH).unbind(0)
    result = empty_partial(query.shape, query.device)
    pages = range(len(key))
    entries = RowEntries.of(rows, [one % rows for one in pages], pages, [page] * len(key))
    call = attention.prepare(query, LayerPages.of([key], [value]), entries, SCORING, result)
    signal, flag = word(), word()
    done = lane.push(call, (signal.data_ptr(), 1), (flag.data_ptr(), 1))
    time.sleep(wait_s)
    key += torch.randn_like(key)
    value += torch.randn_like(value)
    query.normal_()
    signal[0] = 1
    assert wait_for(done) == 0
    assert 0 <= done.ahead_s < PATIENCE_S
    assert done.ahead_s > 0 or not wait_s
    of_rows = [
        part.unflatten(0, (-1, rows)).permute(1, 2, 0, 3, 4).flatten(2, 3) for part in (key, value)
    ]
    check_result(result, attend(query, *of_rows, SCORING))


def test_calls_are_done_in_turn(attention, lane):
    calls = [some_call(attention) for _ in range(20)]
    signal, flag = word(), word()
    pushed = [
        lane.push(call, (signal.data_ptr(), number), (flag.data_ptr(), number))
        for number, (call, _, _) in enumerate(calls, start=1)
    ]
    signal[0] = 20
    assert [wait_for(done) for done in pushed] == [0] * 20
    # Whoever is asked for already reads nothing ahead.
    assert pushed[-1].ahead_s == 0
    assert all(one.finish_s <= other.start_s for one, other in pairwise(pushed))
    for _, result, expected in calls:
        check_result(result, expected)


def test_a_call_that_fails_is_told_and_the_flag_rises_all_the_same(attention, lane):
    good, _, _ = some_call(attention)
    bad, _, _ = some_call(attention)
    bad.call.width = 0
    signal, flag = word(), word()
    signal[0] = 1
    pushed = [
        lane.push(call, (signal.data_ptr(), 1), (flag.data_ptr(), number))
        for number, call in enumerate((bad, good), start=1)
    ]
    assert [wait_for(done) for done in pushed] == [1, 4]
    start_s = time.perf_counter()
    while int(flag) != 2:
        assert time.perf_counter() - start_s < PATIENCE_S


def test_a_lane_that_ends_gives_up_what_the_device_never_asks_for(attention):
    lane = attention.lane()
    call, _, _ = some_call(attention)
    signal, flag = word(), word()
    done = lane.push(call, (signal.data_ptr(), 1), (flag.data_ptr(), 1))
    start_s = time.perf_counter()
    lane.close()
    assert (done.status, int(flag)) == (4, 1)
    assert time.perf_counter() - start_s < PATIENCE_S


def test_without_the_library_there_is_no_lane():
    with HostAttention(variant="off") as attention:
        assert attention.lane() is None


class _Word(Event):
    """A mark that a device has already written."""

    def __init__(self, number: torch.Tensor) -> None:
        self.word = number.data_ptr(), int(number)

    @property
    def happened(self) -> bool:
        return True

    def wait_on_host(self) -> None:
        raise AssertionError("the interpreter waits")

    def times_s(self) -> tuple[float, float]:
        return 0.0, 0.0


class _MemoryFlag(Flag):
    def __init__(self) -> None:
        self.number = word()
        self.address = self.number.data_ptr()

    def reach(self, number: int) -> None:
        raise AssertionError("the interpreter raises the flag")

    def wait(self, number: int) -> None:
        start_s = time.perf_counter()
        while int(self.number) < number:
            assert time.perf_counter() - start_s < PATIENCE_S


class MemoryBackend(CpuBackend):
    """A CPU that tells and is told as a GPU is: by numbers in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._signal = word()

    def flag(self) -> Flag:
        return _MemoryFlag()

    def host_marks(self, stored: Event | None) -> list[Event]:
        self._signal += 1
        return [_Word(self._signal)]


@pytest.fixture
def backend():
    made = MemoryBackend()
    yield made
    made.close()


@pytest.fixture
def store(backend):
    made = PageStore(backend, {0: LayerWidths(HEADS, WIDTH, 8)}, torch.float32, TOKENS)
    made.grow(PageKind.KV, ROWS)
    for part in made.pages(PageKind.KV, 0, 0, ROWS):
        part.copy_(torch.randn(part.shape))
    return made


def test_layers_of_many_steps_go_through_it(backend, store, attention):
    entries = RowEntries.of(ROWS, range(ROWS), range(ROWS), [TOKENS] * ROWS)
    key, value = store.pages(PageKind.KV, 0, 0, ROWS)
    lane = HostLane(backend, StoreKernel(store, attention))
    try:
        for _ in range(50):
            query = torch.randn(ROWS, HEADS, GROUP, WIDTH)
            event = lane.begin(0, query, entries, SCORING, None)
            result = lane.result(query.shape)
            check_result(result, attend(query, key, value, SCORING))
            lane.check()
        assert isinstance(event, NativeHostEvent)
        start_s, finish_s = event.times_s()
        assert 0 < start_s <= finish_s <= backend.now_s()
        busy = lane.busy()
        assert 0 < busy.seconds <= backend.now_s()
        assert busy.read_bytes == 50 * (key.nbytes + value.nbytes)
        # Reading ahead is reading, too: else the cores would seem to be faster than they are.
        event = lane.begin(0, query, entries, SCORING, None)
        event.wait_on_host()
        event._done.ahead_s = 1.0
        assert 1.0 <= lane.busy().seconds <= 1.0 + backend.now_s()
    finally:
        lane.close()


def test_a_failure_of_the_cores_is_raised_by_the_next_layer(backend, store, attention, monkeypatch):
    entries = RowEntries.of(ROWS, range(ROWS), range(ROWS), [TOKENS] * ROWS)
    kernel = StoreKernel(store, attention)
    query = torch.randn(ROWS, HEADS, GROUP, WIDTH)
    plain = kernel.prepare

    def broken(*args):
        made = plain(*args)
        call = type(made.call).from_buffer_copy(made.call)
        call.width = 0
        return replace(made, call=call)

    monkeypatch.setattr(kernel, "prepare", broken)
    lane = HostLane(backend, kernel)
    try:
        lane.begin(0, query, entries, SCORING, None)
        lane.result(query.shape)
        with pytest.raises(HeadraceError, match="a size is not allowed"):
            lane.begin(0, query, entries, SCORING, None)
    finally:
        lane.close()
