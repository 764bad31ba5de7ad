"""What a step's kernels take on the device, kind by kind, as linear expressions of the split."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.hardware.profile import HardwareProfile
from headrace.model.cost import (
    activation_bytes_per_token,
    attention_flops,
    head_dense_flops,
    head_weight_bytes,
    kv_bytes_per_token,
    layer_dense_flops,
    layer_read_bytes,
    rebuild_flops_per_token,
)
from headrace.model.shape import LayerGroup, ModelShape
from headrace.plan.resources import Rate, Term
from headrace.plan.step_work import StepWork

PARTIAL_BYTES = 4
"""Partial results are float32."""


def mail_bytes(shape: ModelShape) -> int:
    """Return the bytes of a row's queries for the host in one layer, and of its partial result.

    That is an output, a maximum and a sum for each head.
    """
    queries = shape.dtype_bytes * shape.num_heads * shape.head_dim
    return queries + PARTIAL_BYTES * shape.num_heads * (shape.head_dim + 2)


class DeviceTime:
    """The seconds of a step's kernels. Each takes FLOPs / rate or bytes / rate, the longer one.

    Args:
        work: the step.
        profile: the machine.
        resident: whether all of the cache is on the device.
    """

    def __init__(self, work: StepWork, profile: HardwareProfile, *, resident: bool = False) -> None:
        self._work = work
        self._profile = profile
        self._gemm_flops_per_s = profile.gemm_rate(work.shape.dtype)
        # Of dense kernels there are as many as passes, each over a part of the rows.
        self._rows = work.rows / work.passes
        self._dense_bytes_per_s = profile.dense_rate(self._rows, resident=resident)
        self._attend_bytes_per_s = profile.resident_attend_rate if resident else profile.attend_rate

    def everything(self, paths: tuple[str, ...]) -> Iterator[Term]:
        """Yield all of the device's work where some paths may be taken."""
        yield from self.dense()
        yield from self.new_tokens()
        yield from self.merges(self._work.rows)
        yield from self.cached(paths)
        if "host" in paths:
            yield from self.mails(self._work.rows)

    def cached(self, paths: tuple[str, ...]) -> Iterator[Term]:
        """Yield what the tokens in pages take: attending, and rebuilding on that path."""
        for path in ("resident", "stream", "recompute"):
            if path not in paths:
                continue
            for name, group, tokens in self._work.columns(path):
                yield self._attend(name, tokens, group.shape)
                if path == "recompute":
                    yield self._rebuild(name, tokens, group.shape)

    def alone(self) -> Iterator[Term]:
        """Yield the work that the host's attention cannot overlap with: Q seconds.

        The host attends between a layer's dense work, which makes the queries, and its merge: never
        during dense work, the head, the last merges, and what windowed layers attend to; nor while
        the device writes queries and reads results.
        """
        yield from self.dense()
        yield from self.new_tokens(windowed=True)
        yield from self.merges(self._work.rows, windowed=True)
        yield from self.merges(self._work.rows_merged_last, windowed=False)
        yield from self.mails(self._work.rows_merged_last)

    def mails(self, rows: float) -> Iterator[Term]:
        """Yield the queries of so many rows that go to the host's cores, and their results.

        They are as many however few tokens the cores attend to. It is the device's work where its
        own kernels write and read them, as was measured; else they travel beside it.
        """
        if self._profile.mail_bytes_per_s is None or not self._work.paged:
            return
        for group in self._groups(windowed=False):
            size_bytes = group.layers * rows * mail_bytes(group.shape)
            yield Term("", Rate.LINK, size_bytes / self._profile.mail_rate)

    def unhidden(self) -> Iterator[Term]:
        """Yield the work during which the paper's schedule brings nothing: U seconds.

        A layer's loads wait for the merge of the layer above, and that for attention to the newest
        tokens, which comes last. Windowed layers have no loads, and the head neither.
        """
        yield from self.dense_layers(windowed=True)
        yield self._head(1)
        yield from self.new_tokens()
        yield from self.merges(self._work.rows)

    def dense(self) -> Iterator[Term]:
        """Yield the dense work of all layers and of the head, D."""
        yield from self.dense_layers(windowed=False)
        yield from self.dense_layers(windowed=True)
        yield from self.head()
        if self._work.communication_s:
            yield Term("", Rate.DEVICE_MEMORY, self._work.communication_s)

    def dense_layers(self, *, windowed: bool) -> Iterator[Term]:
        """Yield the dense work of the windowed layers, or of the others."""
        for group in self._groups(windowed):
            yield self._kernel(
                "",
                group.layers * self._work.passes,
                layer_dense_flops(group.shape, 1) * self._rows,
                layer_read_bytes(group.shape, self._rows),
                self._gemm_flops_per_s,
                self._dense_bytes_per_s,
            )

    def head(self) -> Iterator[Term]:
        """Yield the head's work."""
        yield self._head(self._work.passes)

    def new_tokens(self, *, windowed: bool | None = None) -> Iterator[Term]:
        """Yield attention to what is on the device anyway: in windowed layers, others, or all."""
        work = self._work
        for group in self._groups(windowed):
            on_device = work.window if group.windowed else work.context - work.paged
            tokens = group.layers * work.rows * (1 + on_device)
            yield self._attend("", tokens, group.shape)

    def merges(self, rows: float, *, windowed: bool | None = None) -> Iterator[Term]:
        """Yield the merges of so many rows: in windowed layers, others, or all."""
        for group in self._groups(windowed):
            width = group.shape.num_heads * group.shape.head_dim
            size_bytes = group.layers * 2 * PARTIAL_BYTES * rows * width
            yield Term("", Rate.DEVICE_MEMORY, size_bytes / self._profile.device_bytes_per_s)

    def rebuilt_token_s(self, shape: ModelShape) -> float:
        """Return the seconds of rebuilding a layer's token and attending to it."""
        return self.rebuild_s(shape) + self._attend("", 1, shape).seconds

    def rebuild_s(self, shape: ModelShape) -> float:
        """Return the seconds of rebuilding a layer's token."""
        return self._rebuild("", 1, shape).seconds

    def _groups(self, windowed: bool | None) -> Iterator[LayerGroup]:
        for group in self._work.shape.all_groups:
            if windowed is None or group.windowed is windowed:
                yield group

    def _head(self, passes: int) -> Term:
        shape = self._work.shape
        return self._kernel(
            "",
            passes,
            head_dense_flops(shape, 1) * self._rows,
            head_weight_bytes(shape),
            self._gemm_flops_per_s,
            self._dense_bytes_per_s,
        )

    def _attend(self, name: str, tokens: float, shape: ModelShape) -> Term:
        return self._kernel(
            name,
            tokens,
            attention_flops(shape, 1, 1),
            kv_bytes_per_token(shape),
            self._gemm_flops_per_s,
            self._attend_bytes_per_s,
        )

    def _rebuild(self, name: str, tokens: float, shape: ModelShape) -> Term:
        return self._kernel(
            name,
            tokens,
            rebuild_flops_per_token(shape),
            kv_bytes_per_token(shape) + activation_bytes_per_token(shape),
            self._profile.rebuild_rate(shape.dtype),
            self._profile.device_bytes_per_s,
        )

    @staticmethod
    def _kernel(
        name: str,
        times: float,
        flops: float,
        size_bytes: float,
        flops_per_s: float,
        bytes_per_s: float,
    ) -> Term:
        """Return the seconds of so many kernels, and which rate they are bounded by."""
        compute_s, memory_s = flops / flops_per_s, size_bytes / bytes_per_s
        if compute_s > memory_s:
            return Term(name, Rate.ARITHMETIC, times * compute_s)
        return Term(name, Rate.DEVICE_MEMORY, times * memory_s)
