"""What a machine can do: the figures that planning needs, each with where it comes from.

Rates are per second, sizes in bytes. Nothing here imports torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.errors import ProfileError
from headrace.hardware.identity import MachineIdentity
from headrace.timeline import Origin

DEVICES = ("cpu", "cuda")

_LINK_SHARE = 0.9
"""Most of the host memory's rate that the link takes while the cores read too."""

_LATENCIES = (
    "copy_latency_s",
    "launch_latency_s",
    "attend_call_s",
    "load_call_s",
    "mail_call_s",
    "rebuild_call_s",
    "launch_step_s",
    "launch_layer_s",
    "launch_plain_layer_s",
    "launch_stream_s",
    "launch_rebuild_s",
    "launch_host_s",
)
_DURATIONS = (*_LATENCIES, "host_page_s")

MEASURED_PAGE_TOKENS = 64
"""Tokens of the pages over which the host's attention is measured."""

UNPACED = "unpaced_"
"""So begin measurements of what an emulation then holds this machine back from."""

RatePoint = tuple[int, float]
"""Bytes of one transfer, and the rate in bytes a second that transfers of that size reach."""

RowsPoint = tuple[int, float]
"""Rows of a forward, and the rate in bytes a second at which it then reads the weights."""

_MOST_BEYOND = 4
"""How many times the most rows of a curve it is continued to."""


@dataclass(frozen=True)
class Measurement:
    """One figure, measured several times.

    Attributes:
        median: the middle of the repeats; this is the figure that planning uses.
        minimum: the least of the repeats.
        maximum: the greatest of the repeats.
        repeats: how often it was measured.
    """

    median: float
    minimum: float
    maximum: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Measurement:
        """Return the measurement that ``samples`` (at least one) make."""
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))


@dataclass(frozen=True)
class GemmPoint:
    """The rate of one matrix product of the K/V projections' shape.

    ``[tokens, d_model] @ [d_model, width]`` with ``width`` = 2·d_kv takes
    2·tokens·d_model·width FLOPs.

    Attributes:
        tokens: rows of X.
        d_model: width of X.
        width: width of K and V together, 2·d_kv.
        dtype: element type of both factors.
        flops_per_s: the rate.
    """

    tokens: int
    d_model: int
    width: int
    dtype: str
    flops_per_s: float


