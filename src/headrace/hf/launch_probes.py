"""What launching takes in real steps of a model with a cache of ours, on a GPU.

A step is launched by one thread, which never waits for the device. How long its calls take one
after the other says too little: in a step each has Python, loads, events and their order about it.
So small steps are taken, in which the paths differ, and the thread is timed from layer to layer.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from headrace.hardware.probes import ExtraProbes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.attachment import attached
from headrace.hf.probe_timing import no_collection
from headrace.model.shape import ModelShape
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload
from headrace.timeline import H2D_LANES, Lane

_ROWS = 32
_PAGED_TOKENS = 16
"""Of a row, the least page: what the cores attend to then takes them no time to speak of."""

_FIRST_STEPS, _STEPS = 3, 7
"""Steps that warm up, one of which is recorded to be replayed, and steps that count."""


@dataclass(frozen=True)
class _Launched:
    """A step, as the thread that launched it saw it.

    Attributes:
        layer_s: seconds of a layer.
        besides_s: seconds of the step besides its layers.
        parts: on average, loads of a layer, or turns of the cores; 1 where there are neither.
    """

    layer_s: float
    besides_s: float
    parts: float


class LaunchProbes:
    """Measures what launching takes, path by path.

    Args:
        model: on the device that is to be measured.
        shape: its shape.
        attending: lets the host's cores attend all the while.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: ModelShape,
        attending: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._model = model
        self._shape = shape
        self._attending = attending
        self._empty: _Launched | None = None

    def by_name(self) -> ExtraProbes:
        """Return the probes by the fields of a profile that they fill; none but for a GPU.

        The first one comes first in each turn: others measure what a layer takes more.
        """
        device = next(self._model.parameters()).device.type
        takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        if device != "cuda" or not takes_positions:
            return {}
        probes: dict[str, Callable[[HardwareProfile], float]] = {
            "launch_layer_s": self.layer_s,
            "launch_step_s": self.step_s,
            "launch_plain_layer_s": self.plain_layer_s,
            "launch_while_attend": self.while_attend,
            "launch_stream_s": lambda _: self.granule_s(Policy.STREAM),
            "launch_host_s": lambda _: self.granule_s(Policy.HOST),
        }
        if self._rebuilds():
            probes["launch_rebuild_s"] = lambda _: self.granule_s(Policy.RECOMPUTE)
        return probes

    def layer_s(self, _: HardwareProfile) -> float:
        """Measure once what a layer takes that has nothing in pages.

        Returns:
            Seconds.
        """
        self._empty = self._step(Policy.STREAM, 1)
        return self._empty.layer_s

    def step_s(self, _: HardwareProfile) -> float:
        """Return what a step takes besides its layers, as was measured with them.

        Returns:
            Seconds.
        """
        return self._base.besides_s

    def plain_layer_s(self, _: HardwareProfile) -> float:
        """Measure once what a layer takes where no forward is replayed.

        Returns:
            Seconds.
        """
        return self._step(Policy.STREAM, 1, record=False).layer_s

    def while_attend(self, _: HardwareProfile) -> float:
        """Measure once how many times as long a layer takes while the host's cores attend.

        Returns:
            The ratio.
        """
        alone_s = self._base.layer_s
        with self._attending():
            return self._step(Policy.STREAM, 1).layer_s / alone_s

    def granule_s(self, policy: Policy) -> float:
        """Measure once what a granule takes more: of K/V, of X, or what the cores attend to.

        Args:
            policy: ``stream``, ``recompute`` or ``host``.

        Returns:
            Seconds.
        """
        launched = self._step(policy, 1 + _PAGED_TOKENS)
        return max(0.0, launched.layer_s - self._base.layer_s) / launched.parts

    @property
    def _base(self) -> _Launched:
        if self._empty is None:
            self._empty = self._step(Policy.STREAM, 1)
        return self._empty

    def _rebuilds(self) -> bool:
        """Return whether keys and values can be made from X."""
        with attached(self._model) as attachment:
            return attachment.why_not_rebuilt is None

    def _step(self, policy: Policy, prompt_len: int, *, record: bool = True) -> _Launched:
        """Return how a step is launched, over all of them that count."""
        from headrace.hf.planning import CacheOptions
        from headrace.hf.rows_cache import RowsCache

        recompute = 1.0 if policy is Policy.RECOMPUTE else None
        options = CacheOptions.checked(policy, None, None, recompute, None, None, poison=False)
        workload = Workload(_ROWS, prompt_len, _FIRST_STEPS + _STEPS)
        layers = self._shape.num_layers
        steps_s, layers_s = [], []
        cache = RowsCache(self._model, workload, options, record=record)
        with torch.no_grad(), no_collection(), cache:
            rows, began = cache.add(_ROWS), _note_beginnings(cache.paged)
            cache.forward(rows, [[0] * prompt_len] * _ROWS).argmax(dim=-1).tolist()
            for _ in range(_FIRST_STEPS + _STEPS):
                began.clear()
                start_s = time.perf_counter()
                logits = cache.forward(rows, [[0]] * _ROWS)
                steps_s.append(time.perf_counter() - start_s)
                logits.argmax(dim=-1).tolist()
                # A model of one layer has nothing between layers: there all is the layer's.
                span_s = began[-1] - began[0] if len(began) > 1 else steps_s[-1]
                layers_s.append(span_s / max(1, len(began) - 1))
            program = cache.paged.decode_program()
        step_s, layer_s = (statistics.median(all_s[_FIRST_STEPS:]) for all_s in (steps_s, layers_s))
        # What is timed ends where the last layer attends.
        timed = max(1, layers - 1)
        some = [op for op in program.operations if op.layer < timed]
        parts = sum(op.lane in H2D_LANES for op in some)
        parts = parts or sum(op.lane is Lane.HOST_ATTEND for op in some) or timed
        return _Launched(layer_s, max(0.0, step_s - layers * layer_s), parts / timed)


def _note_beginnings(paged: Any) -> list[float]:
    """Note when each layer of a cache begins to attend; return the moments, in seconds."""
    attend, began = paged.attend, list[float]()

    @wraps(attend)
    def noted(*args: Any, **kwargs: Any) -> Any:
        began.append(time.perf_counter())
        return attend(*args, **kwargs)

    paged.attend = noted
    return began
