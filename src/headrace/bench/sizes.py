"""Makes a case as small as a machine needs it, and says what was made smaller, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.bench.catalogue import Case
from headrace.errors import ConfigurationError
from headrace.model.cost import (
    all_layers_weight_bytes,
    attention_flops,
    kv_bytes_per_token,
    layer_dense_flops,
    model_weight_bytes,
)
from headrace.model.published import published_shape
from headrace.model.shape import ModelShape
from headrace.units import format_bytes, format_seconds, parse_bytes

_SLICE_VOCAB = 2048
_MOST_NARROW, _MOST_NARROW_WEIGHTS = 4, 8
"""How many times narrower layers may become; more where their weights are streamed, too."""

_LEAST_ROWS, _LEAST_PROMPT = 4, 256
_MEAN_STEP = 0.45
"""A step, over all that is run, as a share of one of full transfer; measured of several cases."""

_MINOR = 0.25
"""A cache that is less than this share of the streamed weights is not made smaller for time."""

_FOR_WEIGHTS = 0.8
"""Share of a budget of device memory that a model's weights take at most, roughly."""

_SHARE = 0.85
"""Share of a memory that is used."""


@dataclass(frozen=True)
class Sizes:
    """How large a case is.

    Attributes:
        model: a published shape.
        dtype: element type.
        layers: decoder layers.
        narrow: how many times narrower the layers are.
        rows: sequences.
        prompt_len: tokens of each prompt.
    """

    model: str
    dtype: str
    layers: int
    narrow: int
    rows: int
    prompt_len: int

    @classmethod
    def of(cls, case: Case, dtype: str) -> Sizes:
        """Return the sizes that a case asks for."""
        layers = case.layers or published_shape(case.model).num_layers
        return cls(case.model, dtype, layers, 1, case.rows, case.prompt_len)

    @property
    def is_slice(self) -> bool:
        """Whether it is less than the whole model."""
        return self.narrow > 1 or self.layers < published_shape(self.model).num_layers

    @property
    def shape(self) -> ModelShape:
        """The shape of what is run."""
        whole = published_shape(self.model)
        shape = replace(
            whole.narrowed(self.narrow),
            num_layers=self.layers,
            windowed_layers=whole.windowed_layers * self.layers // whole.num_layers,
            dtype=self.dtype,
        )
        return replace(shape, vocab_size=_SLICE_VOCAB) if self.is_slice else shape

    @property
    def prompt_parts(self) -> int:
        """Parts of all prompts, where they are as short as they may be."""
        return self.rows * -(-self.prompt_len // _LEAST_PROMPT)

    def kv_bytes(self, steps: int) -> int:
        """Return the bytes of all keys and values after some steps."""
        shape = self.shape
        return self.rows * (self.prompt_len + steps) * self.layers * kv_bytes_per_token(shape)

    def __str__(self) -> str:
        """Return the sizes in words."""
        of = published_shape(self.model).num_layers
        layers = f"all {of} layers" if self.layers == of else f"{self.layers} of {of} layers"
        width = "" if self.narrow == 1 else f" (1/{self.narrow} as wide)"
        return f"{self.rows:,} rows × {self.prompt_len:,} tokens, {layers}{width}"


@dataclass(frozen=True)
class Limits:
    """What a machine allows.

    Attributes:
        host_bytes: host memory that is free.
        device_bytes: device memory; None where the device is a CPU, whose memory is the host's.
        link_bytes_per_s: rate of the link, and with it limits of time; None: none are kept.
        gemm_flops_per_s: rate of matrix products, where the link's is given.
        runs: policies and rivals that are run, where limits of time are kept.
        step_s: longest step of full transfer.
        case_s: longest time of a case, roughly.
    """

    host_bytes: int
    device_bytes: int | None = None
    link_bytes_per_s: float | None = None
    gemm_flops_per_s: float = 0.0
    runs: int = 1
    step_s: float = 0.5
    case_s: float = 16.0

    def exceeded(self, sizes: Sizes, case: Case, steps: int) -> tuple[str, str] | None:
        """Return what sizes are too large for, and that in words; None if for nothing.

        Args:
            sizes: of the case.
            case: the case.
            steps: steps that each run takes.
        """
        shape, kv_bytes = sizes.shape, sizes.kv_bytes(steps)
        weights = model_weight_bytes(shape)
        if self.device_bytes is not None and weights > _SHARE * self.device_bytes:
            room = format_bytes(self.device_bytes)
            return "weights", f"weights of {format_bytes(weights)} are made on a device of {room}"
        streamed = all_layers_weight_bytes(shape)
        on_host = kv_bytes + (streamed if case.weights_on_host != 0 else 0)
        needed = on_host if self.device_bytes is not None else weights + streamed + 3 * kv_bytes
        if needed > _SHARE * self.host_bytes:
            return "host", (
                f"host memory: {format_bytes(needed)} needed, {format_bytes(self.host_bytes)} free"
            )
        return self._too_long(sizes, shape, kv_bytes, case, steps)

    def _too_long(
        self, sizes: Sizes, shape: ModelShape, kv_bytes: int, case: Case, steps: int
    ) -> tuple[str, str] | None:
        if self.link_bytes_per_s is None:
            return None
        streamed = weights_share(case, sizes.dtype) * all_layers_weight_bytes(shape)
        through_link = 0.0 if case.gpu_memory is None else kv_bytes + streamed
        step_s = through_link / self.link_bytes_per_s
        if step_s > self.step_s:
            return "time", f"a step of full transfer would take {format_seconds(step_s)} here"
        tokens = sizes.rows * sizes.prompt_len
        flops = sizes.layers * (
            layer_dense_flops(shape, tokens) + attention_flops(shape, tokens, sizes.prompt_len // 2)
        )
        of_stream = _MEAN_STEP * steps * step_s
        # All weights pass for prompts, too: once a run, and for each part where room is short.
        passes = self.runs + sizes.prompt_parts - 1
        of_prompts = passes * streamed / self.link_bytes_per_s
        case_s = self.runs * (2 * flops / self.gemm_flops_per_s + of_stream) + of_prompts
        if case_s > self.case_s:
            return "time", f"it would take about {format_seconds(case_s)} here"
        return None


def weights_share(case: Case, dtype: str) -> float:
    """Return about which share of the layers' weights a case streams."""
    if case.weights_on_host is not None or case.gpu_memory is None:
        return case.weights_on_host or 0.0
    weights = model_weight_bytes(Sizes.of(case, dtype).shape)
    room = _FOR_WEIGHTS * parse_bytes(case.gpu_memory, setting="gpu_memory")
    return max(0.0, 1.0 - room / weights)


@dataclass(frozen=True)
class Fitted:
    """The sizes at which a case is run here.

    Attributes:
        asked: what the case asks for.
        sizes: what is run.
        reasons: why that is less.
    """

    asked: Sizes
    sizes: Sizes
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """Return in words what is run, and what was asked for."""
        if self.asked == self.sizes:
            return str(self.sizes)
        return f"{self.asked} asked, {self.sizes} measured: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Most:
    """Sizes that are not to be exceeded; None where nothing is said.

    Attributes:
        layers: decoder layers.
        rows: sequences.
        prompt_len: tokens of each prompt.
        narrow: how many times narrower the layers are at least.
    """

    layers: int | None = None
    rows: int | None = None
    prompt_len: int | None = None
    narrow: int = 1

    def of(self, sizes: Sizes) -> Sizes:
        """Return sizes that keep within.

        Raises:
            ConfigurationError: the model's heads cannot be divided so.
        """
        shape = published_shape(sizes.model)
        if shape.num_heads % self.narrow or shape.num_kv_heads % self.narrow:
            raise ConfigurationError(
                f"narrow is {self.narrow}; it must divide the {shape.num_heads} heads and "
                f"{shape.num_kv_heads} key/value heads of {sizes.model}"
            )
        return replace(
            sizes,
            narrow=max(sizes.narrow, self.narrow),
            layers=min(sizes.layers, self.layers or sizes.layers),
            rows=min(sizes.rows, self.rows or sizes.rows),
            prompt_len=min(sizes.prompt_len, self.prompt_len or sizes.prompt_len),
        )


def fit(case: Case, dtype: str, limits: Limits, steps: int, most: Most | None = None) -> Fitted:
    """Return the sizes at which a case can be run.

    Args:
        case: what is asked for.
        dtype: element type.
        limits: what the machine allows.
        steps: steps that each run takes.
        most: sizes that are not to be exceeded.
    """
    asked = Sizes.of(case, dtype)
    sizes, reasons = (most or Most()).of(asked), {}
    if sizes.layers < asked.layers or sizes.narrow > 1:
        reasons["layers"] = "a slice"
    if (sizes.rows, sizes.prompt_len) != (asked.rows, asked.prompt_len):
        reasons["asked"] = "at most so much was asked for"
    while (found := limits.exceeded(sizes, case, steps)) is not None:
        smaller = _smaller(sizes, found[0], weights_share(case, dtype) > 0)
        if smaller == sizes or _helps_little(sizes, smaller, case, steps):
            break
        reasons.setdefault(*found)
        sizes = smaller
    return Fitted(asked, sizes, tuple(reasons.values()))


def _helps_little(sizes: Sizes, smaller: Sizes, case: Case, steps: int) -> bool:
    """Return whether fewer rows save little: few share weights that take long.

    Shorter prompts have fewer parts, each of which waits for the weights.
    """
    if replace(smaller, rows=sizes.rows) != sizes:
        return False
    streamed = weights_share(case, sizes.dtype) * all_layers_weight_bytes(sizes.shape)
    return sizes.rows <= _LEAST_ROWS and sizes.kv_bytes(steps) < _MINOR * streamed


def _smaller(sizes: Sizes, kind: str, streamed: bool) -> Sizes:
    """Return the next smaller sizes; the same if there are none.

    Args:
        sizes: what is too large.
        kind: for what: ``weights``, ``host`` or ``time``.
        streamed: whether weights are streamed.
    """
    shape = published_shape(sizes.model)
    narrower = 2 * sizes.narrow
    if kind == "weights" and sizes.layers > 1:
        return replace(sizes, layers=sizes.layers // 2)
    most = _MOST_NARROW_WEIGHTS if streamed else _MOST_NARROW
    divides = shape.num_kv_heads % narrower == shape.num_heads % narrower == 0
    if kind == "time" and narrower <= most and divides:
        return replace(sizes, narrow=narrower)
    if sizes.rows > _LEAST_ROWS:
        return replace(sizes, rows=sizes.rows // 2)
    if sizes.prompt_len > _LEAST_PROMPT:
        return replace(sizes, prompt_len=sizes.prompt_len // 2)
    if kind == "host" and sizes.layers > 1:
        return replace(sizes, layers=sizes.layers // 2)
    return replace(sizes, rows=max(1, sizes.rows // 2))
