"""The charts of a plan's page: what its studies found, as curves, in words, and in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from headrace.plan.outcome import Plan
from headrace.plan.policies import Policy
from headrace.plan.study import Curve, Studies, Study, StudyPoint
from headrace.report.chart import Chart, Mark, Point, Series, Shade, Spot
from headrace.report.chart_scale import AxisSpec
from headrace.report.palette import LINES
from headrace.report.plan_words import count, listed, seconds, share, shown_name, speed

_SAME = 1.005
_ABOUT_ALL = 0.9
_ALIKE = 1.01
_NEAR = 0.03


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with what is said about it.

    Attributes:
        key: a word for the page's script and style.
        title: what it shows.
        takeaway: what is to be seen.
        note: how to read it.
        chart: the chart.
        table: the numbers, a mapping a row.
    """

    key: str
    title: str
    takeaway: str
    note: str
    chart: Chart
    table: tuple[Mapping[str, object], ...]


@dataclass(frozen=True, slots=True)
class _Measure:
    """What is drawn of a step: its time, or its tokens a second."""

    value: Callable[[float, float], float]
    write: Callable[[float], str]
    least: str


_TIME = _Measure(lambda x, step_s: step_s, seconds, "at least")
_SPEED = _Measure(lambda x, step_s: x / step_s, lambda value: f"{speed(value)} tokens/s", "at most")


def figures(plan: Plan, asked: Policy, studies: Studies, ratio: float) -> tuple[Figure, ...]:
    """Return the page's charts.

    Args:
        plan: the chosen plan.
        asked: the policy that was asked for.
        studies: its studies.
        ratio: bytes of X for each byte of K/V.
    """
    return (
        _context_figure(plan, asked, studies.contexts),
        _share_figure(plan, asked, studies.shares, ratio),
        _rows_figure(plan, asked, studies.rows),
    )


def _context_figure(plan: Plan, asked: Policy, study: Study) -> Figure:
    takeaway = " ".join([*_here(plan, asked, study), *_ends(study, lambda x: f"{x:,.0f} tokens")])
    chart = Chart(
        AxisSpec(
            "context: cached tokens of a row, log scale", "log2", _whole, study.low, study.high
        ),
        AxisSpec("time of a step, log scale", "log", seconds),
        _curves(study, asked, _TIME),
        f"Step time against context, one curve for each policy. {takeaway}",
        lambda x: f"{x:,.0f} tokens",
        marks=(Mark(f"this workload: {study.here:,.0f}", x=study.here, strong=True),),
        shade=_shade(study, lambda x: f"{x:,.0f} tokens"),
    )
    table = _table(study, "context", _TIME)
    title = "Step time against context"
    return Figure("contexts", title, takeaway, _note(study), chart, table)


def _rows_figure(plan: Plan, asked: Policy, study: Study) -> Figure:
    sentences = [*_most_speed(study), *_ends(study, lambda x: count(round(x), "row"))]
    takeaway = " ".join(sentences)
    chart = Chart(
        AxisSpec("rows at once, log scale", "log2", _whole, study.low, study.high),
        AxisSpec("tokens a second while decoding, log scale", "log", speed),
        _curves(study, asked, _SPEED),
        f"Tokens a second against rows, one curve for each policy. {takeaway}",
        lambda x: count(round(x), "row"),
        marks=(Mark(f"this plan: {count(round(study.here), 'row')}", x=study.here, strong=True),),
        shade=_shade(study, lambda x: count(round(x), "row")),
    )
    table = _table(study, "rows", _SPEED)
    title = "Tokens a second against rows"
    return Figure("rows", title, takeaway, _note(study), chart, table)


def _share_figure(plan: Plan, asked: Policy, study: Study, ratio: float) -> Figure:
    takeaway = " ".join(_best_shares(plan, asked, study, ratio))
    series = [one for curve in reversed(study.curves) for one in _share_series(curve)]
    spots: list[Spot] = []
    for curve in study.curves:
        best = _best_point(curve)
        if best is None or any(abs(spot.x - best.x) < _NEAR for spot in spots):
            continue
        whose = "best" if curve.policy is Policy.RECOMPUTE else f"{curve.policy.value}’s best"
        label = f"{whose}: {share(best.x)}, {_value(best, _TIME)}"
        spots.append(Spot(best.x, best.best_s, label, LINES[curve.policy.value]))
    marks: list[Mark] = []
    if plan.policy not in (Policy.RECOMPUTE, Policy.KVPR):
        if plan.feasible:
            marks.append(Mark(f"{shown_name(plan, asked)}: {seconds(plan.step_s)}", y=plan.step_s))
    elif all(abs(spot.x - study.here) > _NEAR for spot in spots):
        marks.append(Mark(f"this plan: {share(study.here)}", x=study.here, strong=True))
    chart = Chart(
        AxisSpec("share of each prompt kept as X and rebuilt", "linear", share, 0.0, 1.0),
        AxisSpec("time of a step", "linear", seconds, 0.0),
        tuple(series),
        f"Step time against the share that is rebuilt. {takeaway}",
        share,
        marks=tuple(marks),
        spots=tuple(spots),
    )
    table = _table(study, "share", _TIME, share)
    note = (
        "Marked points are simulated; the thin lines are the least that the rates allow, latencies "
        "left out. Tokens that are not rebuilt are streamed."
    )
    return Figure(
        "shares", "Step time against the share that is rebuilt", takeaway, note, chart, table
    )


