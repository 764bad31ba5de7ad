"""At which rate a decode step reads the weights, and does all else that is not the cache's.

The step is a model's own, with a cache of ours in which nothing is in pages yet. What our hooks,
attention to the newest tokens, merges and taking the likeliest token need counts as dense work.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from headrace.hf.attachment import attach, detach
from headrace.hf.probe_timing import WAIT_S, no_collection
from headrace.model.cost import head_weight_bytes, layer_read_bytes
from headrace.model.shape import ModelShape
from headrace.plan.workload import Workload

_FIRST_STEPS, _STEPS = 2, 3
"""Steps that warm up, of which a GPU records the last to replay it, and steps that count."""


def dense_rows(device: torch.device) -> tuple[int, ...]:
    """Return the numbers of rows at which dense work is measured.

    A CPU's products may take twice as long for two rows as for one, and four times for four; and
    32 rows may be little slower than 8, and 64 twice as slow.
    """
    return (1, 8, 64) if device.type == "cuda" else (1, 4, 8, 32, 64)


def dense_rate(model: nn.Module, shape: ModelShape, rows: int, *, resident: bool = False) -> float:
    """Measure once at which rate a decode step reads the model's weights.

    Args:
        model: the model.
        shape: its shape.
        rows: sequences.
        resident: whether all of the cache is on the device, so that steps go the short way. Else
            each layer of a step waits for the link or the host's cores; on a CPU there is a pause
            before each layer's attention, which does not count: what comes after a wait begins with
            threads that sleep and caches that hold other things.

    Returns:
        Bytes of weights a second.
    """
    device = next(model.parameters()).device
    seconds = []
    pauses = _Pauses(model, 0.0 if resident or device.type == "cuda" else WAIT_S)
    with _stepping(model, rows, "resident" if resident else "stream") as step, pauses:
        for _ in range(_FIRST_STEPS + _STEPS):
            pauses.seconds = 0.0
            start_s = time.perf_counter()
            step().argmax(dim=-1).tolist()
            seconds.append(time.perf_counter() - start_s - pauses.seconds)
    weights = shape.num_layers * layer_read_bytes(shape, rows) + head_weight_bytes(shape)
    return weights / statistics.median(seconds[_FIRST_STEPS:])


@contextmanager
def _stepping(model: nn.Module, rows: int, policy: str) -> Iterator[Callable[[], Tensor]]:
    """Yield a decode step with a cache of a policy: as engines take it, where the model lets them.

    Returns the logits of the next token, ``[B, V]``.
    """
    from headrace.hf.cache import HostCache
    from headrace.hf.planning import CacheOptions
    from headrace.hf.rows_cache import RowsCache

    steps = _FIRST_STEPS + _STEPS
    with torch.no_grad(), no_collection():
        if "position_ids" in inspect.signature(model.forward).parameters:
            options = CacheOptions.checked(policy, None, None, None, None, None, poison=False)
            with RowsCache(model, Workload(rows, 1, steps), options) as cache:
                numbers = cache.add(rows)
                yield lambda: cache.forward(numbers, [[0]] * rows)
        else:
            token = torch.zeros(
                (rows, 1), dtype=torch.int64, device=next(model.parameters()).device
            )
            with HostCache(model, policy=policy, reserve_tokens=steps) as host_cache:
                inputs = {"input_ids": token, "past_key_values": host_cache, "use_cache": True}
                yield lambda: model(**inputs).logits[:, -1]


class _Pauses:
    """Pauses before each layer's attention, and how long they were."""

    def __init__(self, model: nn.Module, pause_s: float) -> None:
        self.seconds = 0.0
        self._model = model
        self._pause_s = pause_s
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Pauses:
        if self._pause_s:
            for layer in attach(self._model).layers:
                self._hooks.append(layer.module.register_forward_pre_hook(self._pause))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._pause_s:
            detach(self._model)

    def _pause(self, module: nn.Module, args: object) -> None:
        start_s = time.perf_counter()
        time.sleep(self._pause_s)
        self.seconds += time.perf_counter() - start_s
