"""Loads of streamed weights, and where in a step they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace.plan.operations import Kind
from headrace.timeline import Lane


@dataclass(frozen=True)
class Turn:
    """A layer's turn in a step: with its batch, or with all batches.

    Attributes:
        layer: the layer.
        weight_bytes: what is streamed of its weights.
        load_bytes: the loads of its cache.
    """

    layer: int
    weight_bytes: int
    load_bytes: Sequence[int]


class WeightLoads:
    """Brings in streamed weights among the loads of the cache.

    Each layer's weights have to be there when its turn begins, and may come once the turn that had
    their slot has ended. They come in the turn before their own, or, ahead, spread evenly over the
    step's loads: so the weights of quick layers (windowed ones) come while others are worked on. In
    a turn they are spread over the loads of the cache, in pieces of a granule or more, so that the
    device does not run out of granules meanwhile. The first granules, as many as fit the ring, come
    before any weights: they may be loaded while the turn before is still going on, and then there
    may be no free slot for weights yet.

    Args:
        add: appends an operation to the program and returns its index.
        turns: all turns of the step.
        ring_slots: staging slots of the cache.
        weight_slots: slots of the weights.
        ahead: whether they are spread over the step.
    """

    def __init__(
        self,
        add: Callable[..., int],
        turns: Sequence[Turn],
        ring_slots: int,
        weight_slots: int,
        ahead: bool,
    ) -> None:
        self._add = add
        self._turns = turns
        self._ring_slots = ring_slots
        self._ends = list(accumulate(turn.weight_bytes for turn in turns))
        self._until = _ends_by_turn(turns, self._ends, weight_slots, ahead)
        self._brought = 0
        self._coming = 0
        self._loads: list[list[int]] = [[] for _ in turns]
        self._turn = self._loaded = -1

    @property
    def number(self) -> int:
        """Of the weights of this turn, from 0; -1 where none are streamed."""
        return self._turn if self._ends[-1] else -1

    @property
    def loads(self) -> tuple[int, ...]:
        """Indices of the operations that bring this turn's weights."""
        return tuple(self._loads[self._turn])

    def begin_turn(self) -> None:
        """Begin the next turn; before the first one, bring its weights."""
        if self._turn < 0:
            self._bring(self._turns[0].weight_bytes)
        self._turn += 1
        self._loaded = 0
        if not self._turns[self._turn].load_bytes:
            self._bring(self._until[self._turn])

    def after_load(self) -> None:
        """Append what is due after one more of the turn's loads."""
        self._loaded += 1
        loads = self._turns[self._turn].load_bytes
        places = max(1, len(loads) - self._ring_slots)
        passed = places - (len(loads) - self._loaded)
        if passed <= 0:
            return
        start = self._until[self._turn - 1] if self._turn else self._turns[0].weight_bytes
        due = start + (self._until[self._turn] - start) * passed // places
        if passed == places or due - self._brought >= max(loads):
            self._bring(due)

    def _bring(self, until: int) -> None:
        """Append loads of weights until so many bytes of the step's have been brought."""
        while self._brought < until:
            # Layers without weights of their own are passed over.
            while self._ends[self._coming] <= self._brought:
                self._coming += 1
            whole = self._turns[self._coming].weight_bytes
            size_bytes = min(until, self._ends[self._coming]) - self._brought
            loads = self._loads[self._coming]
            loads.append(
                self._add(
                    Kind.LOAD_WEIGHTS,
                    Lane.LOAD_WEIGHTS,
                    self._turns[self._coming].layer,
                    -1 if size_bytes == whole else len(loads),
                    size_bytes,
                    weights_number=self._coming,
                )
            )
            self._brought += size_bytes


def _ends_by_turn(turns: Sequence[Turn], ends: Sequence[int], slots: int, ahead: bool) -> list[int]:
    """Return for each turn the weights to have brought at its end, in bytes from the step's begin.

    Those of the next turn are needed. Ahead, they grow as evenly with the loads of the cache as
    their slots allow.
    """
    loaded = list(accumulate(sum(turn.load_bytes) for turn in turns))
    first, last = turns[0].weight_bytes, len(turns) - 1
    until = []
    for number in range(len(turns)):
        needed = ends[min(number + 1, last)]
        allowed = ends[min(number + slots - 1, last)]
        even = first + (ends[-1] - first) * loaded[number] // max(1, loaded[-1])
        until.append(min(allowed, max(needed, even)) if ahead else needed)
    return until
