"""What a caller asks of planning, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from headrace.errors import ConfigurationError
from headrace.hardware.profile import HardwareProfile
from headrace.plan.demands import PATHS, Schedule
from headrace.plan.policies import Policy


class Objective(StrEnum):
    """What is to be made best."""

    LATENCY = "latency"
    """The least step time for the given rows."""
    THROUGHPUT = "throughput"
    """The most tokens a second, over numbers of rows up to the given one."""


Kind = TypeVar("Kind", bound=StrEnum)

POLICY_PATHS = {
    Policy.RESIDENT: ("resident",),
    Policy.STREAM: ("stream",),
    Policy.KVPR: ("stream", "recompute"),
    Policy.RECOMPUTE: ("stream", "recompute"),
    Policy.HOST: ("host",),
    Policy.AUTO: PATHS,
}
"""The paths of each policy."""


@dataclass(frozen=True)
class PlanOptions:
    """How to plan.

    Attributes:
        policy: how to choose the split.
        objective: what to make best.
        gpu_memory_bytes: device memory to use, at most the machine's; None: all of it.
        host_memory_bytes: host memory to use, at most the machine's; None: all of it.
        recompute_fraction: share of each prompt's tokens to keep as X, 0 to 1; None: the best.
        paths: paths that may be taken.
        stream_weights: whether weights may stay on the host, and be streamed, where the device's
            memory does not hold them, or is better used for the cache.
        weights_streamed: share of the layers' weights that is streamed, 0 to 1, where that is
            settled; None: the best.
        schedule: row-by-row or column-by-column; None: the faster one, where there are batches.
        prefill_tokens: tokens of prompts that go through the model at once; None: chosen (see
            ``prompt_parts``).
        embedding_on_host: whether the input embedding stays on the host; None: as the shape says,
            or, where weights may, if it has a table of its own and not everything fits on the
            device (see ``embedding``).
        communication_s: seconds of a step in which the device exchanges results with others.
    """

    policy: Policy = Policy.AUTO
    objective: Objective = Objective.LATENCY
    gpu_memory_bytes: float | None = None
    host_memory_bytes: float | None = None
    recompute_fraction: float | None = None
    paths: tuple[str, ...] = field(default=PATHS)
    stream_weights: bool = True
    weights_streamed: float | None = None
    schedule: Schedule | None = None
    prefill_tokens: int | None = None
    embedding_on_host: bool | None = None
    communication_s: float = 0.0

    @classmethod
    def checked(
        cls,
        *,
        policy: Policy | str = Policy.AUTO,
        objective: Objective | str = Objective.LATENCY,
        gpu_memory_bytes: float | None = None,
        host_memory_bytes: float | None = None,
        recompute_fraction: float | None = None,
        paths: Sequence[str] = PATHS,
        stream_weights: bool = True,
        weights_streamed: float | None = None,
        schedule: Schedule | str | None = None,
        prefill_tokens: int | None = None,
        embedding_on_host: bool | None = None,
    ) -> PlanOptions:
        """Return options, or raise for one that is not allowed.

        Raises:
            ConfigurationError: a name is unknown, a number is not allowed, or two settings do not
                go together.
        """
        chosen = _named(Policy, "policy", policy)
        allowed = _checked_paths(paths)
        missing = [path for path in POLICY_PATHS[chosen] if path not in allowed]
        if missing and chosen is not Policy.AUTO:
            raise ConfigurationError(
                f"policy {chosen.value!r} needs the paths {', '.join(POLICY_PATHS[chosen])}, but "
                f"paths allows only {', '.join(allowed)}; change policy or paths"
            )
        budgets = {"gpu_memory": gpu_memory_bytes, "host_memory": host_memory_bytes}
        if weights_streamed is not None and not 0.0 <= weights_streamed <= 1.0:
            raise ConfigurationError(
                f"weights_streamed is {weights_streamed}; allowed are fractions from 0 to 1"
            )
        if prefill_tokens is not None and prefill_tokens < 1:
            raise ConfigurationError(f"prefill_tokens is {prefill_tokens}; allowed is 1 or more")
        for setting, value in budgets.items():
            if value is not None and not value > 0:
                raise ConfigurationError(f"{setting} is {value} bytes; it must be above 0")
        return cls(
            _with_fraction(chosen, recompute_fraction),
            _named(Objective, "objective", objective),
            gpu_memory_bytes,
            host_memory_bytes,
            recompute_fraction,
            allowed,
            stream_weights,
            weights_streamed,
            None if schedule is None else _named(Schedule, "schedule", schedule),
            prefill_tokens,
            embedding_on_host,
        )

    def on(self, profile: HardwareProfile) -> PlanOptions:
        """Return the same, without paths that the machine lacks.

        Raises:
            ConfigurationError: the policy needs such a path.
        """
        if profile.host_attends or "host" not in self.paths:
            return self
        left = tuple(path for path in self.paths if path != "host")
        if self.policy is Policy.HOST or not left:
            raise ConfigurationError(
                f"policy {self.policy.value!r} lets the host attend, and the figures of "
                f"{profile.name} say nothing of its cores; choose another policy or hardware"
            )
        return replace(self, paths=left)


def _named(kind: type[Kind], setting: str, value: str) -> Kind:
    try:
        return kind(value)
    except ValueError:
        raise ConfigurationError(f"{setting} is {value!r}; allowed are {', '.join(kind)}") from None


def _checked_paths(paths: Sequence[str]) -> tuple[str, ...]:
    unknown = [path for path in paths if path not in PATHS]
    if unknown or not paths:
        raise ConfigurationError(
            f"paths is {', '.join(paths) or 'empty'}; allowed are some of {', '.join(PATHS)}"
        )
    return tuple(path for path in PATHS if path in paths)


def _with_fraction(policy: Policy, recompute_fraction: float | None) -> Policy:
    """Return the policy, ``recompute`` for an ``auto`` with a fraction; refuse what cannot be."""
    if recompute_fraction is None:
        return policy
    if not 0 <= recompute_fraction <= 1:
        raise ConfigurationError(
            f"recompute_fraction is {recompute_fraction}; allowed are fractions from 0 to 1"
        )
    if policy is Policy.AUTO:
        return Policy.RECOMPUTE
    if policy not in (Policy.RECOMPUTE, Policy.KVPR) and recompute_fraction > 0:
        raise ConfigurationError(
            f"recompute_fraction is {recompute_fraction}, but policy {policy.value!r} rebuilds "
            "nothing; change policy to 'recompute' or 'kvpr', or leave recompute_fraction out"
        )
    return policy
