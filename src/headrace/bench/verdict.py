"""What a suite's figures come to: is the choice good, are predictions right, is the bound near?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headrace.bench.catalogue import PLAIN

LONG_STEP_S = 0.2
"""From here on a step is long enough that its fixed costs should not count."""

_CHOICE = "auto"
_RESIDENT = ("resident", _CHOICE)


def verdict(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what some cases come to, as JSON has it.

    Args:
        cases: as ``figures.case_json`` makes them.

    Returns:
        ``passed``, whether all tokens agree; ``prediction_error_median`` and
        ``prediction_error_worst``, of all policies' steps, without their sign; ``auto_behind``, the
        most by which ``auto`` is slower than the best other policy of a case, as a share (below 0:
        it is always faster); ``bound_share_least`` and ``bound_share_median``, of steps of
        ``LONG_STEP_S`` or more; ``link_share_least``, the least share of the profile's link rate
        that ``stream`` reaches; ``fits_behind``, the most by which we are slower than plain
        transformers where everything fits. None where nothing tells.
    """
    errors = [abs(one["prediction_error"]) for case in cases for one in case["policies"]]
    long = [
        one["bound_share"]
        for case in cases
        for one in case["policies"]
        if one["step_s"] >= LONG_STEP_S
    ]
    link = [
        one["of_profile"]["link"]
        for case in cases
        for one in case["policies"]
        if one["policy"] == "stream" and one["of_profile"]["link"]
    ]
    return {
        "passed": all(case["passed"] for case in cases),
        "prediction_error_median": statistics.median(errors) if errors else None,
        "prediction_error_worst": max(errors, default=None),
        "auto_behind": _most(map(_auto_behind, cases)),
        "bound_share_least": min(long, default=None),
        "bound_share_median": statistics.median(long) if long else None,
        "link_share_least": min(link, default=None),
        "fits_behind": _most(map(_fits_behind, cases)),
    }


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _steps(case: Mapping[str, Any]) -> dict[str, float]:
    return {one["policy"]: one["step_s"] for one in case["policies"]}


def _auto_behind(case: Mapping[str, Any]) -> float | None:
    steps = _steps(case)
    auto = steps.pop(_CHOICE, None)
    return auto / min(steps.values()) - 1 if auto is not None and steps else None


def _fits_behind(case: Mapping[str, Any]) -> float | None:
    """Return how much slower we are than plain transformers, in a case without a budget."""
    plain = [one["step_s"] for one in case["rivals"] if one["rival"] == PLAIN]
    ours = [step_s for policy, step_s in _steps(case).items() if policy in _RESIDENT]
    if case["workload"]["gpu_memory"] is not None or not plain or not ours:
        return None
    return min(ours) / plain[0] - 1


def verdict_words(found: Mapping[str, Any]) -> list[str]:
    """Return a verdict in sentences."""
    words = [
        "All tokens agree with those of the run they are compared with."
        if found["passed"]
        else "TOKENS DIFFER from those of the run they are compared with."
    ]
    if found["prediction_error_median"] is not None:
        words.append(
            f"Predictions are off by {found['prediction_error_median']:.1%} (median), "
            f"{found['prediction_error_worst']:.1%} at most."
        )
    if found["auto_behind"] is not None:
        behind = found["auto_behind"]
        words.append(
            f"auto is slower than the best other policy by {behind:.1%} at most."
            if behind > 0
            else "auto is the fastest policy of every case."
        )
    if found["bound_share_least"] is not None:
        words.append(
            f"Steps of {LONG_STEP_S:g} s or more reach {found['bound_share_median']:.0%} of their "
            f"bound (median), {found['bound_share_least']:.0%} at least."
        )
    if found["link_share_least"] is not None:
        words.append(f"stream's link runs at {found['link_share_least']:.0%} of its rate at least.")
    if found["fits_behind"] is not None:
        behind = found["fits_behind"]
        slower = f"{behind:.1%} slower" if behind > 0 else f"{-behind:.1%} faster"
        words.append(
            f"Where everything fits, a step is {slower} than plain transformers' at worst."
        )
    return words
