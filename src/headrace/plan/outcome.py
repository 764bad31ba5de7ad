"""What planning results in: the plan itself, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrace.plan.demands import Schedule
from headrace.plan.geometry import Geometry
from headrace.plan.placement import Placement
from headrace.plan.policies import Policy, Split
from headrace.plan.program import Optimum
from headrace.plan.workload import Workload


@dataclass(frozen=True)
class Plan:
    """How a workload is to run, and what that is predicted to take.

    Attributes:
        model: name of the model's shape.
        dtype: element type.
        hardware: name of the machine's profile.
        origin: what the figures rest on, in words: they are predicted, from rates of some origin.
        workload: the batch.
        policy: the policy; ``auto`` where it is a mixture that has no other name.
        schedule: the order of a step's operations, where the rows are worked on in batches.
        split: how the cached tokens in pages are divided in the middle of the decoding.
        admission: how those of the prompt are divided when a row is admitted; newer ones are K/V.
        placement: where cached tokens are kept.
        geometry: how the cache is cut.
        weights_streamed: share of the layers' weights that is streamed in every step.
        communication_s: seconds of a step in which the device exchanges results with others.
        prefill_tokens: tokens of prompts that go through the model at once; fewer than a prompt has
            where these come in parts.
        embedding_on_host: whether the input embedding stays on the host.
        granule_pages: pages of K/V in a granule.
        gpu_items: bytes on the device, by item.
        host_items: bytes on the host, by item.
        step_s: simulated duration of a decode step at mean context.
        step_without_latency_s: the same without latencies, where the step is well above its bound;
            else ``step_s``.
        bound_s: the least that the rates allow for the same work.
        stream_step_s: ``step_s`` of the policy ``stream`` for the same workload.
        work_s: seconds for which a step needs each resource (``demands.Resource``).
        optimum: the linear program's solution, before it was rounded to whole pages.
        solve_s: seconds that deciding took, of which the solver is a part.
        feasible: whether it fits the memory and the model's context.
        reasons: what bounds it, what is gained, and what does not fit, in plain English.
        launch_s: seconds of launching a step; 0 where that was not measured.
    """

    model: str
    dtype: str
    hardware: str
    origin: str
    workload: Workload
    policy: Policy
    schedule: Schedule
    split: Split
    admission: Split
    placement: Placement
    geometry: Geometry
    weights_streamed: float
    communication_s: float
    prefill_tokens: int
    embedding_on_host: bool
    granule_pages: int
    gpu_items: Mapping[str, int]
    host_items: Mapping[str, int]
    step_s: float
    step_without_latency_s: float
    bound_s: float
    stream_step_s: float
    work_s: Mapping[str, float]
    optimum: Optimum
    solve_s: float
    feasible: bool
    reasons: tuple[str, ...]
    launch_s: float = 0.0

    @property
    def gpu_bytes(self) -> int:
        """Bytes on the device."""
        return sum(self.gpu_items.values())

    @property
    def host_bytes(self) -> int:
        """Bytes on the host."""
        return sum(self.host_items.values())

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second while decoding, over all rows."""
        return self.workload.rows / self.step_s

    @property
    def binding(self) -> str:
        """The resource with most work in a step (``demands.Resource``)."""
        return max(self.work_s, key=lambda resource: self.work_s[resource])

    @property
    def speedup_over_stream(self) -> float:
        """How many times as fast a step is as under ``stream``, itself fully overlapped."""
        return self.stream_step_s / self.step_s

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary."""
        geometry = asdict(self.geometry)
        return {
            "feasible": self.feasible,
            "policy": self.policy.value,
            "schedule": self.schedule.value,
            "split": asdict(self.split),
            "step_s": self.step_s,
            "bound_s": self.bound_s,
            "tokens_per_s": self.tokens_per_s,
            "binding": self.binding,
            "gpu_bytes": self.gpu_bytes,
            "host_bytes": self.host_bytes,
            "speedup_over_stream": self.speedup_over_stream,
            "model": self.model,
            "dtype": self.dtype,
            "hardware": self.hardware,
            "origin": self.origin,
            "workload": asdict(self.workload),
            "admission_split": asdict(self.admission),
            "placement": asdict(self.placement),
            "weights_streamed": self.weights_streamed,
            "prefill_tokens": self.prefill_tokens,
            "embedding_on_host": self.embedding_on_host,
            **geometry,
            "granule_pages": self.granule_pages,
            "gpu_items": dict(self.gpu_items),
            "host_items": dict(self.host_items),
            "stream_step_s": self.stream_step_s,
            "work_s": dict(self.work_s),
            "optimum_s": self.optimum.step_s,
            "launch_s": self.launch_s,
            "elasticity": {rate.value: share for rate, share in self.optimum.elasticity.items()},
            "shadow_prices": {
                row: price for row, price in self.optimum.prices.items() if abs(price) > 1e-9
            },
            "solve_s": self.solve_s,
            "reasons": list(self.reasons),
        }
