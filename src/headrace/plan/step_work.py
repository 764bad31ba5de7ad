"""A decode step as planning sees it: so many rows, so many cached tokens, in some order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from headrace.hardware.profile import MEASURED_PAGE_TOKENS
from headrace.model.shape import LayerGroup, ModelShape

PATHS = ("resident", "stream", "recompute", "host")
"""The ways of bringing a cached token to bear."""

WEIGHTS = "weights"
"""The column that says which share of the layers' weights is streamed."""


class Schedule(StrEnum):
    """The order of a step's operations where the rows are worked on in several batches."""

    ROW = "row"
    """A batch goes through all layers before the next one."""
    COLUMN = "column"
    """All batches go through a layer before the next one: its weights serve them all."""


@dataclass(frozen=True)
class StepWork:
    """A decode step of equal rows.

    Attributes:
        shape: the model.
        rows: sequences.
        context: cached tokens of a row.
        paged: how many of them are in pages; the others are on the device anyway.
        batches: groups in which the rows are worked on.
        schedule: the order, where there are several.
        serial: whether it is the paper's schedule, without look-ahead.
        page_tokens: tokens of a page.
        communication_s: seconds that the device spends on exchanging results with others.
    """

    shape: ModelShape
    rows: int
    context: int
    paged: int
    batches: int = 1
    schedule: Schedule = Schedule.ROW
    serial: bool = False
    communication_s: float = 0.0
    page_tokens: int = MEASURED_PAGE_TOKENS

    @property
    def passes(self) -> int:
        """How often a step uses each layer's weights."""
        return self.batches if self.schedule is Schedule.ROW else 1

    @property
    def paged_tokens(self) -> int:
        """Cached tokens of a layer in pages, over all rows: n."""
        return self.rows * self.paged

    @property
    def window(self) -> int:
        """Cached tokens of a row to which a windowed layer attends."""
        return min(self.shape.sliding_window or self.context, self.context)

    @property
    def rows_merged_last(self) -> float:
        """Rows whose merge nothing of their layer can overlap with.

        Column-by-column, that of a batch overlaps with the host's work for the next batch.
        """
        if self.schedule is Schedule.ROW:
            return float(self.rows)
        return float(self.rows - self.rows * (self.batches - 1) // self.batches)

    def columns(self, path: str) -> Iterator[tuple[str, LayerGroup, float]]:
        """Yield a path's column for each group of layers, the group, and its n·L."""
        groups = self.shape.groups
        for group in groups:
            name = column(path, group, len(groups))
            yield name, group, float(self.paged_tokens * group.layers)


def column(path: str, group: LayerGroup, groups: int) -> str:
    """Return the name of a path's column: ``stream``, or ``stream 8x128`` where layers differ."""
    return path if groups == 1 else f"{path} {group.name}"
