"""The conveyor's order of calls: look-ahead, waiting, throwing away, and no new buffers."""

import pytest
import torch
from tests.checked_backend import CheckedBackend, watch_reads
from tests.paged_model import LAYERS, WINDOWED, PagedModel, make_settings

from headrace.errors import MemoryBudgetError
from headrace.plan.policies import Policy, Split
from headrace.timeline import H2D_LANES, Lane

SPLITS = [
    Split(stream=1.0),
    Split(recompute=1.0),
    Split(resident=1.0),
    Split(resident=0.3, stream=0.3, recompute=0.4),
]
TOKEN = [[True], [True]]


def make_model(split, policy=Policy.RECOMPUTE, slots=4, prompt_len=96, new_tokens=40, **changes):
    """Return a model with 2 rows and 96 prompt tokens each, so 6 pages a row."""
    model = PagedModel(
        CheckedBackend(1),
        make_settings(policy, split, 2, slots, **changes),
        2,
        seed=1,
        prompt_len=prompt_len,
        new_tokens=new_tokens,
    )
    model.step([[True] * 96] * 2)
    return model


def recorded(model, steps):
    """Return the operations of further steps, in the order of the calls."""
    model.cache.recorder.enabled = True
    for _ in range(steps):
        model.step(TOKEN)
    return list(model.cache.recorder._records)


@pytest.mark.parametrize("split", SPLITS[:2])
def test_loads_of_the_next_step_start_before_this_one_ends(split):
    records = recorded(make_model(split), 4)
    first = records[0].step
    for step in range(first, first + 3):
        loads_of_next = [
            place
            for place, record in enumerate(records)
            if record.step == step + 1 and record.lane in H2D_LANES
        ]
        compute = [
            place
            for place, record in enumerate(records)
            if record.step == step and record.lane is Lane.COMPUTE
        ]
        assert loads_of_next[0] < compute[-1]


def test_loads_of_the_next_layer_start_before_this_one_ends():
    records = recorded(make_model(Split(stream=1.0)), 2)
    step = records[-1].step
    loads = [
        i for i, r in enumerate(records) if r.step == step and r.kind == "load_kv" and r.layer == 2
    ]
    attends = [
        i for i, r in enumerate(records) if r.step == step and r.kind == "attend" and r.layer == 0
    ]
    assert loads[0] < attends[-1]


def test_the_papers_schedule_looks_no_further_than_its_layer():
    records = recorded(make_model(Split(stream=0.5, recompute=0.5), Policy.KVPR, slots=6), 3)
    for place, record in enumerate(records):
        if record.lane in H2D_LANES:
            later = [r for r in records[:place] if (r.step, r.layer) > (record.step, record.layer)]
            assert not later
            before = [
                r
                for r in records
                if (r.step, r.layer) < (record.step, record.layer) and r.layer < LAYERS
            ]
            done = [r for r in records[:place] if r in before]
            assert len(done) == len(before)


def test_x_is_all_there_before_the_paper_rebuilds():
    records = recorded(make_model(Split(stream=0.5, recompute=0.5), Policy.KVPR, slots=8), 2)
    step = records[-1].step
    of_layer = [r.kind for r in records if r.step == step and r.layer == 0]
    assert "rebuild" in of_layer
    last_load = max(i for i, kind in enumerate(of_layer) if kind == "load_activations")
    assert last_load < of_layer.index("rebuild")


def test_every_granule_is_loaded_once_a_step():
    records = recorded(make_model(Split(stream=0.5, recompute=0.5)), 6)
    first, last = records[0].step, records[-1].step
    for step in range(first + 1, last):
        loads = [(r.layer, r.granule) for r in records if r.step == step and r.lane in H2D_LANES]
        assert len(loads) == len(set(loads))
        read = [
            (r.layer, r.granule)
            for r in records
            if r.step == step and r.kind == "attend" and r.layer != WINDOWED
        ]
        assert sorted(read) == sorted(loads)


@pytest.mark.parametrize("move", ["select", "crop", "show"])
@pytest.mark.parametrize("split", SPLITS)
def test_what_was_loaded_ahead_is_thrown_away_when_pages_change(monkeypatch, split, move):
    watch_reads(monkeypatch)
    model = make_model(split)
    for _ in range(5):
        model.step(TOKEN)
        if move == "select":
            model.select([1, 0])
        elif move == "crop":
            model.crop(3)
        else:
            model.show(0, [(column * 7) % 11 != 3 for column in range(model.columns)])
        model.step(TOKEN)
        model.step(TOKEN)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("policy", [Policy.RECOMPUTE, Policy.KVPR])
def test_no_buffer_is_made_after_the_prompt(split, policy):
    model = make_model(split, policy)
    buffers, growths = model.backend.log.buffers, model.cache.growths
    host_bytes, device_bytes = model.cache.host_bytes, model.cache.device_bytes
    for _ in range(40):
        model.step(TOKEN)
    assert model.backend.log.buffers == buffers
    assert model.cache.growths == growths
    assert (model.cache.host_bytes, model.cache.device_bytes) == (host_bytes, device_bytes)


@pytest.mark.parametrize("split", SPLITS)
def test_pools_grow_beyond_what_was_reserved(split):
    model = make_model(split, prompt_len=16, new_tokens=1)
    growths = model.cache.growths
    for _ in range(40):
        model.step(TOKEN)
    model.step([[True] * 100, [False] * 50 + [True] * 50])
    for _ in range(20):
        model.step(TOKEN)
    assert model.cache.growths > growths


def test_host_memory_that_runs_out_changes_nothing():
    page_bytes = 16 * 2 * 8 * 4 * 2
    model = make_model(Split(stream=1.0), new_tokens=1, host_memory_bytes=16 * page_bytes)
    version, growths = model.cache.layout.version, model.cache.growths
    assert model.cache.host_bytes <= 16 * page_bytes
    for _ in range(2):
        with pytest.raises(MemoryBudgetError, match="host_memory allows"):
            model.cache.reserve([list(range(200))] * 2)
        assert (model.cache.layout.version, model.cache.growths) == (version, growths)
        model.step(TOKEN)
    for _ in range(14):
        model.step(TOKEN)


def test_a_ring_that_is_too_short_for_a_program_is_said(monkeypatch):
    model = make_model(Split(stream=1.0))
    loader = model.cache._loader
    monkeypatch.setattr(loader, "start_loads", lambda: None)
    loader.reset()
    with pytest.raises(RuntimeError, match="staging slots are too few"):
        model.step(TOKEN)


def test_rows_without_a_token_take_part_without_harm():
    model = make_model(Split(stream=0.5, recompute=0.5))
    for seen in ([[True], [False]], [[False], [True]], [[False], [False]], [[True], [True]]):
        model.step(seen)
    assert model.cache.layout.lengths == [98, 98]


def test_drain_waits_for_everything():
    model = make_model(Split(stream=1.0))
    model.step(TOKEN)
    model.cache.drain()
    assert not any(model.backend.queues.values())
    assert torch.isfinite(model.cache._store.pages("kv", 0, 0, 1)[0]).all()
