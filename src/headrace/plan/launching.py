"""What launching a step takes the one thread that does it.

A GPU is told what to do kernel by kernel, copy by copy. That takes a thread of the host about as
long for little work as for much, so that a step of little work is as long as its launching. With
S granules of streamed K/V, X of activations and R of what stays on the device, and the cores at
work in C of M turns of layers (layers × batches), it takes

    k · (step + M · layer + S · stream + X · rebuild + R · attend + C · host)

where the figures are those of the profile (``launch_layer_s`` and so on; ``attend_call_s``), and k
is ``launch_while_attend`` where the cores attend, else 1. Where weights are streamed a forward
cannot be replayed, and a layer takes ``launch_plain_layer_s``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.model.shape import LayerGroup
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind, Operation
from headrace.plan.policies import Split
from headrace.plan.step_work import StepWork
from headrace.timeline import Lane

_NOTHING = 1e-9
"""Shares below it are none: those of a cache that runs are sums that were rounded."""


@dataclass(frozen=True)
class GroupGranules:
    """The granules of a step in the layers of one group.

    Attributes:
        group: the layers.
        streams: of K/V that are loaded.
        rebuilds: of X.
        kept: of K/V that stay on the device.
        rebuilt_tokens: of one granule of X.
    """

    group: LayerGroup
    streams: float = 0.0
    rebuilds: float = 0.0
    kept: float = 0.0
    rebuilt_tokens: float = 0.0


def granules_of(
    work: StepWork, geometry: Geometry, splits: Sequence[Split]
) -> Iterator[GroupGranules]:
    """Yield about how many granules a step has: at least one a layer of what there is.

    Args:
        work: the step.
        geometry: how the cache is cut.
        splits: how the tokens of each group of layers are divided.
    """
    pages = work.paged_tokens / geometry.block_tokens / work.batches
    for group, split in zip(work.shape.groups, splits, strict=True):
        turns = group.layers * work.batches
        streams = rebuilds = tokens = 0.0
        if not pages:
            yield GroupGranules(group)
            continue
        if split.stream > _NOTHING:
            most = geometry.pages_per_granule(kv_bytes_per_token(group.shape))
            streams = turns * max(1.0, split.stream * pages / most)
        if split.recompute > _NOTHING:
            most = geometry.rebuilt_pages_per_granule(activation_bytes_per_token(group.shape))
            count = max(1.0, split.recompute * pages / most)
            tokens = split.recompute * pages / count * geometry.block_tokens
            rebuilds = turns * count
        yield GroupGranules(
            group, streams, rebuilds, turns if split.resident > _NOTHING else 0.0, tokens
        )


class Launching:
    """What the thread that launches takes; nothing where that was not measured.

    Args:
        profile: the machine.
    """

    def __init__(self, profile: HardwareProfile) -> None:
        self.measured = profile.device == "cuda" and profile.launch_layer_s is not None
        """Whether it is known. On a CPU a call is part of its work."""
        self._step_s = profile.launch_step_s or 0.0
        self._layer_s = profile.launch_layer_s or 0.0
        self._plain_layer_s = profile.launch_plain_layer_s or self._layer_s
        self._stream_s = profile.launch_stream_s or 0.0
        self._attend_s = profile.attend_call_s or 0.0
        # Rebuilt pages are attended to as well.
        self._rebuild_s = max(self._attend_s, profile.launch_rebuild_s or 0.0)
        self._host_s = profile.launch_host_s or 0.0
        self._while_attend = max(1.0, profile.launch_while_attend or 1.0)

    def step_s(
        self,
        work: StepWork,
        geometry: Geometry,
        splits: Sequence[Split],
        *,
        streams_weights: bool = False,
    ) -> float:
        """Return the seconds of a step (see the module).

        Args:
            work: the step.
            geometry: how the cache is cut.
            splits: how the tokens of each group of layers are divided.
            streams_weights: whether some weights are streamed.
        """
        on_device = not work.paged or all(split.resident >= 1.0 - _NOTHING for split in splits)
        if not self.measured or (on_device and not streams_weights):
            # A step of the short way has its launching in the rate of its dense work. One of rows
            # that are shorter than a page is taken for such a step.
            return 0.0
        layer_s = self._plain_layer_s if streams_weights else self._layer_s
        seconds = self._step_s + work.shape.num_layers * work.batches * layer_s
        for found, split in zip(granules_of(work, geometry, splits), splits, strict=True):
            seconds += found.streams * self._stream_s + found.rebuilds * self._rebuild_s
            seconds += found.kept * self._attend_s
            if split.host > _NOTHING and work.paged:
                seconds += found.group.layers * work.batches * self._host_s
        return seconds * self._slowed(
            work.paged > 0 and any(split.host > _NOTHING for split in splits)
        )

    def launched_s(self, operations: Sequence[Operation]) -> list[float]:
        """Return, for each operation of a step, how long after its beginning it can be launched.

        Those before it in the program are launched first, with the loads that they make room for.
        """
        if not self.measured:
            return [0.0] * len(operations)
        slowed = self._slowed(any(op.lane is Lane.HOST_ATTEND for op in operations))
        streams_weights = any(op.kind is Kind.LOAD_WEIGHTS and op.link_bytes for op in operations)
        layer_s = self._plain_layer_s if streams_weights else self._layer_s
        takes = [slowed * self._of(op, layer_s) for op in operations]
        if any(takes):
            takes[0] += slowed * self._step_s
        return list(accumulate(takes))

    def _slowed(self, hosts: bool) -> float:
        return self._while_attend if hosts else 1.0

    def _of(self, op: Operation, layer_s: float) -> float:
        """Return the seconds of one operation; a layer's own are with its newest tokens."""
        if op.is_short:
            return 0.0
        if op.kind is Kind.ATTEND_NEW:
            return layer_s
        if op.kind is Kind.ATTEND:
            return self._stream_s if op.load_number >= 0 else self._attend_s
        if op.kind is Kind.REBUILD:
            return self._rebuild_s - self._attend_s
        return self._host_s if op.kind is Kind.HOST_ATTEND else 0.0


def total(found: Iterable[GroupGranules]) -> tuple[float, float]:
    """Return the granules of all groups: of streamed K/V, and of X."""
    all_of_them = list(found)
    return sum(one.streams for one in all_of_them), sum(one.rebuilds for one in all_of_them)
