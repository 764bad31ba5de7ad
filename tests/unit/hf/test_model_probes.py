import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tests.support import shared_model

from headrace.hf import model_probes, probe_timing, step_probes
from headrace.hf.machine import shape_of
from headrace.hf.model_probes import (
    attend_call_s,
    attend_rate,
    load_call_s,
    rebuild_call_s,
    rebuild_rate,
)
from headrace.hf.step_probes import dense_rate
from headrace.model.cost import head_weight_bytes, layer_weight_bytes


def test_rates_of_the_demo_are_positive(demo, small):
    shape = shape_of(demo.model)
    cache = (shape, torch.device("cpu"), torch.float32)
    for rate in (
        attend_rate(*cache),
        load_call_s(*cache[1:]),
        rebuild_rate(demo.model, shape),
        *(dense_rate(demo.model, shape, rows) for rows in (1, 3)),
        dense_rate(demo.model, shape, 3, resident=True),
    ):
        assert 0 < rate < math.inf
    for call_s in (attend_call_s(*cache), rebuild_call_s(demo.model, shape)):
        assert 0 <= call_s < math.inf


@pytest.mark.parametrize(
    ("device", "call_s"),
    [("cuda", 7.0), ("cpu", 3.0)],  # a call takes 3 s, and 2 s more for each page
)
def test_a_call_is_without_its_work_where_both_add_up(device, call_s):
    measured = model_probes._call_s(lambda pages: 3.0 + 2.0 * pages, 2, torch.device(device))
    assert measured == pytest.approx(call_s)


def test_a_call_never_takes_less_than_nothing():
    assert model_probes._call_s(lambda pages: pages**2, 2, torch.device("cpu")) == 0.0


@pytest.mark.parametrize("name", ["opt", "llama-gqa", "gpt-neox", "phi3"])
def test_rates_of_other_architectures_are_positive(name, small):
    model = shared_model(name)
    shape = shape_of(model)
    assert 0 < attend_rate(shape, torch.device("cpu"), torch.float32) < math.inf
    assert 0 < rebuild_rate(model, shape) < math.inf
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_cannot_be_rebuilt_has_a_rate_without_limit(demo, monkeypatch, small):
    class Attachment:
        projections = ("not found",) * 6

    shape = shape_of(demo.model)
    monkeypatch.setattr(model_probes, "attached", lambda model: nullcontext(Attachment))
    assert rebuild_rate(demo.model, shape) == math.inf
    assert rebuild_call_s(demo.model, shape) == 0


def test_the_median_leaves_the_warm_up_out(monkeypatch):
    moments = iter([0.0, 100.0, 100.0, 101.0, 101.0, 104.0, 104.0, 106.0])
    waits = []
    clock = SimpleNamespace(perf_counter=lambda: next(moments), sleep=waits.append)
    monkeypatch.setattr(probe_timing, "time", clock)
    monkeypatch.setattr(probe_timing, "REPEATS", 3)
    assert probe_timing.median_s(lambda: None, torch.device("cpu"), wait_s=0.5) == 2.0
    assert waits == [0.5] * 4


def test_dense_work_is_measured_between_waits_that_do_not_count(monkeypatch, demo, small):
    """Time passes while the probe sleeps, and at no other moment."""
    clock = SimpleNamespace(now=0.0, waits=0)

    def sleep(seconds):
        clock.now += seconds
        clock.waits += 1

    def look():
        clock.now += 1.0  # from one look to the next
        return clock.now

    monkeypatch.setattr(step_probes, "time", SimpleNamespace(perf_counter=look, sleep=sleep))
    shape, hooks = shape_of(demo.model), hooks_of(demo.model)
    weights = shape.num_layers * layer_weight_bytes(shape) + head_weight_bytes(shape)
    # Two looks at each wait: one second passes within it, and one besides.
    assert dense_rate(demo.model, shape, 2) == pytest.approx(weights / (1 + shape.num_layers))
    assert clock.waits == 4 * shape.num_layers
    assert dense_rate(demo.model, shape, 2, resident=True) == pytest.approx(weights)
    assert clock.waits == 4 * shape.num_layers
    assert hooks_of(demo.model) == hooks


def hooks_of(model):
    """Return how many hooks a model's modules have: others may be attached to it, too."""
    return sum(len(module._forward_pre_hooks) for module in model.modules())
