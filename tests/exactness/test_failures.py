"""What fails half-way: it is said, everything is given back, and the next use finds no trace."""

import random
import signal
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from tests.allocations import Allocations, CountingBackend
from tests.batcher_support import WAYS, assert_as_alone, batcher_of, beginning, greedy, run
from tests.support import host_cache, make_model, shared_model

from headrace.engine.llm import LLM
from headrace.engine.loading import LoadedModel, load_model
from headrace.engine.request import SamplingParams
from headrace.errors import ConfigurationError, HeadraceError, MemoryBudgetError
from headrace.hf import attached_cache
from headrace.hf.planning import CacheOptions
from headrace.hf.rows_cache import RowsCache
from headrace.hf.weights import PlacedWeights
from headrace.plan.workload import Workload
from headrace.runtime import cpu_lanes
from headrace.runtime.cpu_lanes import CpuBackend

REQUESTS = [(beginning(40 + number)[: 20 + 9 * number], greedy(12), 0) for number in range(9)]
MIXED = ("auto", 0.3, 0.4)
MAIN = threading.main_thread().ident
PARAMS = SamplingParams(max_tokens=12, temperature=0.0)
PROMPTS = ["def add(a, b):\n", "class Stack:\n    def push(self", "import os\n\n\ndef read("]


@contextmanager
def failing(layer, calls, error):
    """Let a layer raise in some of its calls, counted from 0."""
    count = -1

    def fail(module, args):
        nonlocal count
        count += 1
        if count in calls:
            raise error

    hook = layer.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def threads():
    """Return the names of our threads."""
    return [one.name for one in threading.enumerate() if one.name.startswith("headrace")]


