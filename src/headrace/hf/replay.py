"""A decode forward without its Python: what a model runs between its attentions, as CUDA graphs.

On a GPU a decode step's dense work takes the host longer to launch than the device to do, and more
so where others use the host's cores. Since the model hands every attention to us, the kernels
between two of them can be recorded in one forward, and launched by one call each ever after.
Attention itself stays as it is: it changes from step to step.

Shape suffixes: B rows, H key/value heads, G query heads per key/value head, D head width, V
vocabulary.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.hf.attachment import DecodeLayer
from headrace.model.cost import feed_forward_width
from headrace.model.shape import ModelShape
from headrace.runtime.attention import Scoring

SWITCH = "HEADRACE_GRAPHS"
"""Environment variable; ``off`` leaves forwards as they are."""

_BEFORE = 2
"""Forwards of so many rows come before theirs is recorded."""

MOST_KEPT = 4
"""Numbers of rows whose forwards are kept, at the most."""

KEPT_ROWS = 2
"""All of them together are of at most so many times as many rows as there may be."""

_PASSING = 4
"""Tensors of a layer's inner width, and of the model's, that exist at once."""

_LOGIT_BYTES = 4

_TOLERANCE = 4
"""Allowed difference from the model's own forward, in units of the element type's precision."""

AttendInto = Callable[[int, Tensor, Tensor, Tensor, Scoring, Tensor], None]
"""Does the same as a ``DecodeLayer``, and writes the output where the last argument says."""

RunModel = Callable[[Tensor, Tensor, DecodeLayer], Tensor]
"""(ids ``[B, 1]``, positions ``[B, 1]``, what attends) to logits ``[B, 1, V]``."""


def replay_bytes(shape: ModelShape, rows: int) -> int:
    """Return about the most device memory that recorded forwards of up to so many rows take.

    Each keeps the queries, keys and values of its layers, and its logits, ``KEPT_ROWS`` times those
    of all rows together; in one pool, all of them have what passes through a layer.

    Args:
        shape: the model.
        rows: the most rows.
    """
    per_row = sum((one.num_heads + 2 * one.num_kv_heads) * one.head_dim for one in shape.layers)
    inner = max(_PASSING * shape.d_ff, feed_forward_width(shape))
    passing = _PASSING * shape.d_model + inner
    logits = shape.vocab_size * _LOGIT_BYTES
    return rows * (KEPT_ROWS * (per_row * shape.dtype_bytes + logits) + passing * shape.dtype_bytes)


class Graph(Protocol):
    """Kernels that were recorded."""

    def capture_begin(self) -> None:
        """Record from here on instead of running."""

    def capture_end(self) -> None:
        """Record no longer."""

    def replay(self) -> None:
        """Run what was recorded."""


class NotReplayableError(Exception):
    """A model's forward does not come out the same when it is replayed."""


@dataclass(frozen=True)
class _Call:
    """A layer's attention: what it was called with, and where its output belongs."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scoring: Scoring
    output: Tensor


class RecordedForward:
    """The forward of so many rows, one token each.

    Args:
        run: runs the model.
        rows: B.
        device: the model's.
        new_graph: makes an empty graph.

    Raises:
        NotReplayableError: it does not do the same at other tokens and positions.
        RuntimeError: it cannot be recorded, for it waits for the device or takes too much memory.
    """

    def __init__(
        self, run: RunModel, rows: int, device: torch.device, new_graph: Callable[[], Graph]
    ) -> None:
        self._inputs = torch.zeros((2, rows, 1), dtype=torch.int64, device=device)
        self._new_graph = new_graph
        self._graphs: list[Graph] = []
        self._calls: list[_Call] = []
        self._open: Graph | None = None
        self._outputs: dict[tuple[int, ...], Tensor] = {}
        self._begin()
        try:
            self._logits = run(self._inputs[0], self._inputs[1], self._note)
        except BaseException:
            self._abandon()
            raise
        self._end()

    def _begin(self) -> None:
        graph = self._new_graph()
        graph.capture_begin()
        self._open = graph

    def _end(self) -> None:
        graph, self._open = self._open, None
        assert graph is not None
        graph.capture_end()
        self._graphs.append(graph)

    def _abandon(self) -> None:
        """End what is being recorded, whatever became of it."""
        graph, self._open = self._open, None
        if graph is not None:
            try:
                graph.capture_end()
            except RuntimeError:
                return

    def _note(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Note a layer's attention, and begin to record what comes after it."""
        self._end()
        rows, heads, q_len, _ = query.shape
        shape = (rows, q_len, heads, value.shape[3])
        # A layer's output has been read when the next one's is written: one place serves them all.
        output = self._outputs.get(shape)
        if output is None:
            output = self._outputs[shape] = torch.zeros(
                shape, dtype=query.dtype, device=query.device
            )
        self._calls.append(_Call(layer, query, key, value, scoring, output))
        self._begin()
        return output

    def run(self, tokens: Sequence[int], positions: Sequence[int], attend: AttendInto) -> Tensor:
        """Run it.

        Args:
            tokens: B token ids.
            positions: their positions.
            attend: what attends, and writes each layer's output.

        Returns:
            Logits ``[B, 1, V]``, which the next run overwrites.
        """
        self._inputs.copy_(torch.tensor([tokens, positions])[:, :, None])
        for graph, call in zip(self._graphs, self._calls, strict=False):
            graph.replay()
            attend(call.layer, call.query, call.key, call.value, call.scoring, call.output)
        self._graphs[-1].replay()
        return self._logits

    def check(self, run: RunModel) -> None:
        """Compare with the model at other tokens and positions.

        Attention is replaced by something that needs no cache.

        Raises:
            NotReplayableError: the logits differ.
        """
        rows = self._inputs.shape[1]
        tokens, positions = list(range(1, rows + 1)), list(range(7, rows + 7))
        inputs = torch.tensor([tokens, positions])[:, :, None].to(self._inputs.device)
        expected = run(inputs[0], inputs[1], _stand_in).float()
        found = self.run(tokens, positions, _stand_in_into)
        allowed = _TOLERANCE * torch.finfo(found.dtype).eps * float(expected.abs().max())
        error = float((found.float() - expected).abs().max())
        if not error <= allowed:
            raise NotReplayableError(
                f"its logits differ by {error:.2g} where {allowed:.2g} is allowed"
            )


