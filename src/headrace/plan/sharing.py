"""Host memory shared by the link and the host's cores: what that makes of a step.

Alone, the link's work would take L seconds and the cores' reading H. There are Q seconds of a step
in which the cores have nothing to read, and the link is alone. Let B and C be the two rates.

Where it was measured what they get while both are at work (``HardwareProfile.joint_rates``), the
link goes on at a share a of its own rate and the cores at a share b of theirs; a + b is at least 1,
as with turns. Let both be at work for t seconds. Then the step takes at least Q + H + (1 − b)·t, as
the cores have to make up for what they lose, and at least L + (1 − a)·t. The least step is the
longest of L, Q + H,

    Q + H + (1 − b)/a · (L − Q)        if the cores end last: all of the link's work that does not
                                       fit the Q seconds is beside theirs
    L + (1 − a)/b · H                  if the link does: all of the cores' work is beside its

Where it was not measured, they get no more together than M, what host memory gives, and share it
as it suits the step: how many cores attend is the runtime's to choose. Then it is, besides L and
Q + H,

    (L·B + H·C)/M + Q·(1 − B/M)        what both read, with nothing but the link's part in Q
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from headrace.hardware.profile import HardwareProfile
from headrace.plan.resources import Rate, Term

_LEAST_SHARE = 0.05
"""Of host memory that either gets while the other is at work, where that was not measured."""


@dataclass(frozen=True)
class Factor:
    """A number that is made of rates.

    Attributes:
        value: the number.
        growth: by how much it would grow for each share by which a rate is higher.
    """

    value: float
    growth: Mapping[Rate, float] = field(default_factory=dict)

    def of(self, terms: Iterable[Term], sign: float = 1.0) -> Iterator[Term]:
        """Yield terms times the number, with what more of its rates would spare, or the reverse."""
        for term in terms:
            yield Term(term.column, term.rate, sign * term.seconds * self.value)
            for rate, growth in self.growth.items():
                yield Term(term.column, rate, -sign * term.seconds * growth)


@dataclass(frozen=True)
class Sharing:
    """How link and cores share host memory on a machine."""

    profile: HardwareProfile

    @property
    def measured(self) -> bool:
        """Whether it was measured what they get while both are at work."""
        return self.profile.joint_rates is not None

    @property
    def slows(self) -> bool:
        """Whether host memory does not suffice for both."""
        total = self.profile.dram_rate
        if math.isinf(self.profile.host_attend_rate) or math.isinf(total):
            return False
        if self.measured:
            return min(self._measured_shares()) < 1
        return self.profile.h2d_bytes_per_s + self.profile.host_attend_rate > total

    def rows(
        self, link: list[Term], cores: list[Term], alone: list[Term]
    ) -> Iterator[tuple[str, list[Term]]]:
        """Yield the expressions above, each with a name, from the terms of L, H and Q."""
        if not self.slows:
            return
        if not self.measured:
            part = self._part(Rate.LINK, self.profile.h2d_bytes_per_s)
            cores_part = self._part(Rate.HOST, self.profile.host_attend_rate)
            shared = [*part.of(link), *cores_part.of(cores)]
            yield "dram", [*shared, *alone, *part.of(alone, -1.0)]
            return
        link_share, cores_share = self._measured_shares()
        slowed = Factor((1 - cores_share) / link_share)
        if slowed.value > 0:
            lost = [*slowed.of(link), *slowed.of(alone, -1.0)]
            yield "dram", [*alone, *cores, *lost]
        slowed = Factor((1 - link_share) / cores_share)
        if slowed.value > 0:
            yield "dram, link slowed", [*link, *slowed.of(cores)]

    def least_s(self, link_s: float, cores_s: float, alone_s: float) -> float:
        """Return the least time of a step by the expressions above: from L, H and Q in seconds."""
        terms = [[Term("", Rate.LINK, seconds)] for seconds in (link_s, cores_s, alone_s)]
        rows = [sum(term.seconds for term in row) for _, row in self.rows(*terms)]
        return max(rows, default=0.0)

    def shares(self, link_s: float, cores_s: float, alone_s: float) -> tuple[float, float]:
        """Return a and b in a step of L, H and Q seconds.

        Where they were not measured, both get what lets them end at the same time.
        """
        if not self.slows:
            return 1.0, 1.0
        if self.measured:
            return self._measured_shares()
        total = self.profile.dram_rate
        link, cores = self.profile.h2d_bytes_per_s, self.profile.host_attend_rate
        beside_bytes, cores_bytes = max(0.0, link_s - alone_s) * link, cores_s * cores
        share = beside_bytes / (beside_bytes + cores_bytes) if cores_bytes else 1.0
        share = min(1 - _LEAST_SHARE, max(_LEAST_SHARE, share))
        given = min(link, max(share * total, total - cores))
        return given / link, min(1.0, (total - given) / cores)

    def cores_s(self, link_s: float, cores_s: float, alone_s: float) -> float:
        """Return for how long the cores read in a step of L, H and Q seconds.

        That is H / b where the link is at work all the while. If the cores end last they have host
        memory to themselves from then on, and the step is theirs but for Q seconds.
        """
        _, share = self.shares(link_s, cores_s, alone_s)
        last_s = self.least_s(link_s, cores_s, alone_s) - alone_s
        return min(cores_s / share, max(cores_s, last_s))

    def link_s(self, link_s: float, cores_s: float, alone_s: float) -> float:
        """Return for how long the link is at work in a step of L, H and Q seconds.

        While the cores read it goes on at a share a of its own rate.
        """
        share, _ = self.shares(link_s, cores_s, alone_s)
        together_s = min(link_s / share, self.cores_s(link_s, cores_s, alone_s))
        return link_s + (1 - share) * together_s

    def _measured_shares(self) -> tuple[float, float]:
        """Return a and b as measured; at the least those of taking turns."""
        assert self.profile.joint_rates is not None
        link, cores = self.profile.joint_rates
        a = min(1.0, link / self.profile.h2d_bytes_per_s)
        b = min(1.0, cores / self.profile.host_attend_rate)
        return a / min(1.0, a + b), b / min(1.0, a + b)

    def _part(self, rate: Rate, bytes_per_s: float) -> Factor:
        """Return which part of host memory's rate one of them takes by itself."""
        part = bytes_per_s / self.profile.dram_rate
        return Factor(part, {rate: part, Rate.DRAM: -part})