def _here(plan: Plan, asked: Policy, study: Study) -> Iterator[str]:
    """Yield how the policies do at the plan's place: the fastest three, and ``stream``."""
    found = {
        curve.policy: point
        for curve in study.curves
        for point in curve.points
        if point.x == study.here
    }
    if not found:
        yield f"{study.here:,.0f} tokens do not fit under any policy."
        return
    ranked = sorted(found, key=lambda policy: (found[policy].best_s, policy is not asked))
    told: list[tuple[list[Policy], StudyPoint]] = []
    for policy in ranked:
        if told and found[policy].best_s < _ALIKE * told[-1][1].best_s:
            told[-1][0].append(policy)
        else:
            told.append(([policy], found[policy]))
    told = told[:2] + [group for group in told[2:] if Policy.STREAM in group[0]]
    words = [
        f"{listed([policy.value for policy in policies])} {_value(point, _TIME)}"
        for policies, point in told
    ]
    yield f"At this workload’s {study.here:,.0f} tokens a step takes: {'; '.join(words)}."


def _ends(study: Study, place: Callable[[float], str]) -> Iterator[str]:
    """Yield where curves end, and why."""
    auto = study.curve(Policy.AUTO)
    if auto is not None and auto.lack:
        if auto.points:
            yield f"Beyond {place(auto.last_x)} nothing fits ({auto.lack})."
        else:
            yield f"Nothing fits at all{_because(auto)}."
            return
    most = auto.last_x if auto is not None else study.high
    ended: dict[str, dict[float, list[str]]] = {}
    for curve in study.curves:
        if curve.lack and curve.points and curve.last_x < _ABOUT_ALL * most:
            places = ended.setdefault(curve.lack, {})
            places.setdefault(curve.last_x, []).append(curve.policy.value)
    for lack, places in ended.items():
        words = [f"{listed(names)} at {place(x)}" for x, names in sorted(places.items())]
        yield f"{lack.capitalize()} ends {', '.join(words)}."


def _most_speed(study: Study) -> Iterator[str]:
    """Yield with how many rows ``auto`` makes most tokens a second."""
    auto = study.curve(Policy.AUTO)
    if auto is not None and auto.points:
        best = max(auto.points, key=lambda point: (point.x / point.best_s, point.x))
        by = "" if best.step_s is not None else "By the rates alone, "
        rows = count(round(best.x), "row")
        yield f"{by}auto makes most with {rows} at once: {_value(best, _SPEED)}."


def _because(curve: Curve | None) -> str:
    return f" ({curve.lack})" if curve is not None and curve.lack else ""


def _best_shares(plan: Plan, asked: Policy, study: Study, ratio: float) -> Iterator[str]:
    bests = {curve.policy: _best_point(curve) for curve in study.curves}
    best = bests.get(Policy.RECOMPUTE)
    if best is None:
        yield "No share of tokens that are rebuilt fits, as the others are streamed."
    elif best.x == 0:
        why = (
            f"X has {ratio:.2f} times the bytes of K/V, so each token that is rebuilt makes the "
            "link busier"
            if ratio >= 1
            else "the GPU has no time to spare for it"
        )
        yield f"Here it is best to rebuild nothing: {why}."
    else:
        curve = study.curve(Policy.RECOMPUTE)
        none = curve.points[0] if curve is not None else best
        yield (
            f"It is best to rebuild {share(best.x)}: that takes {_value(best, _TIME)}, streaming "
            f"everything {_value(none, _TIME)}, for X has {ratio:.2f} times the bytes of K/V."
        )
    paper = bests.get(Policy.KVPR)
    if paper is not None and best is not None and paper.best_s > _SAME * best.best_s and best.x > 0:
        yield f"The paper’s schedule does best at {share(paper.x)}, with {_value(paper, _TIME)}."
    if best is not None and plan.feasible and plan.step_s * _SAME < best.best_s:
        yield (
            f"{shown_name(plan, asked)} is faster than any point here, as it also keeps tokens on "
            "the GPU or lets the host attend."
        )


