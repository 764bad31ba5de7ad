from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from tests.support import make_batch, make_model

from headrace.bench import rivals
from headrace.bench.catalogue import OFFLOADED, PLAIN, STATIC
from headrace.bench.comparison import Comparison
from headrace.bench.policies import BatchWork, MeasureOptions, PolicyRun
from headrace.bench.rivals import RIVALS, RivalRun, why_not
from headrace.bench.turns import take_turns
from headrace.engine.agreement import FLOAT32_TOLERANCE
from headrace.errors import MemoryBudgetError
from headrace.hf.weights import PlacedWeights
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.timeline import Origin

OPTIONS = MeasureOptions(rounds=2, steps_per_round=3, warmup_steps=1, first_steps=2)


@pytest.fixture
def work(emulated):
    batch = make_batch((300, 260))
    model = make_model("llama", max_position_embeddings=1024)
    return BatchWork(model, batch.input_ids, batch.attention_mask, emulated, "tiny")


class Clock:
    """Counts the steps of `transformers`' batch, each of which takes so long."""

    def __init__(self, monkeypatch, step_s):
        self.steps = 0
        moments = (step_s * number for number in count())
        clock = SimpleNamespace(perf_counter=lambda: next(moments))
        monkeypatch.setattr(rivals, "time", clock)
        step = rivals.StaticBatch.step

        def counted(*given):
            self.steps += 1
            return step(*given)

        monkeypatch.setattr(rivals.StaticBatch, "step", counted)


def turns(run):
    run.open()
    for _ in range(OPTIONS.rounds):
        run.take_turn()
    run.finish()
    return run.result


def test_the_plain_model_is_measured(work, monkeypatch):
    clock = Clock(monkeypatch, 0.25)
    found = turns(RivalRun(work, RIVALS[PLAIN], OPTIONS))
    assert found.rival == PLAIN
    # The link may be emulated, but a rival does not use it.
    assert found.origin is Origin.MEASURED
    assert found.steps.step_s == pytest.approx(0.25)
    assert found.steps.tokens_per_s == pytest.approx(2 / 0.25)
    assert found.steps.energy_j is None
    # As many steps as a policy goes through, for its prompt is short.
    assert clock.steps == OPTIONS.all_steps


def test_long_prompts_need_no_steps_that_do_not_count(work, monkeypatch):
    monkeypatch.setattr(rivals, "_SHORT_PROMPT_STEPS", 1.0)
    clock = Clock(monkeypatch, 0.25)
    turns(RivalRun(work, RIVALS[PLAIN], OPTIONS))
    assert clock.steps == OPTIONS.first_steps + OPTIONS.rounds * (1 + OPTIONS.steps_per_round)


def test_one_that_is_slow_takes_a_step_a_turn(work, monkeypatch):
    clock = Clock(monkeypatch, 2.0)
    found = turns(RivalRun(work, RIVALS[PLAIN], OPTIONS))
    assert clock.steps == 1 + OPTIONS.rounds
    assert found.steps.step_s == pytest.approx(2.0)


def test_prompts_in_parts_make_the_same_logits(work, monkeypatch):
    whole, parts = Comparison(FLOAT32_TOLERANCE), Comparison(FLOAT32_TOLERANCE)
    RivalRun(replace(work, comparison=whole), RIVALS[PLAIN], OPTIONS).open()
    monkeypatch.setattr(rivals, "_PREFILL_TOKENS", 64)
    RivalRun(replace(work, comparison=parts), RIVALS[PLAIN], OPTIONS).open()
    for one, other in zip(whole._logits, parts._logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_policies_agree_with_the_plain_model_in_the_same_run(work):
    comparison = Comparison(FLOAT32_TOLERANCE)
    work = replace(work, comparison=comparison)
    runs = [
        RivalRun(work, RIVALS[PLAIN], OPTIONS),
        *(PolicyRun(work, policy, OPTIONS) for policy in ("stream", "recompute")),
    ]
    assert take_turns(runs, 1, 9, False, lambda _: None) == []
    for policy in ("stream", "recompute"):
        found = comparison.agreement(policy)
        assert found.compared_with == PLAIN
        assert found.steps == OPTIONS.first_steps + 1
        assert found.tokens_identical
        assert found.passed


@pytest.mark.parametrize("name", [OFFLOADED, STATIC])
def test_caches_that_offload_need_a_gpu(work, name):
    assert "CUDA" in why_not(RIVALS[name], work, OPTIONS)
    run = RivalRun(work, RIVALS[name], OPTIONS)
    with pytest.raises(MemoryBudgetError, match="CUDA"):
        run.open()
    run.close()


def test_streamed_weights_are_nothing_for_transformers_alone(work):
    placed = PlacedWeights(work.model, CpuBackend(), 1.0)
    assert why_not(RIVALS[PLAIN], work, OPTIONS).startswith("100% of the layers' weights")
    placed.release()
    placed.backend.close()
    assert why_not(RIVALS[PLAIN], work, OPTIONS) is None


def test_a_cache_that_memory_cannot_hold_is_not_begun(work, monkeypatch):
    monkeypatch.setattr(rivals, "available_host_memory_bytes", lambda: 1 << 10)
    reason = why_not(RIVALS[PLAIN], work, OPTIONS)
    assert "the host has 1.0 KiB for it" in reason
