"""The conveyor: runs a program on the real lanes, layer by layer, as the model's forward asks.

Control is inverted. The model's own forward calls the attention function of layer j; there the
conveyor takes the layer's operations in program order: it waits for the staged granule (by event),
rebuilds, attends, gives the slot back, and starts whatever loads now have room. Loads run ahead of
the compute by as many granules as the ring has slots, across layers and across steps.

Shape suffixes: B rows, E entries, H key/value heads, G queries per key/value head, T tokens of a
page, D head width, M model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from headrace.plan.operations import Kind, Operation, Program
from headrace.runtime.attention import EntryTable, Partial, Scoring
from headrace.runtime.granules import Granule
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.host_lane import HostLane
from headrace.runtime.lanes import Backend, Copy, Event
from headrace.runtime.layer_attention import LayerAttention
from headrace.runtime.pages import PageKind
from headrace.runtime.recorder import Recorder
from headrace.runtime.staging import StagingRing
from headrace.runtime.store import LayerWidths, PageStore
from headrace.runtime.weights import StreamedWeights
from headrace.timeline import Lane

Rebuild = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, X ``[N, T, M]``, positions ``[N, T]``) to keys and values ``[N, H, T, D]``."""


@dataclass(frozen=True)
class StepProgram:
    """A program with the granules that its operations speak of, the same for each paged layer."""

    program: Program
    granules: Sequence[Granule]
    table: EntryTable
    """Of all granules' entries, see ``layer_table``."""
    host: RowEntries | None = None
    """What the host attends to in each paged layer."""


@dataclass
class LayerWork:
    """What a layer's attention brings to the conveyor.

    Attributes:
        query: grouped queries ``[B, H, G, D]``.
        scoring: scale and soft cap.
        attend_new: attends to what is on the device anyway; returns a partial result, or, where
            there is nothing else to attend to, the normalised output ``[B, H, G, D]``.
        store: starts the layer's stores.
    """

    query: Tensor
    scoring: Scoring
    attend_new: Callable[[], Partial | Tensor]
    store: Callable[[], None]


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


