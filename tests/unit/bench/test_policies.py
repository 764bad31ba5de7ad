import itertools
import statistics
from types import SimpleNamespace

import pytest
import torch
from tests.support import make_batch, make_model, plain_cache

from headrace.bench import policies as measure
from headrace.bench.policies import (
    MeasureOptions,
    _counted,
    measure_policies,
)
from headrace.cli.measured import comparison_json, comparison_table
from headrace.engine.decoding import StaticBatch
from headrace.errors import ConfigurationError, MemoryBudgetError
from headrace.hf.rows_cache import RowsCache
from headrace.timeline import H2D_LANES, Lane, Origin, Span, Timeline, without_first

POLICIES = ("stream", "kvpr", "recompute", "resident")
OPTIONS = MeasureOptions(rounds=2, steps_per_round=2, warmup_steps=1)


@pytest.fixture(scope="module")
def model():
    """A model whose context spans several pages, so that there is something to load."""
    return make_model("llama", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def batch():
    return make_batch((300, 260))


def measured_with(model, batch, profile, policies=POLICIES, options=OPTIONS, **more):
    return measure_policies(
        model,
        batch.input_ids,
        batch.attention_mask,
        profile,
        policies,
        options,
        label="tiny",
        **more,
    )


def greedy(model, batch, count):
    """Return each row's greedy tokens by the plain model."""
    made = StaticBatch(model, batch.input_ids, batch.attention_mask, plain_cache(model))
    tokens = [made.prefill().argmax(dim=-1)]
    while len(tokens) < count:
        tokens.append(made.step(tokens[-1]).argmax(dim=-1))
    return tuple(tuple(row) for row in torch.stack(tokens, dim=1).tolist())


@pytest.fixture
def caches(monkeypatch):
    """Keep all caches that are made, and how many were open at once at most."""
    made, most = [], [0]

    class Counted(RowsCache):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(self)
            most[0] = max(most[0], sum(not cache._closed for cache in made))

    monkeypatch.setattr(measure, "RowsCache", Counted)
    return made, most


def test_figures_are_consistent(model, batch, emulated):
    lines = []
    found = measured_with(model, batch, emulated, progress=lines.append)
    assert [one.policy for one in found] == list(POLICIES)
    by_policy = {one.policy: one for one in found}
    for one in found:
        low, high = one.step_s_range
        assert 0 < low <= one.step_s <= high
        assert one.prefill_s > 0
        assert one.predicted_step_s > 0
        assert one.bound_s > 0
        assert one.prediction_error == pytest.approx(one.predicted_step_s / one.step_s - 1)
        assert 0 <= one.link_busy <= 1
        assert 0 < one.device_busy <= 1
        assert one.binding_busy == max(one.link_busy, one.device_busy)
        assert one.origin is Origin.EMULATED
        assert one.peak_gpu_bytes > 0
        assert one.grown_bytes == 0
        assert one.notes == ()
        # Timelines are of the steps of the last turn that count.
        assert one.measured.steps == one.predicted.steps == (0, 1)
        assert one.measured.origin is Origin.EMULATED
        assert one.predicted.origin is Origin.PREDICTED
        assert one.measured.label == one.predicted.label == f"tiny, {one.policy}"
    assert by_policy["resident"].link_bytes == 0
    assert by_policy["resident"].link_bytes_per_s == by_policy["resident"].link_busy == 0.0
    for policy in ("stream", "kvpr", "recompute"):
        assert by_policy[policy].link_bytes > 0
        assert by_policy[policy].host_bytes > 0
        assert by_policy[policy].link_bytes_per_s > 0
    assert by_policy["stream"].recompute_fraction == 0.0
    assert by_policy["recompute"].recompute_fraction > 0.0
    assert by_policy["recompute"].link_bytes < by_policy["stream"].link_bytes
    assert lines[:4] == [f"{policy}: prompts" for policy in POLICIES]
    assert lines[-1] == "round 2 of 2: resident"


def test_every_policy_makes_the_plain_models_tokens(model, batch, emulated):
    found = measured_with(model, batch, emulated)
    expected = greedy(model, batch, OPTIONS.all_steps + 1)
    assert {one.token_ids for one in found} == {expected}


def test_one_at_a_time_makes_the_same_tokens(model, batch, emulated, caches):
    made, most = caches
    policies = ("stream", "recompute")
    alternating = measured_with(model, batch, emulated, policies)
    assert most == [2]
    made.clear()
    most[0] = 0
    alone = MeasureOptions(2, 2, one_at_a_time=True)
    lines = []
    in_turn = measured_with(model, batch, emulated, policies, alone, progress=lines.append)
    assert most == [1]
    assert lines == [f"{policy}: prompts and 13 steps" for policy in policies]
    for one, other in zip(alternating, in_turn, strict=True):
        assert one.token_ids == other.token_ids
        assert one.link_bytes == other.link_bytes
        assert one.recompute_fraction == other.recompute_fraction


def test_steps_that_count_are_those_after_the_warm_up(model, batch, emulated, monkeypatch):
    """Every step takes a tenth of a second longer than the one before it."""
    moments = (moment for n in itertools.count(1) for moment in (0.0, 0.1 * n))
    clock = SimpleNamespace(perf_counter=lambda: next(moments))
    monkeypatch.setattr(measure, "time", clock)
    options = MeasureOptions(rounds=2, steps_per_round=3, warmup_steps=2)
    (one,) = measured_with(model, batch, emulated, ("stream",), options)
    # The step after the prompt is not looked at; a turn is of five that are timed, of which the
    # first two do not count, and five that are recorded; in the second turn those come first.
    counted = [0.1 * number for number in (3, 4, 5, 18, 19, 20)]
    assert one.step_s == pytest.approx(statistics.median(counted))
    assert one.step_s_range == pytest.approx((counted[0], counted[-1]))
    assert len(one.token_ids[0]) == options.all_steps + 1 == 22


def test_predictions_and_bounds_are_of_the_steps_that_count(model, batch, emulated, monkeypatch):
    bounds = itertools.count(1)
    monkeypatch.setattr(measure, "step_durations_s", lambda _: (90.0, 90.0, 1.0, 2.0, 6.0))
    monkeypatch.setattr(measure, "bound_s", lambda *_: float(next(bounds)))
    options = MeasureOptions(rounds=1, steps_per_round=3, warmup_steps=2)
    (one,) = measured_with(model, batch, emulated, ("stream",), options)
    assert one.predicted_step_s == 2.0
    # Only of the three steps that count is a bound asked for.
    assert (one.bound_s, next(bounds)) == (2.0, 4)


def test_budgets_reach_the_caches(model, batch, emulated, caches):
    options = MeasureOptions(1, 1, gpu_memory="1GiB", host_memory="2GiB")
    measured_with(model, batch, emulated, ("stream",), options)
    (cache,) = caches[0]
    options = cache._options
    assert (options.gpu_memory_bytes, options.host_memory_bytes) == (1 << 30, 2 << 30)
    with pytest.raises(MemoryBudgetError):
        measured_with(
            model, batch, emulated, ("stream",), MeasureOptions(1, 1, host_memory="16KiB")
        )


def test_all_caches_are_closed_also_after_an_error(model, batch, emulated, caches):
    with pytest.raises(ConfigurationError, match="policy is 'fast'"):
        measured_with(model, batch, emulated, ("stream", "fast"))
    measured_with(model, batch, emulated, ("stream",), MeasureOptions(1, 1))
    assert len(caches[0]) == 2
    assert all(cache._closed for cache in caches[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_comparison_says_how_many_times_as_fast_as_stream(model, batch, emulated):
    found = measured_with(model, batch, emulated, ("stream", "recompute"))
    stream, recompute = comparison_json(found)["policies"]
    assert stream["speedup_over_stream"] == 1.0
    assert recompute["speedup_over_stream"] == stream["step_s"] / recompute["step_s"]
    assert f"{recompute['speedup_over_stream']:.2f} ×" in comparison_table(found)
    (alone,) = comparison_json(found[1:])["policies"]
    assert alone["speedup_over_stream"] is None
    assert "×" not in comparison_table(found[1:])


def span(lane, step, start_s, finish_s, size_bytes=0):
    return Span(lane, str(lane), step, 0, 0, start_s, finish_s, size_bytes)


HAND_MADE = Timeline(
    Origin.MEASURED,
    "by hand",
    (
        span(Lane.LOAD_KV, 5, 0.0, 2.0, 20),
        span(Lane.COMPUTE, 5, 2.0, 4.0),
        span(Lane.LOAD_KV, 6, 2.0, 5.0, 30),
        span(Lane.LOAD_ACTIVATIONS, 6, 5.0, 6.0, 10),
        span(Lane.COMPUTE, 6, 6.0, 7.0),
        span(Lane.COMPUTE, 6, 7.5, 8.0),
        span(Lane.LOAD_KV, 7, 6.0, 8.0, 20),
        span(Lane.STORE_KV, 6, 8.0, 8.5, 5),
        span(Lane.COMPUTE, 7, 9.0, 12.0),
        # Ahead of a step that never ran.
        span(Lane.LOAD_KV, 8, 10.0, 13.0, 30),
    ),
)


def test_the_first_steps_and_loads_for_none_are_left_out():
    kept = without_first(HAND_MADE, 1)
    assert (kept.origin, kept.label) == (HAND_MADE.origin, HAND_MADE.label)
    assert kept.steps == (0, 1)
    assert [(one.lane, one.step, one.start_s) for one in kept.spans] == [
        (one.lane, one.step - 6, one.start_s) for one in HAND_MADE.spans if one.step in (6, 7)
    ]
    assert without_first(HAND_MADE, 2).steps == (0,)
    assert without_first(HAND_MADE, 0).steps == (0, 1, 2)
    assert without_first(HAND_MADE, 3).spans == ()


def test_shares_count_from_the_end_of_the_warm_up_to_the_end_of_the_last_step():
    kept, found = _counted(HAND_MADE, 1)
    assert kept == without_first(HAND_MADE, 1)
    # From 4 to 12: the link is busy from 4 to 8, and from 10 to 12 for a step that never ran.
    assert found.link_busy == pytest.approx(6 / 8)
    assert found.device_busy == pytest.approx((1.0 + 0.5 + 3.0) / 8)
    # 110 bytes in the 11 seconds in which any load was under way.
    assert found.link_bytes_per_s == pytest.approx(110 / 11)
    # A third of the load of 30 that began at 2, two thirds of the last one, and all in between.
    assert found.dram_bytes_per_s == pytest.approx((10 + 10 + 20 + 20) / 8)
    assert found.busy == pytest.approx(
        {
            Lane.LOAD_KV: (1 + 2 + 2) / 8,
            Lane.LOAD_ACTIVATIONS: 1 / 8,
            Lane.COMPUTE: 4.5 / 8,
            Lane.STORE_KV: 0.5 / 8,
        }
    )
    assert found.host_attend_bytes_per_s == found.rebuild_flops_per_s == 0.0


def test_more_warm_up_leaves_fewer_steps():
    kept, found = _counted(HAND_MADE, 2)
    assert kept.steps == (0,)
    assert found.link_busy == pytest.approx(2 / 4)
    assert found.device_busy == pytest.approx(3 / 4)


def test_without_loads_there_is_no_rate():
    compute = Timeline(Origin.MEASURED, "", HAND_MADE.select([Lane.COMPUTE]))
    _, found = _counted(compute, 1)
    assert (found.link_busy, found.link_bytes_per_s) == (0.0, 0.0)
    assert found.device_busy == pytest.approx(4.5 / 8)
    assert not compute.select(H2D_LANES)


def test_options_count_all_steps():
    assert MeasureOptions().all_steps == 1 + 2 * 3 * (1 + 3)
    assert MeasureOptions(2, 5, 4).all_steps == 1 + 2 * 2 * (4 + 5)
