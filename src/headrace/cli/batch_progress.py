"""What ``headrace batch`` says of its work: while it goes on, and at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from headrace.timeline import Origin

if TYPE_CHECKING:
    from headrace.engine.batch_run import BatchCounts

_TERMINAL_EVERY_S = 0.2
_LOG_EVERY_S = 10.0


class Reporter:
    """Shows the counts of a run: often in the one line of a terminal, at times in a log.

    Args:
        show: takes a line of text.
        clock: returns seconds.
    """

    def __init__(
        self, show: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._show = show
        self._clock = clock
        self._every_s = _TERMINAL_EVERY_S if sys.stderr.isatty() else _LOG_EVERY_S
        self._next_s = clock()

    def __call__(self, counts: BatchCounts) -> None:
        """Show the counts, unless others were shown a moment ago."""
        now_s = self._clock()
        if now_s < self._next_s and counts.done < counts.total:
            return
        self._next_s = now_s + self._every_s
        self._show(progress_line(counts, now_s))


def progress_line(counts: BatchCounts, now_s: float) -> str:
    """Return how far a run is, how fast it goes, and when it will end at this rate.

    Args:
        counts: so far.
        now_s: the time, by the clock that ``counts.start_s`` is of.
    """
    words = [f"{counts.done:,}/{counts.total:,} requests"]
    made = counts.completed + counts.failed - counts.refused
    seconds = 0.0 if counts.start_s is None else now_s - counts.start_s
    if seconds > 0 and made:
        left_s = (counts.total - counts.done) * seconds / made
        words += [
            f"{made / seconds:.1f} requests/s",
            f"{counts.generated_tokens / seconds:.1f} tokens/s",
            f"{_clock_time(left_s)} left",
        ]
    words.append(_errors(counts.failed + counts.skipped_failed))
    return ", ".join(words)


def summary_json(
    counts: BatchCounts, seconds: float, path: str, origin: Origin = Origin.MEASURED
) -> dict[str, Any]:
    """Return what a run did, as JSON has it.

    Args:
        counts: at its end.
        seconds: from the command to the end, with checks and loading.
        path: of the output.
        origin: of the rate: measured, or emulated where a link was slowed down.
    """
    return {
        "total": counts.total,
        "completed": counts.completed,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "skipped_failed": counts.skipped_failed,
        "prompt_tokens": counts.prompt_tokens,
        "tokens": counts.generated_tokens,
        "tokens_per_s": counts.generated_tokens / counts.engine_s if counts.engine_s else 0.0,
        "origin": origin.value,
        "seconds": seconds,
        "output": path,
    }


def summary_text(data: Mapping[str, Any]) -> str:
    """Return the same for people."""
    before = f", {data['skipped']:,} were done before" if data["skipped"] else ""
    return (
        f"{data['total']:,} requests have their results in {data['output']}: "
        f"{data['completed']:,} completed now{before}; "
        f"{_errors(data['failed'] + data['skipped_failed'])}\n"
        f"{data['tokens']:,} tokens, {data['tokens_per_s']:.1f} tokens/s ({data['origin']}); "
        f"{_clock_time(data['seconds'])} in all"
    )


def _errors(count: int) -> str:
    return f"{count:,} {'error' if count == 1 else 'errors'}"


def _clock_time(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours in front if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
