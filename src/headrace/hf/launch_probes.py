"""What launching takes in real steps of a model with a cache of ours, on a GPU.

A step is launched by one thread, which never waits for the device. How long its calls take one
after the other says too little: in a step each has Python, loads, events and their order about it.
So small steps are taken, in which the paths differ, and the thread is timed.
"""

from __future__ import annotations

import inspect
import statistics
import time

import torch
from torch import nn

from headrace.hardware.probes import ExtraProbes
from headrace.hardware.profile import HardwareProfile
from headrace.hf.probe_timing import no_collection
from headrace.model.shape import ModelShape
from headrace.plan.policies import Policy
from headrace.plan.workload import Workload
from headrace.timeline import Lane

_ROWS = 32
_PAGED_TOKENS = 16
"""Of a row, the least page: what the cores attend to then takes them no time to speak of."""

_FIRST_STEPS, _STEPS = 3, 7
"""Steps that warm up, one of which is recorded to be replayed, and steps that count."""


class LaunchProbes:
    """Measures what launching takes, path by path.

    Args:
        model: on the device that is to be measured.
        shape: its shape.
    """

    def __init__(self, model: nn.Module, shape: ModelShape) -> None:
        self._model = model
        self._shape = shape
        self._layer_s = 0.0

    def by_name(self) -> ExtraProbes:
        """Return the probes by the fields of a profile that they fill; none but for a GPU.

        The first one comes first in each turn: the others measure what a step takes more than it.
        """
        device = next(self._model.parameters()).device.type
        takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        if device != "cuda" or not takes_positions:
            return {}
        return {
            "launch_layer_s": self.layer_s,
            "launch_plain_layer_s": self.plain_layer_s,
            "launch_stream_s": lambda _: self.granule_s(Policy.STREAM),
            "launch_rebuild_s": lambda _: self.granule_s(Policy.RECOMPUTE),
            "launch_host_s": self.host_s,
        }

    def layer_s(self, _: HardwareProfile) -> float:
        """Measure once what a layer takes that has nothing in pages.

        Returns:
            Seconds, of a step divided by its layers.
        """
        step_s, _loads = self._step(Policy.STREAM, 1)
        self._layer_s = step_s / self._shape.num_layers
        return self._layer_s

    def plain_layer_s(self, _: HardwareProfile) -> float:
        """Measure once the same where no forward is replayed.

        Returns:
            Seconds.
        """
        step_s, _loads = self._step(Policy.STREAM, 1, record=False)
        return step_s / self._shape.num_layers

    def granule_s(self, policy: Policy) -> float:
        """Measure once what a granule takes more: of K/V, or of X.

        Args:
            policy: ``stream``, or ``recompute``.

        Returns:
            Seconds; 0 where nothing is loaded, since nothing can be rebuilt.
        """
        step_s, loads = self._step(policy, 1 + _PAGED_TOKENS)
        return self._more_s(step_s, loads)

    def host_s(self, _: HardwareProfile) -> float:
        """Measure once what a layer takes more in which the host's cores attend.

        Returns:
            Seconds.
        """
        step_s, turns = self._step(Policy.HOST, 1 + _PAGED_TOKENS)
        return self._more_s(step_s, turns)

    def _more_s(self, step_s: float, parts: int) -> float:
        """Return what each part of a step makes it longer."""
        base_s = self._layer_s * self._shape.num_layers
        return max(0.0, step_s - base_s) / parts if parts else 0.0

    def _step(self, policy: Policy, prompt_len: int, *, record: bool = True) -> tuple[float, int]:
        """Return how long a step is launched, and its loads, or turns of the cores."""
        from headrace.hf.planning import CacheOptions
        from headrace.hf.rows_cache import RowsCache

        recompute = 1.0 if policy is Policy.RECOMPUTE else None
        options = CacheOptions.checked(policy, None, None, recompute, None, None, poison=False)
        workload = Workload(_ROWS, prompt_len, _FIRST_STEPS + _STEPS)
        seconds = []
        cache = RowsCache(self._model, workload, options, record=record)
        with torch.no_grad(), no_collection(), cache:
            rows = cache.add(_ROWS)
            cache.forward(rows, [[0] * prompt_len] * _ROWS).argmax(dim=-1).tolist()
            for _ in range(_FIRST_STEPS + _STEPS):
                start_s = time.perf_counter()
                logits = cache.forward(rows, [[0]] * _ROWS)
                seconds.append(time.perf_counter() - start_s)
                logits.argmax(dim=-1).tolist()
            program = cache.paged.decode_program()
        attended = sum(op.lane is Lane.HOST_ATTEND for op in program.operations)
        return statistics.median(seconds[_FIRST_STEPS:]), len(program.loads) or attended