def hooks_of(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("calls", [{0}, {7}, {3, 4, 30}])
def test_where_the_device_is_short_of_memory_fewer_rows_go_on(way, calls):
    running = threads()
    model = shared_model("llama-gqa")
    batcher = batcher_of(model, way, max_rows=8)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with failing(model.model.layers[1], calls, error):
        jobs = run(batcher, REQUESTS)
    assert batcher.cache.capacity <= max(1, 8 // 2 ** len(calls))
    batcher.close()
    assert_as_alone("llama-gqa", REQUESTS, jobs)
    assert threads() == running
    assert not hooks_of(model)


def test_where_memory_never_suffices_requests_fail_and_say_what_to_change():
    model = shared_model("llama-gqa")
    batcher = batcher_of(model, MIXED, max_rows=8)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with failing(model.model.layers[2], range(10_000), error):
        jobs = run(batcher, REQUESTS)
    batcher.close()
    for job in jobs:
        assert isinstance(job.error, MemoryBudgetError)
        assert "out of memory (CUDA out of memory" in str(job.error)
        assert "lower gpu_memory, max_rows or prefill_tokens" in str(job.error)


def test_a_broken_cache_says_so():
    model = shared_model("llama-gqa")
    options = CacheOptions.checked("stream", None, None, None, None, None, poison=True)
    with RowsCache(model, Workload(2, 30, 10), options) as cache:
        cache.add(2)
        with (
            failing(model.model.layers[1], {0}, ZeroDivisionError()),
            pytest.raises(ZeroDivisionError),
        ):
            cache.forward(range(2), [[5, 6], [7]])
        assert cache.broken
        with pytest.raises(ConfigurationError, match="failed half-way; close it"):
            cache.forward(range(2), [[5, 6], [7]])


@pytest.fixture(params=[0.0, 0.6])
def llm(request, monkeypatch):
    """An engine of the shipped model, all or some of whose weights are on the device."""
    loaded = load_model("demo", device="cpu", dtype="float32")
    backend = CpuBackend()
    if request.param:
        PlacedWeights(loaded.model, backend, request.param, poison=True)
    made = LLM(LoadedModel("demo", loaded.model, loaded.tokenizer), policy="stream", max_rows=2)
    made._options = CacheOptions.checked("auto", None, None, *MIXED[1:], None, poison=True)
    yield made
    backend.close()


def texts(llm):
    return [one.outputs[0].text for one in llm.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize("call", [0, 2, 3, 9])
@pytest.mark.parametrize("error", [ZeroDivisionError("of a hook"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_of_a_step(llm, error, call):
    expected, hooks, running = texts(llm), hooks_of(llm.model), threads()
    layers = llm.model.model.layers
    with failing(layers[1], {call}, error), pytest.raises(type(error)):
        llm.generate(PROMPTS, PARAMS)
    assert hooks_of(llm.model) == hooks
    assert threads() == running
    with failing(layers[0], {call}, error), pytest.raises(type(error)):
        list(llm.stream(PROMPTS, PARAMS))
    assert texts(llm) == expected


def test_a_stream_that_nobody_listens_to_any_more(llm):
    expected, hooks = texts(llm), hooks_of(llm.model)
    pieces = llm.stream(PROMPTS, PARAMS)
    next(pieces)
    assert texts(llm) == expected
    pieces.close()
    assert hooks_of(llm.model) == hooks
    assert texts(llm) == expected


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_interrupted_forward_of_an_open_cache(share, layer):
    """No hook is called at its end; whoever comes next must not be taken for a part of it."""
    model, ids = make_model("llama-gqa"), torch.arange(9)[None] + 7
    weights = PlacedWeights(model, CpuBackend(), share, poison=True) if share else None
    with torch.no_grad():
        alone = shared_model("llama-gqa")(input_ids=ids).logits
        with host_cache(model, "stream", None) as cache:
            model(input_ids=ids, past_key_values=cache)
            part = model.model.layers[layer].mlp
            with failing(part, {0}, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
                model(input_ids=ids[:, :1], past_key_values=cache)
            torch.testing.assert_close(model(input_ids=ids).logits, alone)
            with pytest.raises(ConfigurationError, match="failed half-way; call reset"):
                model(input_ids=ids[:, :1], past_key_values=cache)
            cache.reset()
            made = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(made, alone)
    if weights is not None:
        weights.release()
        weights.backend.close()


# Where it comes in a callback of the garbage collector, the interpreter prints it and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_at_any_moment(llm):
    """By a signal from outside, which comes wherever the interpreter is just then.

    Should that be in the middle of giving things back, not all of them are; but nothing hangs, and
    the next use is right.
    """
    expected = texts(llm)
    start_s = time.perf_counter()
    texts(llm)
    taken_s, choose = time.perf_counter() - start_s, random.Random(3)
    for _ in range(12):
        with suppress(KeyboardInterrupt):
            timer = threading.Timer(
                choose.random() * taken_s, signal.pthread_kill, (MAIN, signal.SIGINT)
            )
            timer.start()
            made = texts(llm)
            assert made == expected
            timer.join()
            time.sleep(1.0)  # until it is interrupted
        timer.join()
    assert texts(llm) == expected


@pytest.mark.parametrize("number", [0, 5, 17])
def test_a_transfer_that_fails(llm, monkeypatch, number):
    expected, hooks, running = texts(llm), hooks_of(llm.model), threads()
    whole, count = cpu_lanes._memmove, -1

    def fail_once(copy):
        nonlocal count
        count += 1
        if count == number:
            raise OSError("the link is gone")
        whole(copy)

    with monkeypatch.context() as patch:
        patch.setattr(cpu_lanes, "_memmove", fail_once)
        with pytest.raises(HeadraceError, match="a transfer failed: the link is gone"):
            llm.generate(PROMPTS, PARAMS)
    assert hooks_of(llm.model) == hooks
    assert threads() == running
    assert texts(llm) == expected


class ShortBackend(CountingBackend):
    """A device whose host lets so many buffers be registered, and no more.

    Attributes:
        granted: buffers that are still allowed.
    """

    def __init__(self, memory, granted):
        super().__init__(memory)
        self.granted = granted

    def host_buffer(self, shape, dtype):
        """Return memory, unless the limit is reached."""
        if self.granted == 0:
            raise MemoryBudgetError("could not register host memory; raise the limit (ulimit -l)")
        self.granted -= 1
        return super().host_buffer(shape, dtype)


@pytest.mark.parametrize("placed", [False, True])
def test_a_limit_of_registered_memory(monkeypatch, placed):
    """Wherever it is reached, what was registered before is given back."""
    running = threads()
    model = make_model("llama-gqa")
    memory = Allocations([*model.parameters(), *model.buffers()])
    options = CacheOptions.checked("auto", None, None, *MIXED[1:], None, poison=False)
    backend = ShortBackend(memory, 1_000)
    monkeypatch.setattr(attached_cache, "open_backend", lambda device, profile: backend)
    with memory:
        weights = PlacedWeights(model, backend, 0.5) if placed else None
        before, hooks, refused = backend.host_bytes, hooks_of(model), 0
        while True:
            backend.granted = refused
            try:
                with RowsCache(model, Workload(3, 80, 20), options) as cache:
                    cache.add(3)
                    cache.forward(range(3), [list(beginning(place)[:80]) for place in range(3)])
                    for _ in range(5):
                        cache.forward(range(3), [[5], [6], [7]])
                break
            except MemoryBudgetError:
                refused += 1
                assert backend.host_bytes == before
                assert hooks_of(model) == hooks
        assert refused > 5
        assert backend.host_bytes == before
    if weights is not None:
        weights.release()
    backend.close()
    assert threads() == running


def test_memory_of_one_call_is_free_for_the_next(monkeypatch):
    """Where weights are streamed, their link outlives the caches that use it, too."""
    model = make_model("llama-gqa")
    memory = Allocations([*model.parameters(), *model.buffers()])
    backend = CountingBackend(memory)
    with memory:
        weights = PlacedWeights(model, backend, 0.5)
        kept = []
        for _ in range(3):
            batcher = batcher_of(model, MIXED)
            jobs = run(batcher, REQUESTS)
            batcher.close()
            kept.append((memory.live_bytes, backend.host_bytes))
    assert_as_alone("llama-gqa", REQUESTS, jobs)
    assert kept[1] == kept[2]
    assert kept[2][1] == weights.streamed.host_bytes
    weights.release()
    backend.close()