def _best_point(curve: Curve) -> StudyPoint | None:
    """Return the point that the planner chooses, if it fits."""
    return next(
        (point for point in curve.points if point.x == curve.best_x and not point.lack), None
    )


def _curves(study: Study, asked: Policy, measure: _Measure) -> tuple[Series, ...]:
    """Return a series for each policy; the one that was asked for is drawn last."""
    auto = study.curve(Policy.AUTO)
    series = []
    for curve in sorted(
        study.curves, key=lambda one: (one.policy is asked, one.policy is Policy.AUTO)
    ):
        made = _series(curve, curve.points, measure)
        # What ends where everything ends is not explained again beside the curve.
        sooner = auto is None or curve.last_x < _ABOUT_ALL * auto.last_x
        note, strong = curve.lack if sooner else "", curve.policy is asked
        series.append(
            replace(made, ended=bool(curve.lack), strong=strong, label=made.name, note=note)
        )
    return tuple(series)


def _series(curve: Curve, points: Sequence[StudyPoint], measure: _Measure) -> Series:
    """Return simulated points as marked ones; a thin line takes over between them."""
    marked = tuple(_point(point, measure) for point in points if point.step_s is not None)
    thick, thin = [], []
    for simulated, numbers in groupby(range(len(points)), lambda n: points[n].step_s is not None):
        run = list(numbers)
        if simulated:
            thick.append(tuple(_point(points[n], measure) for n in run))
        else:
            joined = range(max(0, run[0] - 1), min(len(points), run[-1] + 2))
            thin.append(tuple(_point(points[n], measure, least=True) for n in joined))
    name = curve.policy.value
    return Series(name, LINES[name], marked, tuple(thick), tuple(thin))


def _share_series(curve: Curve) -> Iterator[Series]:
    """Yield what fits, with the bound as a thin line, and faintly what does not."""
    style = LINES[curve.policy.value]
    name, strong = curve.policy.value, curve.policy is Policy.RECOMPUTE
    for lack, run in groupby(curve.points, lambda point: point.lack):
        points = tuple(run)
        bound = tuple(_point(point, _TIME, least=True) for point in points)
        if lack:
            yield Series(
                name, style, (), thin=(bound,), faint=True, label=name, note=f"would need {lack}"
            )
        else:
            marked = tuple(_point(point, _TIME) for point in points if point.step_s is not None)
            yield Series(name, style, marked, (marked,), (bound,), strong=strong, label=name)


def _point(point: StudyPoint, measure: _Measure, least: bool = False) -> Point:
    step_s = point.least_s if least else point.best_s
    shown = replace(point, step_s=None) if least else point
    return Point(point.x, measure.value(point.x, step_s), _value(shown, measure))


def _value(point: StudyPoint, measure: _Measure) -> str:
    """Return a point's value in words: simulated, or the least that the rates allow."""
    words = measure.write(measure.value(point.x, point.best_s))
    return words if point.step_s is not None else f"{measure.least} {words}"


def _table(
    study: Study, name: str, measure: _Measure, place: Callable[[float], str] | None = None
) -> tuple[Mapping[str, object], ...]:
    """Return a row for each place, with a column for each policy."""
    at = {curve.policy: {point.x: point for point in curve.points} for curve in study.curves}
    xs = sorted({x for points in at.values() for x in points})
    rows: list[Mapping[str, object]] = []
    for x in xs:
        row: dict[str, object] = {name: (place or _whole)(x)}
        for curve in study.curves:
            point = at[curve.policy].get(x)
            row[curve.policy.value] = _cell(point, measure, curve, x)
        rows.append(row)
    return tuple(rows)


def _cell(point: StudyPoint | None, measure: _Measure, curve: Curve, x: float) -> str:
    if point is None:
        return f"– {curve.lack}" if x > curve.last_x and curve.lack else ""
    return f"– {point.lack}" if point.lack else _value(point, measure)


def _shade(study: Study, place: Callable[[float], str]) -> Shade | None:
    auto = study.curve(Policy.AUTO)
    if auto is None or not auto.lack:
        return None
    if not auto.points:
        return Shade(study.low, f"nothing fits: {auto.lack}")
    return Shade(auto.last_x, f"at most {place(auto.last_x)}: {auto.lack}")


def _note(study: Study) -> str:
    if study.simulated:
        return "Each point is planned anew and simulated."
    return (
        "Each point is planned anew. Marked points are simulated; thin lines are the least that "
        "the rates allow, latencies and waits left out."
    )


def _whole(value: float) -> str:
    return f"{value:,.0f}"
