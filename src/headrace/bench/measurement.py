"""What is measured of a policy or of a rival, and of what could not run."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.bench.lane_figures import LaneFigures
from headrace.timeline import Origin, Timeline


@dataclass(frozen=True)
class Agreement:
    """How the logits of a run compare with those of the run that it is compared with.

    Both were fed the same tokens.

    Attributes:
        compared_with: name of the other run.
        steps: tokens of each row that were compared.
        tokens_identical: whether both would have chosen the same token everywhere.
        max_logit_error: largest difference of logits, as a share of their range.
        tolerance: what is allowed.
        passed: whether logits agree, and tokens (in half precision: but for near ties).
    """

    compared_with: str
    steps: int
    tokens_identical: bool
    max_logit_error: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Steps:
    """The steps of a run, as a clock saw them.

    Attributes:
        prefill_s: seconds to the first token.
        step_s: median seconds of a decode step.
        step_s_range: least and largest.
        tokens_per_s: tokens a second of all rows while decoding.
        peak_gpu_bytes: peak device memory.
        energy_j: joules that the GPU took for a step, on average; None where it does not tell.
    """

    prefill_s: float
    step_s: float
    step_s_range: tuple[float, float]
    tokens_per_s: float
    peak_gpu_bytes: int
    energy_j: float | None


@dataclass(frozen=True)
class RivalMeasurement:
    """A rival's decode steps.

    Attributes:
        rival: its name.
        origin: measured: a rival's cache never goes over an emulated link.
        steps: what the clock saw.
    """

    rival: str
    origin: Origin
    steps: Steps


@dataclass(frozen=True)
class Unable:
    """A policy or a rival that could not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PolicyMeasurement:
    """One policy's decode steps.

    Attributes:
        policy: the policy.
        batches: forwards of a step: 1 for column-by-column, several for row-by-row.
        origin: measured, or emulated when the link was slowed down on purpose.
        recompute_fraction: share of the prompts that is kept as X.
        resident_fraction: share of the prompts whose K/V stay on the device.
        stream_fraction: share of the prompts whose K/V on the host are brought to the device.
        host_fraction: share of the prompts that the host's cores attend to.
        prefill_s: seconds to the first token.
        step_s: median seconds of a decode step.
        step_s_range: least and largest.
        predicted_step_s: the same program by simulation, with the profile's rates.
        bound_s: the least that the profile's rates allow for the step's work.
        link_bytes: bytes that a step brings to the device.
        lanes: what the lanes did, as medians over the rounds.
        peak_gpu_bytes: peak device memory.
        host_bytes: host memory of the cache.
        grown_bytes: device memory that torch reserved further while decoding, after the first
            step (0 on a CPU, where this is not counted).
        energy_j: joules that the GPU took for a step, on average; None where it does not tell.
        predicted: the predicted timeline.
        measured: the measured timeline of the last round.
        token_ids: each row's tokens: the greedy ones, or those of the run it is compared with.
        notes: what was decided differently from what was asked, and why.
    """

    policy: str
    batches: int
    origin: Origin
    recompute_fraction: float
    resident_fraction: float
    stream_fraction: float
    host_fraction: float
    prefill_s: float
    step_s: float
    step_s_range: tuple[float, float]
    predicted_step_s: float
    bound_s: float
    link_bytes: int
    lanes: LaneFigures
    peak_gpu_bytes: int
    host_bytes: int
    grown_bytes: int
    energy_j: float | None
    predicted: Timeline
    measured: Timeline
    token_ids: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The policy, with the number of its batches if there are several."""
        return run_name(self.policy, self.batches)

    @property
    def link_bytes_per_s(self) -> float:
        """Rate of the link while it was busy."""
        return self.lanes.link_bytes_per_s

    @property
    def link_busy(self) -> float:
        """Share of the time in which the link was busy, 0 to 1."""
        return self.lanes.link_busy

    @property
    def device_busy(self) -> float:
        """Share of the time in which the device computed, 0 to 1."""
        return self.lanes.device_busy

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all rows while decoding."""
        return len(self.token_ids) / self.step_s

    @property
    def bound_share(self) -> float:
        """How near the step comes to its bound: 1 is as fast as the rates allow."""
        return self.bound_s / self.step_s

    @property
    def prediction_error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted_step_s / self.step_s - 1.0

    @property
    def binding_busy(self) -> float:
        """Busy share of the busier of link and device."""
        return max(self.link_busy, self.device_busy)


def run_name(policy: str, batches: int = 1) -> str:
    """Return what a run of a policy is called."""
    return policy if batches == 1 else f"{policy}, {batches} batches"