@dataclass(frozen=True)
class HardwareProfile:
    """What a machine can do.

    Attributes:
        name: what people call it.
        origin: measured, emulated (measured, but for a link and cores that are slowed down on
            purpose), or predicted (from data sheets).
        device: where the model runs, ``cpu`` or ``cuda``.
        h2d_bytes_per_s: rate of the link to the device, for large transfers from pinned memory.
        d2h_bytes_per_s: rate of the link to the host.
        gemm_flops_per_s: rate of the K/V projections' matrix product, by element type.
        device_bytes_per_s: rate of the device's memory, reads and writes counted.
        host_bytes_per_s: rate at which all cores together read host memory.
        device_memory_bytes: memory of the device.
        host_memory_bytes: memory of the host that may be used.
        copy_latency_s: what each transfer takes besides its bytes.
        launch_latency_s: what each kernel takes besides its work.
        attend_bytes_per_s: rate at which the device's attention reads K/V, or None: see
            ``attend_rate``.
        resident_attend_bytes_per_s: likewise, of contiguous rows, as where all of the cache is on
            the device, or None: see ``resident_attend_rate``.
        dense_bytes_per_s: rate at which decoding reads the weights, or None: see ``dense_rate``.
        dense_curve: the same by rows, ascending. It has in it what a layer takes besides, however
            little it attends to.
        resident_curve: likewise, where all of the cache is on the device and a step goes the short
            way.
        host_attend_bytes_per_s: rate at which the host's attention reads K/V, or None: see
            ``host_attend_rate``.
        host_page_s: what each page of a head takes the host's attention, while H2D is busy, besides
            the bytes in it, or None. Its rates have in them what pages of 64 tokens take.
        mail_bytes_per_s: rate at which the device's kernels write queries for the host's cores and
            read their results, while H2D is busy, or None: see ``mail_rate``.
        mail_call_s: what it takes besides until the cores have begun and the device knows that they
            have ended, however little they attend to, or None: two small copies.
        attend_call_s: what attending to a granule on the device takes, however small it is, or
            None: see ``duration_s``.
        load_call_s: what starting a load takes the thread that launches the device's work, or None.
        rebuild_call_s: what rebuilding a granule takes, however small it is, or None.
        launch_step_s: what a step takes the thread that launches the device's work, besides its
            layers, or None: see ``plan.launching``.
        launch_layer_s: what each layer takes it.
        launch_plain_layer_s: the same where no forward is replayed, but each kernel launched.
        launch_stream_s: more of it, for each granule of K/V that is loaded and attended to.
        launch_rebuild_s: likewise, of X.
        launch_host_s: more of it, for a layer in which the host's cores attend.
        launch_while_attend: how many times as long launching takes while they do.
        rebuild_flops_per_s: rate at which K/V are rebuilt from staged X, layout and norms and
            rotation included, or None: see ``rebuild_rate``.
        h2d_curve: rate by transfer size, ascending by size.
        d2h_curve: the same for the other direction.
        h2d_while_d2h_bytes_per_s: H2D rate while D2H is busy too.
        d2h_while_h2d_bytes_per_s: D2H rate while H2D is busy too.
        h2d_while_compute_bytes_per_s: H2D rate while the device multiplies matrices.
        gemm_while_h2d_flops_per_s: rate of matrix products while H2D is busy.
        h2d_while_host_bytes_per_s: H2D rate while all cores read host memory.
        host_while_h2d_bytes_per_s: rate of reading host memory while H2D is busy.
        h2d_while_attend_bytes_per_s: H2D rate while the host's cores attend at a model's shapes, or
            None; see ``joint_rates``.
        host_attend_while_h2d_bytes_per_s: rate at which they then read K/V while H2D is busy.
        interconnect_bytes_per_s: rate from one GPU of the machine to another, or None: see
            ``interconnect_rate``.
        host_attends: whether the host's cores can attend; false where a machine's figures say
            nothing of them.
        gemm_curve: matrix products by number of tokens and element type.
        measurements: every measured figure with its spread, by name; of what is paced in an
            emulation, those of the real copies and cores.
        emulates: name of the machine that is emulated, or None.
        identity: the machine that was measured, or None for a published one.
        date: when it was measured or published, ISO 8601.
        quick: whether it was measured in few repeats.
        source: where each figure of a published machine comes from, by field name.
    """

    name: str
    origin: Origin
    device: str
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    gemm_flops_per_s: Mapping[str, float]
    device_bytes_per_s: float
    host_bytes_per_s: float
    device_memory_bytes: int
    host_memory_bytes: int
    copy_latency_s: float = 0.0
    launch_latency_s: float = 0.0
    attend_bytes_per_s: float | None = None
    resident_attend_bytes_per_s: float | None = None
    dense_bytes_per_s: float | None = None
    host_attend_bytes_per_s: float | None = None
    host_page_s: float | None = None
    mail_bytes_per_s: float | None = None
    mail_call_s: float | None = None
    attend_call_s: float | None = None
    load_call_s: float | None = None
    rebuild_call_s: float | None = None
    launch_step_s: float | None = None
    launch_layer_s: float | None = None
    launch_plain_layer_s: float | None = None
    launch_stream_s: float | None = None
    launch_rebuild_s: float | None = None
    launch_host_s: float | None = None
    launch_while_attend: float | None = None
    rebuild_flops_per_s: float | None = None
    h2d_curve: tuple[RatePoint, ...] = ()
    d2h_curve: tuple[RatePoint, ...] = ()
    h2d_while_d2h_bytes_per_s: float | None = None
    d2h_while_h2d_bytes_per_s: float | None = None
    h2d_while_compute_bytes_per_s: float | None = None
    gemm_while_h2d_flops_per_s: float | None = None
    h2d_while_host_bytes_per_s: float | None = None
    host_while_h2d_bytes_per_s: float | None = None
    h2d_while_attend_bytes_per_s: float | None = None
    host_attend_while_h2d_bytes_per_s: float | None = None
    interconnect_bytes_per_s: float | None = None
    host_attends: bool = True
    dense_curve: tuple[RowsPoint, ...] = ()
    resident_curve: tuple[RowsPoint, ...] = ()
    gemm_curve: tuple[GemmPoint, ...] = ()
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    emulates: str | None = None
    identity: MachineIdentity | None = None
    date: str = ""
    quick: bool = False
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ProfileError(
                f"profile {self.name}: device is {self.device!r}; allowed are {', '.join(DEVICES)}"
            )
        for label, value in self._positive_figures():
            if not value > 0:
                raise ProfileError(f"profile {self.name}: {label} is {value}; it must be above 0")
        for label in _DURATIONS:
            value = getattr(self, label)
            if value is not None and not 0 <= value < math.inf:
                raise ProfileError(
                    f"profile {self.name}: {label} is {value}; it must be finite and not negative"
                )

    def is_measured(self, name: str) -> bool:
        """Return whether a figure was measured, be it held to a pace or not."""
        return name in self.measurements or UNPACED + name in self.measurements

    def without_latencies(self) -> HardwareProfile:
        """Return a profile in which copies, kernels and calls take nothing besides their work."""
        latencies = dict.fromkeys(_LATENCIES, 0.0)
        return replace(self, **latencies)  # type: ignore[arg-type]

    def without_replays(self) -> HardwareProfile:
        """Return a profile of steps whose forward is launched kernel by kernel.

        The rates of dense work stay what they are: of replayed steps, where these were measured.
        """
        return replace(self, launch_layer_s=self.launch_plain_layer_s or self.launch_layer_s)

    def with_rates(self, cores: float, link: float = 1.0) -> HardwareProfile:
        """Return a profile whose host's cores and link go at so many times their rates.

        Args:
            cores: above 0; of the cores' rate alone, and of that while the link is busy.
            link: above 0; of the link's rate while the cores attend, which is never above its rate
                alone; below 1 of the latter, too.
        """
        joint = self.joint_rates
        h2d = min(1.0, link) * self.h2d_bytes_per_s
        return replace(
            self,
            h2d_bytes_per_s=h2d,
            host_attend_bytes_per_s=cores * self.host_attend_rate,
            host_page_s=None if self.host_page_s is None else self.host_page_s / cores,
            h2d_while_attend_bytes_per_s=None if joint is None else min(h2d, link * joint[0]),
            host_attend_while_h2d_bytes_per_s=None if joint is None else cores * joint[1],
        )

    def gemm_rate(self, dtype: str) -> float:
        """Return the rate of matrix products in FLOPs a second.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            ProfileError: the profile has no rate for ``dtype``.
        """
        rate = self.gemm_flops_per_s.get(dtype)
        if rate is None:
            raise ProfileError(
                f"profile {self.name} has no matrix product rate for {dtype}, only for "
                f"{', '.join(sorted(self.gemm_flops_per_s)) or 'nothing'}; use one of those, or "
                "measure the machine with `headrace profile`"
            )
        return rate

    def rebuild_rate(self, dtype: str) -> float:
        """Return the rate of rebuilding K/V from X in FLOPs a second, counting 4·d·d_kv a token.

        Where it was not measured: the rate of matrix products, in the element type ``dtype``.
        """
        measured = self.rebuild_flops_per_s
        return self.gemm_rate(dtype) if measured is None else measured

    def duration_s(self, work_s: float, call_s: float | None) -> float:
        """Return how long the device is busy with a call.

        A GPU is launched while it works on what came before, so that a call takes its work or its
        launching, whichever is longer. On a CPU both are the same thread's, and add up.

        Args:
            work_s: seconds of the work itself.
            call_s: ``attend_call_s`` or the like; where it is None, ``launch_latency_s`` is added.
        """
        if call_s is None:
            return work_s + self.launch_latency_s
        return max(work_s, call_s) if self.device == "cuda" else work_s + call_s

    @property
    def attend_rate(self) -> float:
        """Bytes a second at which the device's attention reads K/V.

        Where it was not measured: the rate of the device's memory.
        """
        return (
            self.device_bytes_per_s if self.attend_bytes_per_s is None else self.attend_bytes_per_s
        )

    @property
    def resident_attend_rate(self) -> float:
        """Bytes a second at which the device's attention reads K/V of contiguous rows.

        Where it was not measured: ``attend_rate``.
        """
        rate = self.resident_attend_bytes_per_s
        return self.attend_rate if rate is None else rate

    @property
    def mail_rate(self) -> float:
        """Bytes a second at which queries go to the host's cores, and their results come back.

        Where it was not measured: that of the link's slower direction.
        """
        slower = min(self.h2d_bytes_per_s, self.d2h_bytes_per_s)
        return slower if self.mail_bytes_per_s is None else self.mail_bytes_per_s

    @property
    def mail_latency_s(self) -> float:
        """Seconds that it takes besides, however few they are."""
        return 2 * self.copy_latency_s if self.mail_call_s is None else self.mail_call_s

    def dense_rate(self, rows: float, *, resident: bool = False) -> float:
        """Return the rate at which decoding reads the weights, in bytes a second.

        Between two numbers of rows that were measured, the time that a byte takes is interpolated.
        Where it was not measured: the rate of the device's memory.

        Args:
            rows: rows of a forward.
            resident: whether all of the cache is on the device.
        """
        curve = (resident and self.resident_curve) or self.dense_curve
        if curve:
            return 1.0 / _seconds_per_byte(curve, rows)
        return self.device_bytes_per_s if self.dense_bytes_per_s is None else self.dense_bytes_per_s

    @property
    def host_attend_rate(self) -> float:
        """Bytes a second at which the host's attention reads K/V.

        Where it was not measured: the rate at which all cores read host memory.
        """
        if self.host_attend_bytes_per_s is None:
            return self.host_bytes_per_s
        return self.host_attend_bytes_per_s

    @property
    def interconnect_rate(self) -> float:
        """Bytes a second from one GPU to another; where there is no interconnect, the link's."""
        if self.interconnect_bytes_per_s is None:
            return min(self.h2d_bytes_per_s, self.d2h_bytes_per_s)
        return self.interconnect_bytes_per_s

    @property
    def joint_rates(self) -> tuple[float, float] | None:
        """Bytes a second that link and cores were measured to get while both are at work.

        Of the host's attention itself, where that was measured at a model's shapes; else of cores
        that read memory from end to end; None where neither was measured.
        """
        for link, cores in (
            (self.h2d_while_attend_bytes_per_s, self.host_attend_while_h2d_bytes_per_s),
            (self.h2d_while_host_bytes_per_s, self.host_while_h2d_bytes_per_s),
        ):
            if link is not None and cores is not None:
                return link, cores
        return None

    @property
    def dram_rate(self) -> float:
        """Bytes a second that host memory gives to the link and to the cores together.

        What both were measured to get at once; where that was not measured, the rate at which all
        cores read. At least what either gets alone.
        """
        joint = self.joint_rates
        together = self.host_bytes_per_s if joint is None else sum(joint)
        return max(together, self.h2d_bytes_per_s, self.host_attend_rate)

    @property
    def shared_rates(self) -> tuple[float, float]:
        """Bytes a second of the link, and of the host's attention, while both are at work.

        The link goes first, up to nine tenths of ``dram_rate``; the cores get what is left.
        """
        joint = self.joint_rates
        link = self.h2d_bytes_per_s if joint is None else joint[0]
        link = min(link, self.h2d_bytes_per_s, _LINK_SHARE * self.dram_rate)
        return link, min(self.host_attend_rate, self.dram_rate - link)

    def _positive_figures(self) -> list[tuple[str, float]]:
        figures = [
            (label, value)
            for label, value in vars(self).items()
            if label.endswith(("_bytes_per_s", "_memory_bytes"))
            or label in ("gemm_while_h2d_flops_per_s", "rebuild_flops_per_s", "launch_while_attend")
        ]
        figures += [
            (f"gemm_flops_per_s[{key}]", rate) for key, rate in self.gemm_flops_per_s.items()
        ]
        figures += [(f"h2d_curve at {size}", rate) for size, rate in self.h2d_curve]
        figures += [(f"d2h_curve at {size}", rate) for size, rate in self.d2h_curve]
        figures += [(f"dense_curve at {rows}", rate) for rows, rate in self.dense_curve]
        figures += [(f"resident_curve at {rows}", rate) for rows, rate in self.resident_curve]
        figures += [(f"gemm_curve at {p.tokens}", p.flops_per_s) for p in self.gemm_curve]
        return [(label, value) for label, value in figures if value is not None]


def _seconds_per_byte(curve: Sequence[RowsPoint], rows: float) -> float:
    """Return the seconds that a byte of weights takes with so many rows.

    Fewer rows than were measured take what the fewest take; more of them go on as the last two
    points lead, up to a few times as many.
    """
    if len(curve) == 1 or rows <= curve[0][0]:
        return 1.0 / curve[0][1]
    rows = min(rows, _MOST_BEYOND * curve[-1][0])
    above = next((place for place, point in enumerate(curve) if point[0] >= rows), len(curve) - 1)
    (few, fast), (many, slow) = curve[above - 1 : above + 1]
    share = (rows - few) / (many - few)
    found = (1.0 - share) / fast + share / slow
    return found if share <= 1.0 else max(found, 1.0 / slow)