def _stand_in(layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """Return something that depends on everything that attention is called with."""
    rows, _, q_len, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, q_len, width)
    mixed = grouped * scoring.scale + key[:, :, None] + value[:, :, None]
    return mixed.reshape(query.shape).transpose(1, 2)


def _stand_in_into(
    layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, output: Tensor
) -> None:
    output.copy_(_stand_in(layer, query, key, value, scoring))


class Replays:
    """The recorded forwards of a model, by their number of rows.

    Args:
        run: runs the model.
        device: its device.
        most_rows: rows that there may be.
        reason: why nothing is to be recorded, or None.
        new_graph: makes an empty graph; None: CUDA's, on a GPU.

    Attributes:
        reason: why nothing is recorded, in one line, or None.
    """

    def __init__(
        self,
        run: RunModel,
        device: torch.device,
        most_rows: int,
        reason: str | None = None,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        self.reason = reason or (_reason_without(device) if new_graph is None else None)
        self._new_graph = new_graph or self._cuda_graph
        self._run = run
        self._device = device
        self._most_rows = most_rows
        self._seen: Counter[int] = Counter()
        self._kept: OrderedDict[int, RecordedForward] = OrderedDict()
        self._pool: Any = None

    def of_rows(self, rows: int) -> RecordedForward | None:
        """Return the forward of so many rows, recorded now if it is time to; None: run the model.

        Args:
            rows: B.
        """
        known = self._kept.get(rows)
        if known is not None:
            self._kept.move_to_end(rows)
            return known
        self._seen[rows] += 1
        if self.reason is not None or self._seen[rows] < _BEFORE:
            return None
        self._make_room(rows)
        try:
            made = self._record(rows)
        except (NotReplayableError, RuntimeError) as error:
            self.reason = f"it cannot be replayed: {error}".splitlines()[0]
            self._kept.clear()
            return None
        self._kept[rows] = made
        return made

    def _make_room(self, rows: int) -> None:
        """Forget the forwards that were used longest ago, for one of so many rows."""
        most = KEPT_ROWS * max(rows, self._most_rows)
        while self._kept and (len(self._kept) >= MOST_KEPT or sum(self._kept) + rows > most):
            forgotten, _ = self._kept.popitem(last=False)
            self._seen[forgotten] = 0

    def _record(self, rows: int) -> RecordedForward:
        """Record the forward of so many rows, and check it."""
        with _beside(self._device):
            # Once as it is, so that what libraries set up at first use is there.
            inputs = torch.zeros((2, rows, 1), dtype=torch.int64, device=self._device)
            self._run(inputs[0], inputs[1], _stand_in)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            made = RecordedForward(self._run, rows, self._device, self._new_graph)
            made.check(self._run)
        return made

    def _cuda_graph(self) -> Graph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return _CudaGraph(self._pool)


class _CudaGraph:
    """A CUDA graph whose memory is one pool's, with those that run before and after it."""

    def __init__(self, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture_begin(self) -> None:
        # Other threads may call the driver meanwhile: those that load, and the host's lane.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def capture_end(self) -> None:
        self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Work on another stream than that on which all else runs, which cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    here, beside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        yield
    here.wait_stream(beside)


def _reason_without(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "the model is not on a GPU"
    return f"{SWITCH} is off" if os.environ.get(SWITCH) == "off" else None
