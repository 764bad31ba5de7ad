"""Lets several runs take turns, so that what else the machine does strikes them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from headrace.bench.measurement import Unable
from headrace.engine.calm import calm_collector
from headrace.hardware.spare_memory import release_spare_memory


class Run(Protocol):
    """One way of running a batch, and what was measured of it so far.

    Attributes:
        name: what it is called.
    """

    name: str

    def open(self) -> None:
        """Run the prompts, and the first steps."""

    def take_turn(self) -> None:
        """Take a few steps, some of which are timed."""

    def finish(self) -> None:
        """Note the result, and close."""

    def close(self) -> None:
        """Give back all memory; may be called again, and before it was opened."""


def take_turns(
    runs: Sequence[Run],
    rounds: int,
    steps: int,
    one_at_a_time: bool,
    progress: Callable[[str], None],
    forgiven: tuple[type[Exception], ...] = (),
    failed: Callable[[str], None] = lambda _: None,
) -> list[Unable]:
    """Run them all.

    Args:
        runs: what takes turns; the first is opened first.
        rounds: turns of each.
        steps: that each of them takes, for ``progress``.
        one_at_a_time: open one after the other; rounds then do not alternate.
        progress: is called with a line of text now and then.
        forgiven: errors that end one run only.
        failed: is called with the name of such a run.

    Returns:
        The runs that could not run, with the reason of each.
    """
    unable: dict[str, str] = {}

    def attempt(run: Run, action: Callable[[], None]) -> None:
        if run.name in unable:
            return
        try:
            action()
        except forgiven as error:
            unable[run.name] = " ".join(str(error).split())[:400] or type(error).__name__
        if run.name in unable:
            # Only now, when the error and all that its frames hold are gone, is memory free.
            run.close()
            failed(run.name)
            release_spare_memory()

    try:
        with calm_collector(tidy=True):
            order = [[run] for run in runs] if one_at_a_time else [list(runs)]
            for group in order:
                for run in group:
                    words = f"prompts and {steps} steps" if one_at_a_time else "prompts"
                    progress(f"{run.name}: {words}")
                    attempt(run, run.open)
                for number in range(rounds):
                    for run in group:
                        if not one_at_a_time and run.name not in unable:
                            progress(f"round {number + 1} of {rounds}: {run.name}")
                        attempt(run, run.take_turn)
                for run in group:
                    attempt(run, run.finish)
                release_spare_memory()
    finally:
        for run in runs:
            run.close()
    return [Unable(name, reason) for name, reason in unable.items()]
