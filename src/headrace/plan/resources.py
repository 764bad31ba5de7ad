"""Resources that a step needs, and for how long: linear in the columns of the linear program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Resource(StrEnum):
    """What a step needs, and can need only for one thing at a time."""

    LINK = "link"
    """The link to the device."""
    STORE = "store"
    """The link to the host."""
    GPU = "gpu"
    """The device: its kernels run one after the other."""
    HOST = "host"
    """The host's cores: they attend between a layer's dense work and its merge, and never else."""
    DRAM = "dram"
    """Host memory: where it does not suffice for both, link and cores slow each other down."""
    SERIAL = "serial"
    """The paper's schedule: device and link wait for each other in every layer."""


class Rate(StrEnum):
    """The figure of the profile that a time is divided by."""

    LINK = "link"
    STORE = "store"
    ARITHMETIC = "arithmetic"
    DEVICE_MEMORY = "device memory"
    HOST = "host cores"
    DRAM = "host memory"


@dataclass(frozen=True, slots=True)
class Term:
    """Seconds that a column adds to a demand.

    Attributes:
        column: a path of a group of layers, ``weights``, or ``""`` for what no column changes.
        rate: what the seconds would be fewer with more of.
        seconds: at 1 of the column.
    """

    column: str
    rate: Rate
    seconds: float


@dataclass(frozen=True)
class Demand:
    """Seconds for which a step needs a resource: linear in the columns.

    Attributes:
        resource: what is needed.
        terms: the seconds, added up.
        row: name of the restriction "these seconds ≤ T" in the linear program.
    """

    resource: Resource
    terms: tuple[Term, ...]
    row: str

    @classmethod
    def of(cls, resource: Resource, *terms: Term, row: str = "") -> Demand:
        """Return the demand of some terms, whose row is by default named after the resource."""
        return cls(resource, terms, row or resource.value)

    def seconds(self, values: Mapping[str, float]) -> float:
        """Return the seconds at given columns."""
        return sum(_part_s(term, values) for term in self.terms)

    def seconds_by_rate(self, values: Mapping[str, float]) -> dict[Rate, float]:
        """Return the same, divided by what the seconds would be fewer with more of."""
        parts: dict[Rate, float] = {}
        for term in self.terms:
            parts[term.rate] = parts.get(term.rate, 0.0) + _part_s(term, values)
        return parts

    def coefficients(self) -> tuple[dict[str, float], float]:
        """Return the seconds by column, and those that no column changes."""
        by_column: dict[str, float] = {}
        for term in self.terms:
            by_column[term.column] = by_column.get(term.column, 0.0) + term.seconds
        constant = by_column.pop("", 0.0)
        return by_column, constant


def _part_s(term: Term, values: Mapping[str, float]) -> float:
    return term.seconds * values.get(term.column, 0.0) if term.column else term.seconds
