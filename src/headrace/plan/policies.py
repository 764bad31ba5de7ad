"""Closed forms: which share of the cache to rebuild, and how long a layer then takes.

All times are of one layer, in steady state, with latencies left out. They are linear in the share
x of the cached tokens that is rebuilt from X, so each optimum is where two lines cross.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from enum import StrEnum

from headrace.errors import ConfigurationError


class Policy(StrEnum):
    """A named way to choose the split."""

    RESIDENT = "resident"
    """All K/V stay on the device."""
    STREAM = "stream"
    """All K/V come from the host in every step, a granule at a time, with look-ahead."""
    KVPR = "kvpr"
    """The schedule of KVPR (arXiv 2411.17089): first X of a part, then K/V of the rest while the
    device rebuilds; layer by layer."""
    RECOMPUTE = "recompute"
    """X of a part and K/V of the rest, interleaved, with look-ahead over layers and steps."""
    HOST = "host"
    """The host attends to a part of the K/V where it lies."""
    AUTO = "auto"
    """The fastest that fits."""


@dataclass(frozen=True)
class Split:
    """How a layer's cached tokens are divided over the paths: fractions that sum to 1.

    They are fractions of the tokens in pages. The newest tokens, less than a block of each row, are
    on the device besides.

    Attributes:
        resident: K/V on the device.
        stream: K/V on the host, brought to the device in every step.
        recompute: X on the host, brought to the device and made into K/V in every step.
        host: K/V on the host, attended there.

    Raises:
        ConfigurationError: a fraction is not from 0 to 1, or they do not sum to 1.
    """

    resident: float = 0.0
    stream: float = 0.0
    recompute: float = 0.0
    host: float = 0.0

    def __post_init__(self) -> None:
        fractions = astuple(self)
        if not all(0 <= fraction <= 1 for fraction in fractions) or not math.isclose(
            sum(fractions), 1, abs_tol=1e-9
        ):
            raise ConfigurationError(
                f"the split resident, stream, recompute, host is {fractions}; allowed are four "
                "fractions from 0 to 1 that sum to 1"
            )

    def grown(self, admitted: int, context: int) -> Split:
        """Return the split of ``context`` tokens, if this one was fixed at ``admitted`` tokens.

        Newer tokens are K/V: on the device if all are, else on the host (as ``stream``).
        """
        if self.resident == 1 or context <= admitted or context == 0:
            return self
        share = admitted / context
        resident, recompute, host = (
            share * fraction for fraction in (self.resident, self.recompute, self.host)
        )
        return Split(resident, max(0.0, 1 - resident - recompute - host), recompute, host)


@dataclass(frozen=True)
class LayerTimes:
    """What one layer's cached tokens ask of link and device, in seconds.

    Attributes:
        stream_link_s: bringing K/V of all cached tokens, κN/B.
        recompute_link_s: bringing X of all cached tokens, χN/B.
        rebuild_gpu_s: rebuilding K/V of all cached tokens, ρN/F (or, where the memory is slower,
            reading X and writing K/V).
        attend_gpu_s: attending to K/V of all cached tokens, by whichever path they come.
        fixed_gpu_s: the device's work that does not depend on the split.
        last_gpu_s: of that, besides, what the paper's schedule does while nothing travels: what
            ends a layer, windowed layers, the head. The paper does not count it.
    """

    stream_link_s: float
    recompute_link_s: float
    rebuild_gpu_s: float
    attend_gpu_s: float = 0.0
    fixed_gpu_s: float = 0.0
    last_gpu_s: float = 0.0

    @classmethod
    def from_rates(
        cls,
        kv_bytes: float,
        activation_bytes: float,
        rebuild_flops: float,
        link_bytes_per_s: float,
        gemm_flops_per_s: float,
    ) -> LayerTimes:
        """Return the times that the paper counts: the link's, and the rebuilding's.

        Args:
            kv_bytes: κ, or κ·N.
            activation_bytes: χ, or χ·N.
            rebuild_flops: ρ, or ρ·N.
            link_bytes_per_s: B, host to device.
            gemm_flops_per_s: F.
        """
        return cls(
            kv_bytes / link_bytes_per_s,
            activation_bytes / link_bytes_per_s,
            rebuild_flops / gemm_flops_per_s,
        )


def stream_split() -> Split:
    """Return the split of ``stream``."""
    return Split(stream=1.0)


def resident_split() -> Split:
    """Return the split of ``resident``."""
    return Split(resident=1.0)


def recompute_split(fraction: float) -> Split:
    """Return the split that rebuilds ``fraction`` of the tokens and streams the rest."""
    return Split(stream=1.0 - fraction, recompute=fraction)


def recompute_fraction(times: LayerTimes) -> float:
    """Return the share x to rebuild where everything overlaps (``recompute``).

    With S, X, R, A, G, U for the six times, the layer takes
    max(S − (S − X)·x, U + G + A + R·x). For X ≥ S (that is r ≥ 1) the link gains nothing, and
    x = 0. Otherwise the first falls and the second does not, so the best x is where they cross:
    x = (S − U − G − A) / (S − X + R), clipped to [0, 1]. With U = G = A = 0 and divided by
    S = κN/B this is 1 / (1 − r + ρB/(κF)).
    """
    return _crossing(times, times.fixed_gpu_s + times.last_gpu_s)


def kvpr_fraction(times: LayerTimes) -> float:
    """Return the share x to rebuild in the paper's schedule (``kvpr``).

    KVPR (arXiv 2411.17089, section 3) has t(l) = χl/B + max(ρl/F, κ(N − l)/B). With the device's
    other work this is U + max(X·x + S·(1 − x), max(X·x, G) + A + R·x): the dense work runs while X
    travels, attending follows rebuilding, and the next layer's loads wait for the rest. The first
    falls in x if X < S, and the second rises, so the best x is the lesser of the crossings
    (S − A) / (S + R) and (S − G − A) / (S − X + R), clipped to [0, 1]; with G = A = 0 that is
    1 / (1 + ρB/(κF)). For X ≥ S it is 0.
    """
    saving = times.stream_link_s - times.recompute_link_s
    if saving <= 0:
        return 0.0
    behind_activations = (times.stream_link_s - times.attend_gpu_s) / (
        times.stream_link_s + times.rebuild_gpu_s
    )
    return min(_clipped(behind_activations), _crossing(times, times.fixed_gpu_s))


def _crossing(times: LayerTimes, fixed_gpu_s: float) -> float:
    """Return where S − (S − X)·x, the link's time, is the device's, fixed + A + R·x."""
    saving = times.stream_link_s - times.recompute_link_s
    if saving <= 0:
        return 0.0
    spare = times.stream_link_s - fixed_gpu_s - times.attend_gpu_s
    return _clipped(spare / (saving + times.rebuild_gpu_s))


def best_fraction(policy: Policy, times: LayerTimes) -> float:
    """Return the share to rebuild under a policy (0 for those that rebuild nothing)."""
    if policy is Policy.KVPR:
        return kvpr_fraction(times)
    if policy is Policy.RECOMPUTE:
        return recompute_fraction(times)
    return 0.0


def layer_time_s(policy: Policy, times: LayerTimes, fraction: float = 0.0) -> float:
    """Return the time of a layer under a policy.

    Args:
        policy: ``resident``, ``stream``, ``kvpr`` or ``recompute``.
        times: what the layer asks of link and device.
        fraction: share of the cached tokens that is rebuilt (``kvpr`` and ``recompute``).

    Raises:
        ConfigurationError: there is no closed form for the policy.
    """
    link_s = times.recompute_link_s * fraction + times.stream_link_s * (1 - fraction)
    gpu_s = times.attend_gpu_s + times.rebuild_gpu_s * fraction
    fixed_s = times.fixed_gpu_s + times.last_gpu_s
    match policy:
        case Policy.RESIDENT:
            return fixed_s + times.attend_gpu_s
        case Policy.STREAM:
            return max(times.stream_link_s, fixed_s + times.attend_gpu_s)
        case Policy.KVPR:
            before_s = max(times.recompute_link_s * fraction, times.fixed_gpu_s)
            return times.last_gpu_s + max(link_s, before_s + gpu_s)
        case Policy.RECOMPUTE:
            return max(link_s, fixed_s + gpu_s)
    raise ConfigurationError(
        f"policy is {policy.value!r}; closed forms are there for resident, stream, kvpr, recompute"
    )


def policy_times(times: LayerTimes) -> dict[Policy, float]:
    """Return the time of a layer under each policy, each at its best share to rebuild."""
    policies = (Policy.RESIDENT, Policy.STREAM, Policy.KVPR, Policy.RECOMPUTE)
    return {
        policy: layer_time_s(policy, times, best_fraction(policy, times)) for policy in policies
    }


def _clipped(fraction: float) -> float:
    return min(1.0, max(0.0, fraction))
