"""Studies: curves over context, share and rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan import studies
from headrace.plan.options import PlanOptions
from headrace.plan.plan import Planner
from headrace.plan.policies import Policy
from headrace.plan.studies import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    POSITIONS,
    context_study,
    make_studies,
    rows_study,
    share_study,
)
from headrace.plan.study import Curve, Study
from headrace.plan.workload import Workload

A100 = machine("a100-40gb-pcie4")
OPT = replace(published_shape("opt-6.7b"), num_layers=4)
LLAMA = replace(published_shape("llama-3-8b"), num_layers=4)
GIB = 2**30


def planner(
    shape=OPT, rows=64, prompt_len=1024, generate_len=32, batches=1, profile=A100, **options
) -> Planner:
    options = {"gpu_memory_bytes": 5 * GIB, "host_memory_bytes": 6 * GIB} | options
    workload = Workload(rows, prompt_len, generate_len, batches)
    return Planner(shape, workload, profile, PlanOptions.checked(**options))


def curve_of(study: Study, policy: Policy) -> Curve:
    found = study.curve(policy)
    assert found is not None
    return found


def test_the_plan_is_on_the_curves() -> None:
    asked = planner()
    plan = asked.plan()
    stream = asked.of(Policy.STREAM)
    found = make_studies(asked, plan, {Policy.AUTO: plan})
    for study, here in ((found.contexts, plan.workload.mean_context), (found.rows, 64)):
        assert study.here == here
        for policy, step_s in ((Policy.AUTO, plan.step_s), (Policy.STREAM, stream.step_s)):
            points = {point.x: point for point in curve_of(study, policy).points}
            assert points[here].step_s == pytest.approx(step_s)


@pytest.mark.parametrize("study_of", [context_study, rows_study])
def test_curves_ascend_and_hold_what_the_planner_says(study_of) -> None:
    asked = planner()
    study = study_of(asked)
    assert {curve.policy for curve in study.curves} == {Policy.AUTO, *asked.available()}
    for curve in study.curves:
        xs = [point.x for point in curve.points]
        assert xs == sorted(set(xs))
        assert all(study.low <= x <= study.high for x in xs)
        for point in curve.points:
            assert point.lack == ""
            assert point.step_s is None or point.step_s >= 0.98 * point.least_s
    autos = {point.x: point.best_s for point in curve_of(study, Policy.AUTO).points}
    for curve in study.curves:
        shared = [point for point in curve.points if point.x in autos]
        assert all(autos[point.x] <= 1.01 * point.best_s for point in shared)


def test_a_curve_ends_at_the_last_number_that_fits() -> None:
    asked = planner(stream_weights=False)
    study = rows_study(asked)
    resident = curve_of(study, Policy.RESIDENT)
    assert resident.lack == DEVICE_MEMORY
    rows = round(resident.last_x)
    for number, fits in ((rows, True), (rows + 1, False)):
        there = replace(asked, workload=replace(asked.workload, rows=number))
        assert there.of(Policy.RESIDENT).feasible is fits
    assert study.high > rows


def test_host_memory_can_end_all_curves() -> None:
    study = rows_study(planner(host_memory_bytes=2 * GIB))
    assert curve_of(study, Policy.STREAM).lack == HOST_MEMORY
    auto = curve_of(study, Policy.AUTO)
    assert auto.lack
    assert auto.last_x < study.high


def test_contexts_end_at_the_models_positions() -> None:
    study = context_study(planner(prompt_len=1500, rows=2))
    assert study.high <= OPT.max_context
    assert not curve_of(study, Policy.STREAM).lack
    too_long = context_study(planner(prompt_len=3000, rows=2))
    assert curve_of(too_long, Policy.STREAM).lack == POSITIONS
    assert too_long.here > OPT.max_context


def test_where_nothing_fits_there_are_no_points() -> None:
    study = rows_study(planner(gpu_memory_bytes=GIB // 64))
    assert all(not curve.points for curve in study.curves)
    assert {curve.lack for curve in study.curves} == {DEVICE_MEMORY}


def test_rebuilding_pays_for_multi_head_attention_only() -> None:
    for shape, best_x in ((OPT, 1.0), (LLAMA, 0.0)):
        asked = planner(shape)
        study = share_study(asked, asked.plan())
        curve = curve_of(study, Policy.RECOMPUTE)
        assert curve.best_x == pytest.approx(best_x, abs=0.02)
        simulated = [point for point in curve.points if point.step_s is not None]
        assert len(simulated) > 5
        fastest = min(simulated, key=lambda point: point.step_s)
        assert fastest.x == pytest.approx(best_x, abs=0.02)
        assert (curve.points[0].x, curve.points[-1].x) == (0.0, 1.0)


def test_the_papers_schedule_does_best_between() -> None:
    asked = planner()
    curve = curve_of(share_study(asked, asked.plan()), Policy.KVPR)
    assert curve.best_x is not None
    assert 0.5 < curve.best_x < 0.9
    best = min(curve.points, key=lambda point: point.least_s)
    assert best.x == pytest.approx(curve.best_x, abs=0.06)


def test_large_programs_are_simulated_at_few_points(monkeypatch) -> None:
    asked = planner()
    plan = asked.plan()
    assert context_study(asked, {Policy.AUTO: plan}).simulated
    monkeypatch.setattr(studies, "SIMULATED_WORK", 1)
    found = make_studies(asked, plan, {Policy.AUTO: plan})
    for study in (found.contexts, found.rows):
        points = [point for curve in study.curves for point in curve.points]
        assert [point.x for point in points if point.step_s is not None] == [study.here]
    assert all(point.step_s is None for curve in found.shares.curves for point in curve.points)


def test_batches_and_throughput_are_studied_with_the_rows_of_the_plan() -> None:
    asked = planner(
        rows=6, prompt_len=512, batches=2, objective="throughput", gpu_memory_bytes=2 * GIB
    )
    plan = asked.plan()
    found = make_studies(asked, plan, {Policy.AUTO: plan})
    assert found.rows.here == plan.workload.rows
    assert found.rows.high >= 6
    assert found.contexts.here == plan.workload.mean_context


def test_fewer_paths_are_fewer_curves() -> None:
    asked = planner(paths=("stream", "recompute"))
    study = context_study(asked)
    policies = {curve.policy for curve in study.curves}
    assert policies == {Policy.AUTO, Policy.STREAM, Policy.RECOMPUTE, Policy.KVPR}


def test_a_share_that_is_asked_for_does_not_bind_auto() -> None:
    asked = planner(policy="recompute", recompute_fraction=0.5)
    study = context_study(asked)
    autos = {point.x: point.best_s for point in curve_of(study, Policy.AUTO).points}
    shared = [point for point in curve_of(study, Policy.RECOMPUTE).points if point.x in autos]
    assert len(shared) > 5
    assert all(autos[point.x] <= 1.01 * point.best_s for point in shared)
