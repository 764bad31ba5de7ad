"""The conveyor: runs a program on the real lanes, layer by layer, as the model's forward asks.

Control is inverted. The model's own forward calls the attention function of layer j; there the
conveyor takes the layer's operations in program order: it waits for the staged granule (by event),
rebuilds, attends, gives the slot back, and lets the loader start whatever now has room.

Shape suffixes: B rows, H key/value heads, G queries per key/value head, N pages, T tokens of a
page, D head width, M model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor

from headrace.plan.operations import Kind, Operation
from headrace.runtime.attention import Rotation, Scoring
from headrace.runtime.granules import Granule
from headrace.runtime.host_lane import HostLane
from headrace.runtime.lanes import Backend, Event
from headrace.runtime.layer_attention import LayerAttention, Results
from headrace.runtime.loader import Loader
from headrace.runtime.pages import PageKind
from headrace.runtime.programs import StepProgram
from headrace.runtime.recorder import Recorder
from headrace.runtime.store import LayerWidths, PageStore
from headrace.timeline import Lane


class Rebuilt(NamedTuple):
    """What was made from X of some pages.

    Attributes:
        key: ``[N, H, T, D]``; D is contiguous.
        value: likewise.
        rotation: how the keys are yet to be rotated, or None.
    """

    key: Tensor
    value: Tensor
    rotation: Rotation | None = None


class Rebuild(Protocol):
    """Makes keys and values from X."""

    def __call__(
        self, layer: int, activations: Tensor, positions: Tensor, *, rotated: bool = True
    ) -> Rebuilt:
        """Return keys and values.

        Args:
            layer: index of the layer.
            activations: X ``[N, T, M]``.
            positions: int64 ``[N, T]``.
            rotated: False: keys may be left as they are before their rotation.
        """


@dataclass
class LayerWork:
    """What a layer's attention brings to the conveyor.

    Attributes:
        query: grouped queries ``[B, H, G, D]``.
        scoring: scale and soft cap.
        attend_new: adds the attention to what is on the device anyway.
        store: starts the layer's stores.
        into: where the output is best written, in the queries' shape, or None.
        is_prompt: whether the queries are a prompt's, and many.
    """

    query: Tensor
    scoring: Scoring
    attend_new: Callable[[LayerAttention], None]
    store: Callable[[], None]
    into: Tensor | None = None
    is_prompt: bool = False


class Conveyor:
    """Runs programs.

    Args:
        backend: the lanes.
        loader: brings what operations read.
        store: pages, of which some are on the device.
        widths: of each paged layer.
        rebuild: makes keys and values from X.
        last_store: event of the end of a layer's stores so far, or None.
        recorder: told of everything that runs.
        workspace_bytes: bound on the scores that exist at once.
        results_bytes: bound on the partial results of a layer that exist at once.
        host: the lane on which the host attends, or None.
    """

    def __init__(
        self,
        backend: Backend,
        loader: Loader,
        store: PageStore,
        widths: Mapping[int, LayerWidths],
        rebuild: Rebuild,
        last_store: Callable[[int], Event | None],
        recorder: Recorder,
        workspace_bytes: int,
        results_bytes: int,
        host: HostLane | None = None,
    ) -> None:
        self._backend = backend
        self._loader = loader
        self._store = store
        self._widths = widths
        self._rebuild = rebuild
        self._last_store = last_store
        self._recorder = recorder
        self._workspace_bytes = workspace_bytes
        self._results_bytes = results_bytes
        self._host = host
        self._step = -1
        self._source: StepProgram | None = None
        self._load_events: Mapping[int, Event] = {}
        self._positions: WeakKeyDictionary[Granule, Tensor] = WeakKeyDictionary()
        self._rebuilt: Rebuilt | None = None
        self._compute_since: object = None
        self._results = Results()

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
        self._source = now
        self._load_events = self._loader.begin_step(self._step, now, after)
        self._recorder.note_program(now.program)
        self._compute_since = self._begin()
        self._loader.start_loads()

    def run_layer(self, layer: int, work: LayerWork) -> Tensor:
        """Run a layer's operations on the compute lane; return the output ``[B, H, G, D]``.

        Args:
            layer: index of the layer.
            work: its queries, and what it does besides.
        """
        assert self._source is not None
        source = self._source
        attention = LayerAttention(
            work.query,
            source.entries,
            source.table,
            work.scoring,
            self._workspace_bytes,
            self._results_bytes,
            self._results,
            work.into,
            is_prompt=work.is_prompt,
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
        work.store()
        self._compute_since = self._begin()
        self._loader.layer_done(layer)
        return attention.output()

    def _begin_host(self, layer: int, work: LayerWork) -> None:
        """Hand the layer's queries to the host, where it attends to some of the cache."""
        assert self._source is not None
        source = self._source
        if source.host is None or layer not in self._widths:
            return
        assert self._host is not None
        stored = self._last_store(layer)
        event = self._host.begin(layer, work.query, source.host, work.scoring, stored)
        for operation in source.program.host[layer]:
            self._recorder.note(self._step, operation, event)

    def _wait_for_load(self, index: int) -> None:
        """Let compute wait for a load of this step (other compute comes before it anyway)."""
        assert self._source is not None
        load = self._source.program.operations[index]
        if load.lane in (Lane.COMPUTE, Lane.HOST_ATTEND):
            return
        event = self._load_events.get(load.load_number)
        if event is None:
            raise RuntimeError(
                f"load {load.load_number} of layer {load.layer} was needed before it was started; "
                f"{self._source.program.ring_slots} staging slots are too few for this program"
            )
        self._backend.wait(event)

    def _begin(self) -> object:
        """Note the start of a piece of compute, if it is recorded."""
        return self._backend.begin_compute() if self._recorder.enabled else None

    def _finish(self, operation: Operation, start: object) -> None:
        """Note the end of an operation, if it is recorded or if loads wait for it."""
        assert self._source is not None
        if self._recorder.enabled:
            event = self._backend.end_compute(start)
            self._recorder.note(self._step, operation, event)
            self._loader.note_done(operation, event)
        elif operation.kind is Kind.MERGE and not self._source.program.lookahead:
            self._loader.note_done(operation, self._backend.mark())

    def _run(self, operation: Operation, work: LayerWork, attention: LayerAttention) -> None:
        if operation.kind is Kind.REBUILD:
            self._rebuild_granule(operation, attention)
        elif operation.kind is Kind.ATTEND:
            self._attend_granule(operation, attention)
        elif operation.kind is Kind.ATTEND_NEW:
            work.attend_new(attention)
        elif operation.kind is Kind.MERGE:
            if self._host is not None and operation.waits_for:
                attention.add_host(self._host.result(work.query.shape))
            attention.merge()

    def _rebuild_granule(self, operation: Operation, attention: LayerAttention) -> None:
        assert self._source is not None
        granule = self._source.granules[operation.granule]
        (activations,) = self._loader.staged(operation)
        self._rebuilt = self._rebuild(
            operation.layer,
            activations,
            self._positions_of(granule),
            rotated=not attention.by_kernels,
        )
        self._loader.give_back(operation)

    def _positions_of(self, granule: Granule) -> Tensor:
        """Return the positions of a granule's tokens; gathered once, for all layers and steps."""
        positions = self._positions.get(granule)
        if positions is None:
            positions = self._store.positions.index_select(0, granule.page_index)
            self._positions[granule] = positions
        return positions

    def _attend_granule(self, operation: Operation, attention: LayerAttention) -> None:
        assert self._source is not None
        granule = self._source.granules[operation.granule]
        if granule.kind is PageKind.ACTIVATIONS:
            assert self._rebuilt is not None
            # Let go of before the next ones are made: only one granule's exist at once.
            (key, value, rotation), self._rebuilt = self._rebuilt, None
            attention.attend_granule(granule, key, value, rotation=rotation)
        elif granule.kind is PageKind.KV:
            key, value = self._loader.staged(operation)
            attention.attend_granule(granule, key, value)
            self._loader.give_back(operation)
        else:
            self._attend_resident(granule, operation.layer, attention)

    def _attend_resident(self, granule: Granule, layer: int, attention: LayerAttention) -> None:
        pool = self._store.pool(granule.kind, layer) if attention.from_pool else None
        key, value = pool or self._store.gather(granule.kind, layer, granule.pages)
        attention.attend_granule(granule, key, value, in_pool=pool is not None)

    def end_step(self) -> None:
        """Note the rest of the step, which belongs to no attention layer: the head."""
        assert self._source is not None
        self._finish(self._source.program.operations[-1], self._compute_since)
        if self._host is not None:
            self._host.check()
        self._loader.leave_weights()
