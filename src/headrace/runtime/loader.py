"""The loader: starts the loads of the steps' programs, in order, as early as they may start.

Loads run ahead of the compute by as many granules as the ring has slots, across layers and across
steps: behind the loads of the step that runs wait those of the one that will probably follow.

Shape suffixes: P pages, H key/value heads, T tokens of a page, D head width, M model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from headrace.plan.operations import Kind, Operation
from headrace.runtime.granules import Granule
from headrace.runtime.lanes import Backend, Busy, Copy, Event
from headrace.runtime.pages import PageKind
from headrace.runtime.programs import StepProgram
from headrace.runtime.recorder import Recorder
from headrace.runtime.staging import StagingRing
from headrace.runtime.store import LayerWidths, PageStore
from headrace.runtime.weights import StreamedWeights

_TIMED_EVERY = 7
"""One load in so many is timed, where somebody asks."""

_TIMED_COPY_BYTES = 1 << 22
"""Copies of such a load are so large on average that what a copy takes besides hardly counts."""


@dataclass
class _Loads:
    """The loads of one step, of which some have been started.

    Attributes:
        step: number of the step.
        source: its program.
        base: number, over all steps, of its first load of the cache.
        first_turn: turn of the first layer's weights.
        started: operations of the program's loads that have been seen to.
        events: of the loads of the cache that have been started, by their number in the step.
        brought: bytes of weights, by their number in the step, that the operations so far bring.
    """

    step: int
    source: StepProgram
    base: int
    first_turn: int
    started: int = 0
    events: dict[int, Event] = field(default_factory=dict)
    brought: dict[int, int] = field(default_factory=dict)

    @property
    def pending(self) -> Operation | None:
        """The first operation that has not been seen to."""
        operations = self.source.program.link_loads
        return operations[self.started] if self.started < len(operations) else None


class Loader:
    """Starts loads.

    Args:
        backend: the lanes.
        store: the pages that loads read.
        ring: the slots that loads fill.
        widths: of each paged layer.
        last_store: event of the end of a layer's stores so far, or None.
        recorder: told of every load.
        weights: the model's streamed weights, or None.
    """

    def __init__(
        self,
        backend: Backend,
        store: PageStore,
        ring: StagingRing,
        widths: Mapping[int, LayerWidths],
        last_store: Callable[[int], Event | None],
        recorder: Recorder,
        weights: StreamedWeights | None = None,
    ) -> None:
        self._backend = backend
        self._store = store
        self._ring = ring
        self._slots = ring.slots
        self._widths = widths
        self._last_store = last_store
        self._recorder = recorder
        self._weights = weights
        self._current: _Loads | None = None
        self._queue: deque[_Loads] = deque()
        self._next_base = 0
        self._released = 0
        self._layers_done = -1
        self._done: dict[int, Event] = {}
        self._timed: deque[tuple[Event, int]] | None = None
        self._newest: Event | None = None
        self._loads = 0
        self._copies: WeakKeyDictionary[Granule, dict[tuple[int, int], list[Copy]]] = (
            WeakKeyDictionary()
        )

    def begin_step(
        self, step: int, now: StepProgram, after: StepProgram | None
    ) -> Mapping[int, Event]:
        """Take over a step's loads; none is started yet.

        Args:
            step: its number.
            now: the step's program. Loads that were started ahead are kept if they bring what it
                brings first; else they are thrown away.
            after: what the step after this one will probably load, or None.

        Returns:
            The events of the step's loads of the cache, by their number in the step, to which each
            one is added when it is started.
        """
        self._layers_done = -1
        self._done = {}
        turn = self._begin_weights()
        if self._queue and not now.program.loads and now.program.lookahead:
            self._current = self._begin_without_loads(step, now, after, turn)
        else:
            self._current = self._begin_with_loads(step, now, after, turn)
        return self._current.events

    def start_loads(self) -> None:
        """Start every load that has room and may start, in order."""
        for loads in (self._current, *self._queue):
            while loads is not None and (operation := loads.pending) is not None:
                if operation.kind is Kind.LOAD_WEIGHTS:
                    started = self._bring_weights(loads, operation)
                else:
                    started = self._start_load(loads, operation)
                if not started:
                    return
                loads.started += 1

    def staged(self, operation: Operation) -> tuple[Tensor, ...]:
        """Return what a load of the step has brought: (X,) ``[P, T, M]``, or keys and values.

        Args:
            operation: reads it; compute has been told to wait for the load.

        Returns:
            Views of the slot, the reader's until it gives it back. Keys and values are
            ``[P, H, T, D]`` each.
        """
        assert self._current is not None
        slot = (self._current.base + operation.load_number) % self._slots
        granule = self._current.source.granules[operation.granule]
        return self._views(granule, operation.layer, slot)

    def give_back(self, operation: Operation) -> None:
        """Let the slot that an operation read be refilled once all compute so far is done."""
        assert self._current is not None
        self._ring.release((self._current.base + operation.load_number) % self._slots)
        self._released += 1
        self.start_loads()

    def note_done(self, operation: Operation, event: Event) -> None:
        """Note the event of an operation of the step, and start what waits for it."""
        self._done[operation.index] = event
        self.start_loads()

    def layer_done(self, layer: int) -> None:
        """Let the next step's loads of a layer start: the step's stores of it are started."""
        self._layers_done = layer
        self.start_loads()

    def busy(self) -> Busy:
        """Return how long some loads of the cache took that ended since the last call.

        From the first call on one load in a few is timed, of those that follow on another without a
        pause, so that no time is counted in which they are still being called. Nobody waits for
        those under way.
        """
        if self._timed is None:
            self._timed = deque()
        seconds, read_bytes = 0.0, 0
        while self._timed and self._timed[0][0].happened:
            event, size_bytes = self._timed.popleft()
            seconds += event.took_s()
            read_bytes += size_bytes
        return Busy(seconds, read_bytes)

    def leave_weights(self) -> None:
        """Let weights come by themselves again: whoever runs the model next may have no program."""
        if self._weights is not None:
            self._weights.driver = None

    def reset(self) -> None:
        """Throw away what was loaded ahead, and let weights come by themselves."""
        self.leave_weights()
        while self._queue:
            self._discard(self._queue.popleft())

    # Which loads there are

    def _begin_without_loads(
        self, step: int, now: StepProgram, after: StepProgram | None, turn: int
    ) -> _Loads:
        """Begin a step that loads nothing of the cache; what was loaded ahead is for a later one.

        So a prompt's step comes between those of rows that decode.
        """
        ahead = self._queue.popleft()
        current = _Loads(step, now, ahead.base, turn)
        turn += now.program.num_layers
        # Not just the same pages: this step may fill pages that rows which ended have left.
        if after is not None and ahead.source.granules is after.granules:
            self._queue.append(_Loads(step + 1, after, ahead.base, turn, events=ahead.events))
            self._next_base = ahead.base + len(after.program.loads)
            return current
        self._discard(ahead)
        if after is not None and after.program.lookahead:
            self._queue.append(self._number(after, step + 1, turn))
        return current

    def _begin_with_loads(
        self, step: int, now: StepProgram, after: StepProgram | None, turn: int
    ) -> _Loads:
        ahead = self._queue.popleft() if self._queue else None
        if ahead is not None and _brings_the_same(ahead, now):
            # What has been started is passed over.
            current = _Loads(step, now, ahead.base, turn, events=ahead.events)
            self._next_base = ahead.base + len(now.program.loads)
        else:
            if ahead is not None:
                self._discard(ahead)
            current = self._number(now, step, turn)
        if after is not None and after.program.lookahead and now.program.lookahead:
            turn += now.program.num_layers
            self._queue.append(self._number(after, step + 1, turn))
        return current

    def _begin_weights(self) -> int:
        """Take over when weights come; return the turn of the step's first layer."""
        if self._weights is None:
            return 0
        self._weights.driver = self.start_loads
        return self._weights.begin_pass()

    def _number(self, source: StepProgram, step: int, first_turn: int) -> _Loads:
        """Return a step's loads, numbered after those of the steps before it."""
        loads = _Loads(step, source, self._next_base, first_turn)
        self._next_base += len(source.program.loads)
        return loads

    def _discard(self, loads: _Loads) -> None:
        """Give back the slots of loads that nobody will read, once they have ended."""
        for number, event in loads.events.items():
            self._ring.release((loads.base + number) % self._slots, event)
        self._released = loads.base + len(loads.events)
        self._next_base = self._released

    # One load

    def _bring_weights(self, loads: _Loads, operation: Operation) -> bool:
        """Start a load of weights, unless it has been; return whether there was room."""
        assert self._weights is not None
        number = operation.weights_number
        until_bytes = loads.brought.get(number, 0) + operation.link_bytes
        started = self._weights.loads_started
        event = self._weights.bring(loads.first_turn + number, until_bytes)
        if event is None:
            return False
        loads.brought[number] = until_bytes
        if self._weights.loads_started > started:
            self._recorder.note(loads.step, operation, event)
        return True

    def _start_load(self, loads: _Loads, operation: Operation) -> bool:
        """Start a load of the cache, unless it has been; return whether it may start."""
        if operation.load_number in loads.events:
            return True
        number = loads.base + operation.load_number
        if number >= self._released + self._slots:
            return False
        if loads is not self._current and self._layers_done < operation.layer:
            return False
        after = []
        for index in operation.waits_for:
            event = self._done.get(index)
            if event is None:
                return False
            after.append(event)
        self._load(loads, operation, number % self._slots, after)
        return True

    def _load(self, loads: _Loads, operation: Operation, slot: int, after: list[Event]) -> None:
        granule = loads.source.granules[operation.granule]
        reader = self._ring.reader_done(slot)
        stored = self._last_store(operation.layer)
        after = [*after, *(event for event in (reader, stored) if event is not None)]
        copies = self._copies_of(granule, operation.layer, slot)
        size_bytes = self._timed_bytes(copies)
        event = self._backend.transfer(operation.lane, copies, after, timed=size_bytes > 0)
        if size_bytes and self._timed is not None:
            self._timed.append((event, size_bytes))
        self._newest = event
        loads.events[operation.load_number] = event
        self._recorder.note(loads.step, operation, event)

    def _timed_bytes(self, copies: Sequence[Copy]) -> int:
        """Return the bytes of a load if it is to be timed, else 0."""
        if self._timed is None:
            return 0
        self._loads += 1
        if self._loads % _TIMED_EVERY or self._newest is None or self._newest.happened:
            return 0
        size_bytes = sum(copy.size_bytes for copy in copies)
        return size_bytes if size_bytes >= _TIMED_COPY_BYTES * len(copies) else 0

    def _copies_of(self, granule: Granule, layer: int, slot: int) -> Sequence[Copy]:
        """Return the copies that bring a granule into a slot; found once, for all steps."""
        known = self._copies.setdefault(granule, {})
        copies = known.get((layer, slot))
        if copies is None:
            views = self._views(granule, layer, slot)
            copies, done = [], 0
            for first, count in self._store.runs(granule.kind, granule.pages):
                pages = self._store.pages(granule.kind, layer, first, count)
                copies += [
                    Copy(view[done : done + count], page)
                    for view, page in zip(views, pages, strict=True)
                ]
                done += count
            known[layer, slot] = copies
        return copies

    def _views(self, granule: Granule, layer: int, slot: int) -> tuple[Tensor, ...]:
        """Return the views of a slot that hold a granule: (X,), or keys and values."""
        width, pages = self._widths[layer], len(granule.pages)
        if granule.kind is PageKind.ACTIVATIONS:
            return self._ring.views(slot, [(pages, self._store.block_tokens, width.d_model)])
        shape = (pages, width.num_kv_heads, self._store.block_tokens, width.head_dim)
        return self._ring.views(slot, [shape, shape])


def _brings_the_same(ahead: _Loads, now: StepProgram) -> bool:
    """Return whether the loads that were started ahead are just the first ones of a program.

    After beams were reordered, for one, other rows see the same pages.
    """
    if ahead.source.granules is now.granules:
        return True
    before = ahead.source.program.loads[: len(ahead.events)]
    if len(before) > len(now.program.loads):
        return False
    for load, other in zip(before, now.program.loads, strict=False):
        old, new = ahead.source.granules[load.granule], now.granules[other.granule]
        if (load.layer, old.kind, old.pages) != (other.layer, new.kind, new.pages):
            return False
    return True
