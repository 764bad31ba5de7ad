"""A batch's whole cache: pages on the host and on the device, the tail, the windows.

This is where a step is put together: places for the new tokens, and the program. What a layer does
in it is in ``layer_work``.

Shape suffixes: B rows, H key/value heads, q inputs of the step, D head width, M model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headrace.plan.memory import STORE_SLOTS
from headrace.plan.operations import Program
from headrace.plan.policies import Split
from headrace.runtime.attention import Scoring, ungroup_output
from headrace.runtime.capacity import Capacity
from headrace.runtime.conveyor import Conveyor, Rebuild
from headrace.runtime.flat import FlatCache
from headrace.runtime.host_entries import RowEntries
from headrace.runtime.host_lane import HostLane
from headrace.runtime.host_pages import StoreKernel, row_entries
from headrace.runtime.lanes import Backend, Busy, Event
from headrace.runtime.layer_work import WorkMaker
from headrace.runtime.layout import Layout
from headrace.runtime.loader import Loader
from headrace.runtime.moves import StepIndex, index_moves
from headrace.runtime.pages import HOST_KINDS, Page, PageKind, Row
from headrace.runtime.placer import Placer
from headrace.runtime.programs import ProgramMaker
from headrace.runtime.promotion import Promoter
from headrace.runtime.recorder import Recorder
from headrace.runtime.settings import CacheSettings
from headrace.runtime.staging import StagingRing, StoreRing
from headrace.runtime.step import Step, hidden_places
from headrace.runtime.store import PageStore
from headrace.runtime.tail import Tail
from headrace.runtime.weights import StreamedWeights
from headrace.runtime.windows import Windows
from headrace.runtime.writer import Writer
from headrace.timeline import Lane


class PagedCache:
    """The cache of a batch of rows.

    Args:
        backend: device and link.
        settings: how it is laid out.
        rebuild: makes keys and values of a layer from X.
        rows: sequences in the batch, to begin with and as there is room for on the device.
        prompt_len: tokens of the longest prompt, for which everything is allocated now.
        new_tokens: tokens a row that follow one by one, for which too.
        weights: the model's streamed weights, or None.

    Raises:
        MemoryBudgetError: the host memory does not suffice.
    """

    def __init__(
        self,
        backend: Backend,
        settings: CacheSettings,
        rebuild: Rebuild,
        rows: int,
        prompt_len: int,
        new_tokens: int,
        weights: StreamedWeights | None = None,
    ) -> None:
        self.recorder = Recorder()
        self._backend = backend
        self._block = settings.geometry.block_tokens
        widths = dict(settings.paged_widths)
        self._layout = Layout(self._block, settings.split, settings.resident_pages)
        self._layout.start(rows)
        self._placer = Placer(self._layout)
        self._store = PageStore(backend, widths, settings.dtype, self._block)
        self.capacity = Capacity(self._layout.pools, self._store, settings)
        """Its room for pages."""
        self._tail = Tail(backend, widths, rows, self._block, settings.dtype)
        self._windows = Windows(backend, settings.windows, rows, settings.dtype)
        self._flat: FlatCache | None = None
        if settings.all_resident:
            places = prompt_len + new_tokens
            self._flat = FlatCache(
                *(backend, settings.widths, rows, places, settings.dtype),
                workspace_bytes=settings.workspace_bytes,
                results_bytes=settings.results_bytes,
            )
        self._ring = StagingRing(
            backend,
            settings.geometry.ring_slots,
            settings.slot_elements,
            settings.dtype,
            settings.poison,
        )
        self._store_ring = StoreRing(backend, STORE_SLOTS, settings.slot_elements, settings.dtype)
        self._writer = Writer(
            backend, self._store, self._store_ring, widths, self._block, self._note_store
        )
        self._works = WorkMaker(
            self._tail, self._windows, self._flat, self._writer, settings.workspace_bytes
        )
        self._host: HostLane | None = None
        self.host_note: str | None = None
        """Why the host attends without the native kernel, if it does."""
        if settings.host_share > 0:
            self._open_host()
        self._loader = Loader(
            backend,
            self._store,
            self._ring,
            widths,
            self._writer.last_store,
            self.recorder,
            weights,
        )
        self._conveyor = Conveyor(
            backend,
            self._loader,
            self._store,
            widths,
            rebuild,
            self._writer.last_store,
            self.recorder,
            settings.workspace_bytes,
            settings.results_bytes,
            self._host,
        )
        self._promoter = Promoter(
            backend,
            self._store,
            self._ring,
            self._writer,
            widths,
            rebuild,
            settings.pages_at_once(PageKind.ACTIVATIONS),
        )
        self._programs = ProgramMaker(
            settings,
            self._layout,
            backend.device,
            self._host_entries,
            () if weights is None else weights.layer_bytes,
        )
        self._now: Step | None = None
        self.decodes_flat = False
        """Whether the step under way is one that ``decode_flat`` serves."""
        self._takes_flat = self._flat is not None and not self._windows and weights is None
        self._decoded: Program | None = None
        try:
            self.capacity.reserve(self._placer.pages_expected(prompt_len, new_tokens))
        except BaseException:
            self.release()
            raise

    def _open_host(self) -> HostLane:
        kernel = StoreKernel(self._store)
        self.host_note = kernel.reason
        self._host = HostLane(self._backend, kernel)
        return self._host

    # What it holds

    @property
    def rows(self) -> int:
        """Sequences in the batch."""
        return len(self._layout.rows)

    @property
    def layout(self) -> Layout:
        """Where each token is."""
        return self._layout

    @property
    def host_bytes(self) -> int:
        """Host memory of all pools."""
        return self._store.host_bytes

    @property
    def device_bytes(self) -> int:
        """Device memory of staging, tail, windows and resident pages."""
        buffers = self._ring.size_bytes + self._store_ring.size_bytes + self._tail.size_bytes
        flat = 0 if self._flat is None else self._flat.size_bytes
        return buffers + self._windows.size_bytes + flat + self._store.device_bytes

    @property
    def growths(self) -> int:
        """How often a pool has been allocated or enlarged."""
        return self._store.growths

    def decode_program(self, rows: range | None = None) -> Program:
        """Return the program of a decode step over the cache as it is, for all rows or some.

        Where all rows have ended, it is that of those that there were last.
        """
        if rows is None and not self.rows and self._decoded is not None:
            return self._decoded
        rows = range(self.rows) if rows is None else rows
        return self._programs.program(rows, 1, self._device_tokens(rows)).program

    def _device_tokens(self, rows: range) -> int:
        """Return how many cached tokens of some rows are on the device besides pages."""
        some = self._layout.of(rows)
        return sum(row.length if self._flat is not None else len(row.tail) for row in some)

    def _host_entries(self, uses: Sequence[tuple[Page, int]], rows: Sequence[Row]) -> RowEntries:
        return row_entries(uses, rows, self._block)

    # A step

    def begin_step(
        self,
        new: Sequence[Sequence[int]],
        q_len: int,
        first_column: int | Sequence[int],
        position_Bq: Tensor,
        rows: range | None = None,
        next_rows: range | None = None,
        next_inputs: int = 1,
    ) -> None:
        """Place the step's tokens, for which there must be room, and start its loads.

        Args:
            new: for each row, the indices among the step's inputs that are tokens (not padding).
            q_len: inputs of the step.
            first_column: column of the step's first input: of the padded batch, or one for each
                row.
            position_Bq: int64, on the device; the position of each input, for rotary embedding.
            rows: the rows that take part; None: all. All of B are these, here and in ``attend``.
            next_rows: the rows that will probably take part in the step after this one; None: the
                same; empty: nothing is to be loaded ahead.
            next_inputs: that step's inputs of each row.
        """
        rows = range(self.rows) if rows is None else rows
        if q_len == 1 and self._attends_flat:
            self._begin_flat(new, first_column, rows)
            return
        some = self._layout.of(rows)
        fresh = not any(row.length for row in some)
        tails, costed = self._noted_tokens(rows), self.recorder.notes_programs
        hidden = [hidden_places(row) for row in some]
        cut = self._programs.cut(rows, q_len)
        program = self._programs.program(rows, q_len, tails, costed=costed)
        moves = self._placer.append(new, first_column, rows)
        if moves.fills:
            program = self._programs.program_with_stores(
                rows, q_len, tails, moves, cut, costed=costed
            )
        index = index_moves(
            moves, q_len, self._block, self._writer.pages_at_once, self._backend.device
        )
        self._now = Step.of(rows, moves, index, hidden, first_column, fresh, self._block)
        self._note_positions(index, position_Bq)
        self._windows.begin_step(self._now.column_Bq, moves.new, first_column, rows)
        if self._flat is not None:
            seen = [row.hidden for row in some]
            self._flat.begin_step(index.token_Bq, moves.new, moves.first_token, seen, rows)
        after = rows if next_rows is None else next_rows
        later = None
        if after:
            noted = self._noted_tokens(after)
            later = self._programs.program(after, next_inputs, noted, costed=costed)
        self._conveyor.begin_step(program, later)

    @property
    def _attends_flat(self) -> bool:
        """Whether decoding takes nothing but the layers' own buffers: no lane, no program."""
        return self._takes_flat and not self.recorder.enabled

    def _begin_flat(
        self, new: Sequence[Sequence[int]], first_column: int | Sequence[int], rows: range
    ) -> None:
        moves = self._placer.append(new, first_column, rows)
        hidden = [row.hidden for row in self._layout.of(rows)]
        assert self._flat is not None
        self._flat.begin_decode(moves.new, moves.first_token, hidden, rows)
        self.decodes_flat = True

    def _noted_tokens(self, rows: range) -> int:
        """Return ``_device_tokens`` for a program that is recorded, and 0 for any other.

        It changes nothing that the program does, only what it costs; so one program serves every
        step until pages change.
        """
        return self._device_tokens(rows) if self.recorder.enabled else 0

    def _note_positions(self, index: StepIndex, position_Bq: Tensor) -> None:
        """Keep the positions of tokens whose X is stored: rebuilding needs them."""
        for batch in index.fills:
            if batch.kind is not PageKind.ACTIVATIONS:
                continue
            positions = position_Bq[batch.rows_NT, batch.sources_NT]
            if not any(batch.offsets):
                self._store.positions[batch.page_index] = positions
                continue
            for place, (page, offset, count) in enumerate(
                zip(batch.pages, batch.offsets, batch.counts, strict=True)
            ):
                self._store.positions[page, offset : offset + count] = positions[place, :count]

    def attend(
        self,
        layer: int,
        activations: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        output: Tensor | None = None,
    ) -> Tensor:
        """Attend a layer's queries to all tokens of their rows, and keep the new ones.

        Args:
            layer: index of the layer.
            activations: X of the step's inputs ``[B, q, M]``; needed where X is stored.
            query: ``[B, heads, q, D]``.
            key: ``[B, H, q, D]``, after position embedding.
            value: ``[B, H, q, D]``.
            scoring: scale, soft cap and window.
            output: where the output of a step of one input is best written, contiguous; only
                kernels of our own do so.

        Returns:
            The output ``[B, q, heads, D]``.
        """
        if self.decodes_flat:
            return self.decode_flat(layer, query, key, value, scoring)
        assert self._now is not None
        work = self._works.work(layer, activations, query, key, value, scoring, self._now)
        if output is not None:
            work.into = output.view(work.query.shape)
        return ungroup_output(self._conveyor.run_layer(layer, work), query.shape[2])

    def decode_flat(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Do what ``attend`` does, in a step that ``decodes_flat``."""
        assert self._flat is not None
        return self._flat.decode(layer, query, key, value, scoring)

    def end_step(self) -> None:
        """Say that the model's forward has ended."""
        if self.decodes_flat:
            self.decodes_flat = False
            return
        self._conveyor.end_step()
        self._now = None

    def abandon_step(self) -> None:
        """Say that the model's forward has failed half-way."""
        self.decodes_flat = False
        self._loader.leave_weights()

    def _note_store(self, layer: int, kind: PageKind, event: Event, size_bytes: int) -> None:
        lane = Lane.STORE_KV if kind is PageKind.KV else Lane.STORE_ACTIVATIONS
        self.recorder.note_work(
            self._conveyor.step, lane, lane.value, layer, event, size_bytes=size_bytes
        )

    # Between steps

    def reserve(self, new: Sequence[Sequence[int]], rows: range | None = None) -> None:
        """Make sure that there is room for a step's tokens.

        Args:
            new: for each row, the indices among the step's inputs that are tokens.
            rows: the rows that take part; None: all.

        Raises:
            MemoryBudgetError: the host memory does not suffice; nothing has changed.
        """
        self.capacity.reserve(self._placer.pages_needed(new, rows))

    @property
    def host_share(self) -> float:
        """Share of the keys and values on the host to which the host's cores attend."""
        return self._programs.host_share

    @host_share.setter
    def host_share(self, share: float) -> None:
        """Change it from the next step on; no page moves."""
        if share > 0 and self._host is None:
            self._conveyor.let_host_attend(self._open_host())
        self._programs.host_share = share

    def host_busy(self) -> Busy:
        """Return for how long the host's cores attended in layers that ended since the last call.

        Nobody waits for those that are under way.
        """
        return Busy() if self._host is None else self._host.busy()

    def link_busy(self) -> Busy:
        """Return how long some of the loads took that ended since the last call: see ``Loader``."""
        return self._loader.busy()

    def promote(self, rows: range, most: int) -> int:
        """Bring pages of some rows to the device, as far as its limit allows; return how many.

        Args:
            rows: rows whose prompts are in the cache.
            most: pages.
        """
        on_host = {id(page) for kind in HOST_KINDS for page, _ in self._layout.pages(kind, rows)}
        count = min(most, self._layout.promotable, len(on_host))
        if count <= 0:
            return 0
        self.capacity.reserve({PageKind.RESIDENT: count})
        self._loader.reset()
        for layer, lane, event, size_bytes in self._promoter.bring(
            self._layout.promote(rows, count)
        ):
            self.recorder.note_work(
                self._conveyor.step, lane, "promote", layer, event, size_bytes=size_bytes
            )
        return count

    def show(self, row: int, visible_columns: NDArray[np.bool_]) -> None:
        """Let the attention mask of a row say which of its cached tokens are seen."""
        self._layout.show(row, visible_columns)
        columns = self._layout.rows[row].columns
        self._windows.hide(row, {columns[token] for token in self._layout.rows[row].hidden})

    def select(self, sources: Sequence[int]) -> None:
        """Let row i become what row ``sources[i]`` was; rows that are not named end."""
        if self.rows and not sources:
            self._decoded = self.decode_program()
        self._layout.select(sources)
        self._tail.select(sources)
        if self._flat is not None:
            self._flat.select(sources)
        self._windows.select(sources)

    def add(self, rows: int, split: Split | None = None) -> range:
        """Add empty rows behind the others, for which there must be room; return their numbers.

        Args:
            rows: how many.
            split: shares of their prompts' tokens on each path; None: as is planned.
        """
        first = self.rows
        self._layout.add(rows, split)
        added = range(first, first + rows)
        self._windows.clear(added)
        return added

    def crop(self, columns: int) -> None:
        """Forget every token from this column of the padded batch on."""
        self._windows.crop(columns)
        self._layout.crop(columns)

    def drain(self) -> None:
        """Wait for everything that is under way, and throw away what was loaded ahead."""
        self._loader.reset()
        self._backend.synchronize()

    def release(self) -> None:
        """Let go of all buffers now; nothing else may be called afterwards.

        The parts refer to each other. Left to the garbage collector, tens of gigabytes would be
        freed some time later, in the middle of somebody else's step.
        """
        if self._host is not None:
            self._host.close()
        self._store.release()
        vars(self).clear()