class Conveyor:
    """Runs programs.

    Args:
        backend: the lanes.
        store: the pages that loads read.
        ring: the slots that loads fill.
        widths: of each paged layer.
        block_tokens: tokens of a page.
        rebuild: makes keys and values from X.
        last_store: event of the end of a layer's stores so far, or None.
        recorder: told of everything that runs.
        workspace_bytes: bound on the scores that exist at once.
        host: the lane on which the host attends, or None.
        weights: the model's streamed weights, or None.
    """

    def __init__(
        self,
        backend: Backend,
        store: PageStore,
        ring: StagingRing,
        widths: dict[int, LayerWidths],
        block_tokens: int,
        rebuild: Rebuild,
        last_store: Callable[[int], Event | None],
        recorder: Recorder,
        workspace_bytes: int,
        host: HostLane | None = None,
        weights: StreamedWeights | None = None,
    ) -> None:
        self._backend = backend
        self._store = store
        self._ring = ring
        self._widths = widths
        self._block_tokens = block_tokens
        self._rebuild = rebuild
        self._last_store = last_store
        self._recorder = recorder
        self._workspace_bytes = workspace_bytes
        self._host = host
        self._weights = weights
        self._step = -1
        self._layers_done = -1
        self._queue: deque[_Loads] = deque()
        self._current: _Loads | None = None
        self._executed: dict[int, Event] = {}
        self._lookahead = True
        self._released = 0
        self._next_base = 0
        self._copies: WeakKeyDictionary[Granule, dict[tuple[int, int], list[Copy]]] = (
            WeakKeyDictionary()
        )
        self._positions: WeakKeyDictionary[Granule, Tensor] = WeakKeyDictionary()
        self._rebuilt: tuple[Tensor, Tensor] | None = None
        self._compute_since: object = None

    @property
    def step(self) -> int:
        """Number of the step that runs, from 0."""
        return self._step

    def let_host_attend(self, host: HostLane) -> None:
        """From the next step on, hand layers to the host where a program says so."""
        self._host = host

    def begin_step(self, now: StepProgram, after: StepProgram | None) -> None:
        """Start a step.

        Args:
            now: the step's program. Loads that were started ahead are kept if they bring what it
                brings first; else they are thrown away.
            after: what the step after this one will probably load, or None.
        """
        self._step += 1
        self._layers_done = -1
        self._executed = {}
        turn = self._begin_weights()
        self._lookahead = now.program.lookahead
        if self._queue and not now.program.loads and self._lookahead:
            self._begin_without_loads(now, after, turn)
        else:
            self._begin_with_loads(now, after, turn)
        self._recorder.note_program(now.program)
        self._compute_since = self._begin()
        self._pump()

    def _begin_without_loads(self, now: StepProgram, after: StepProgram | None, turn: int) -> None:
        """Begin a step that loads nothing of the cache; what was loaded ahead is for a later one.

        So a prompt's step comes between those of rows that decode.
        """
        ahead = self._queue.popleft()
        self._current = _Loads(self._step, now, ahead.base, turn)
        turn += now.program.num_layers
        # Not just the same pages: this step may fill pages that rows which ended have left.
        if after is not None and ahead.source.granules is after.granules:
            self._queue.append(_Loads(self._step + 1, after, ahead.base, turn, events=ahead.events))
            self._next_base = ahead.base + len(after.program.loads)
            return
        self._discard(ahead)
        if after is not None and after.program.lookahead:
            self._queue.append(self._enqueue(after, self._step + 1, turn))

    def _begin_with_loads(self, now: StepProgram, after: StepProgram | None, turn: int) -> None:
        ahead = self._queue.popleft() if self._queue else None
        if ahead is not None and _brings_the_same(ahead, now):
            # What has been started is passed over.
            self._current = _Loads(self._step, now, ahead.base, turn, events=ahead.events)
            self._next_base = ahead.base + len(now.program.loads)
        else:
            if ahead is not None:
                self._discard(ahead)
            self._current = self._enqueue(now, self._step, turn)
        if after is not None and after.program.lookahead and self._lookahead:
            turn += now.program.num_layers
            self._queue.append(self._enqueue(after, self._step + 1, turn))

    def _begin_weights(self) -> int:
        """Take over when weights come; return the turn of the step's first layer."""
        if self._weights is None:
            return 0
        self._weights.driver = self._pump
        return self._weights.begin_pass()

    def _enqueue(self, source: StepProgram, step: int, first_turn: int) -> _Loads:
        loads = _Loads(step, source, self._next_base, first_turn)
        self._next_base += len(source.program.loads)
        return loads

    def _discard(self, loads: _Loads) -> None:
        """Give back the slots of loads that nobody will read, once they have ended."""
        for number, event in loads.events.items():
            self._ring.release((loads.base + number) % self._ring.slots, event)
        self._released = loads.base + len(loads.events)
        self._next_base = self._released

    def _pump(self) -> None:
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
        if number >= self._released + self._ring.slots:
            return False
        if loads is not self._current and self._layers_done < operation.layer:
            return False
        after = []
        for index in operation.waits_for:
            event = self._executed.get(index)
            if event is None:
                return False
            after.append(event)
        self._load(loads, operation, number % self._ring.slots, after)
        return True

    def _load(self, loads: _Loads, operation: Operation, slot: int, after: list[Event]) -> None:
        granule = loads.source.granules[operation.granule]
        reader = self._ring.reader_done(slot)
        stored = self._last_store(operation.layer)
        after = [*after, *(event for event in (reader, stored) if event is not None)]
        copies = self._copies_of(granule, operation.layer, slot)
        event = self._backend.transfer(operation.lane, copies, after)
        loads.events[operation.load_number] = event
        self._recorder.note(loads.step, operation, event)

    def _copies_of(self, granule: Granule, layer: int, slot: int) -> Sequence[Copy]:
        """Return the copies that bring a granule into a slot; found once, for all steps."""
        known = self._copies.setdefault(granule, {})
        copies = known.get((layer, slot))
        if copies is None:
            views = self._staged(granule, layer, slot)
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

    def _positions_of(self, granule: Granule) -> Tensor:
        """Return the positions of a granule's tokens; gathered once, for all layers and steps."""
        positions = self._positions.get(granule)
        if positions is None:
            positions = self._store.positions.index_select(0, granule.page_index)
            self._positions[granule] = positions
        return positions

    def _staged(self, granule: Granule, layer: int, slot: int) -> tuple[Tensor, ...]:
        """Return the views of a slot that hold a granule: (X,), or keys and values."""
        width, pages = self._widths[layer], len(granule.pages)
        if granule.kind is PageKind.ACTIVATIONS:
            return self._ring.views(slot, [(pages, self._block_tokens, width.d_model)])
        shape = (pages, width.num_kv_heads, self._block_tokens, width.head_dim)
        return self._ring.views(slot, [shape, shape])

    def run_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Run a layer's operations on the compute lane; return the output ``[B, H, G, D]``.

        Args:
            layer: index of the layer.
            work: its queries, and what it does besides.
        """
        assert self._current is not None
        source = self._current.source
        attention = LayerAttention(
            work.query, source.granules, source.table, work.scoring, self._workspace_bytes
        )
        for operation in source.program.compute[layer]:
            if operation.kind is Kind.DENSE:
                # Whoever called the layer has waited for its weights.
                self._finish(operation, self._compute_since)
                self._begin_host(layer, work)
                continue
            for index in operation.waits_for:
                self._wait_for_load(index)
            start = self._begin()
            self._run(operation, work, attention)
            self._finish(operation, start)
            self._pump()
        work.store()
        self._layers_done = layer
        self._compute_since = self._begin()
        self._pump()
        return attention.output()

    def _begin_host(self, layer: int, work: LayerWork) -> None:
        """Hand the layer's queries to the host, where it attends to some of the cache."""
        assert self._current is not None
        source = self._current.source
        if source.host is None or layer not in self._widths:
            return
        assert self._host is not None
        stored = self._last_store(layer)
        event = self._host.begin(layer, work.query, source.host, work.scoring, stored)
        for operation in source.program.host[layer]:
            self._recorder.note(self._step, operation, event)

    def _wait_for_load(self, index: int) -> None:
        """Let compute wait for a load of this step (other compute comes before it anyway)."""
        assert self._current is not None
        load = self._current.source.program.operations[index]
        if load.lane in (Lane.COMPUTE, Lane.HOST_ATTEND):
            return
        event = self._current.events.get(load.load_number)
        if event is None:
            raise RuntimeError(
                f"load {load.load_number} of layer {load.layer} was needed before it was started; "
                f"{self._ring.slots} staging slots are too few for this program"
            )
        self._backend.wait(event)

    def _begin(self) -> object:
        """Note the start of a piece of compute, if it is recorded."""
        return self._backend.begin_compute() if self._recorder.enabled else None

    def _finish(self, operation: Operation, start: object) -> None:
        """Note the end of an operation, if it is recorded or if loads wait for it."""
        if self._recorder.enabled:
            event = self._backend.end_compute(start)
            self._recorder.note(self._step, operation, event)
            self._executed[operation.index] = event
        elif operation.kind is Kind.MERGE and not self._lookahead:
            self._executed[operation.index] = self._backend.mark()

    def _run(self, operation: Operation, work: LayerWork, attention: LayerAttention) -> None:
        if operation.kind is Kind.REBUILD:
            self._rebuild_granule(operation)
        elif operation.kind is Kind.ATTEND:
            self._attend_granule(operation, attention)
        elif operation.kind is Kind.ATTEND_NEW:
            attention.add_new(work.attend_new())
        elif operation.kind is Kind.MERGE:
            if self._host is not None and operation.waits_for:
                attention.add_host(self._host.result(work.query.shape))
            attention.merge()

    def _rebuild_granule(self, operation: Operation) -> None:
        assert self._current is not None
        granule = self._current.source.granules[operation.granule]
        slot = (self._current.base + operation.load_number) % self._ring.slots
        (activations,) = self._staged(granule, operation.layer, slot)
        self._rebuilt = self._rebuild(operation.layer, activations, self._positions_of(granule))
        self._give_back(slot)

    def _attend_granule(self, operation: Operation, attention: LayerAttention) -> None:
        assert self._current is not None
        granule = self._current.source.granules[operation.granule]
        slot = (self._current.base + operation.load_number) % self._ring.slots
        if granule.kind is PageKind.ACTIVATIONS:
            assert self._rebuilt is not None
            # Let go of before the next ones are made: only one granule's exist at once.
            (key, value), self._rebuilt = self._rebuilt, None
        elif granule.kind is PageKind.KV:
            key, value = self._staged(granule, operation.layer, slot)
        else:
            key, value = self._store.gather(granule.kind, operation.layer, granule.pages)
        attention.attend_granule(granule, key, value)
        if granule.kind is PageKind.KV:
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        """Let the slot be refilled once all compute so far has been done."""
        self._ring.release(slot)
        self._released += 1

    def end_step(self) -> None:
        """Note the rest of the step, which belongs to no attention layer: the head."""
        assert self._current is not None
        self._finish(self._current.source.program.operations[-1], self._compute_since)
        if self._host is not None:
            self._host.check()
        self.leave_weights()

    def leave_weights(self) -> None:
        """Let weights come by themselves again: whoever runs the model next may have no program."""
        if self._weights is not None:
            self._weights.driver = None

    def reset(self) -> None:
        """Throw away what was loaded ahead, and let weights come by themselves."""
        self.leave_weights()
        while self._queue:
            self._discard(self._queue.popleft())


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
