"""The split changes while rows run: pages come to the device, and the host's share moves."""

import random
from dataclasses import replace

import pytest
import torch
from tests.exactness.rows_life import Life
from tests.support import (
    CONFIGS,
    LOGIT_TOLERANCE,
    assert_same,
    forward_in_chunks,
    generate,
    host_cache,
    logit_error,
    make_batch,
    plain_cache,
    shared_model,
)

from headrace.hardware.catalog import machine
from headrace.hf.planning import CacheOptions
from headrace.hf.replanning import Rules
from headrace.hf.rows_cache import RowsCache
from headrace.plan.workload import Workload
from headrace.runtime.pages import PageKind
from headrace.timeline import Origin

MACHINE = machine("a100-40gb-pcie4")
BUDGET = 600_000

PACED = replace(
    MACHINE,
    origin=Origin.EMULATED,
    h2d_bytes_per_s=2e7,
    d2h_bytes_per_s=2e7,
    host_bytes_per_s=1e12,
    host_attend_bytes_per_s=4e7,
    h2d_while_host_bytes_per_s=None,
    host_while_h2d_bytes_per_s=None,
)
"""Link and cores so slow that this machine holds their pace, and the cores are twice as fast."""


def limited_cache(model, monkeypatch, recompute, host, pages):
    """A cache with so many pages on the device."""
    from headrace.hf import attached_cache

    plan = attached_cache.plan_cache

    def planned(*args, **named):
        found = plan(*args, **named)
        return replace(found, settings=replace(found.settings, resident_pages=pages))

    monkeypatch.setattr(attached_cache, "plan_cache", planned)
    options = CacheOptions.checked("auto", None, None, recompute, host, None, poison=True)
    return RowsCache(model, Workload(6, 40, 20), options)


@pytest.mark.parametrize("pages", [3, 12])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_stay_the_same_while_the_split_changes(name, pages, monkeypatch):
    steps, choose, promoted = 9, random.Random(str((name, pages))), 0
    with limited_cache(shared_model(name), monkeypatch, 0.4, 0.3, pages) as cache:
        life = Life(name, cache, steps)
        for _ in life.come_and_go(list(range(12)), choose):
            if choose.random() < 0.5:
                cache.paged.host_share = choose.choice([0.0, 0.4, 1.0])
            promoted += cache.paged.promote(range(len(life.seeds)), choose.choice([0, 2, 9]))
            life.decode(range(len(life.seeds)))
            assert cache.paged.layout.pools[PageKind.RESIDENT].capacity <= pages
        assert promoted > 0


def test_a_batch_that_shrinks_comes_to_the_device_by_itself():
    options = CacheOptions.checked("auto", BUDGET, None, None, None, MACHINE, poison=True)
    with RowsCache(shared_model("llama-gqa"), Workload(6, 60, 20), options) as cache:
        assert cache.replanning is not None
        cache.replanning.rules = Rules(least_gain=0.0, every_steps=1)
        life = Life("llama-gqa", cache, 9)
        life.admit(list(range(6)), 200, None)
        life.decode(range(6))
        life.arrange([0, 1])
        for _ in range(5):
            life.decode(range(2))
        assert cache.replanning.changes > 0
        assert cache.replanning.promoted > 0
        assert "came to the device" in cache.notes[-1]
        pools = cache.paged.layout.pools
        assert pools[PageKind.RESIDENT].capacity <= cache.plan.placement.resident_pages


class Slowing:
    """Lets a cache's cores become slower before a step; they never attend faster than that."""

    def __init__(self, cache, at):
        self.cache, self.left = cache, at
        self.plain, cache.begin_forward = cache.begin_forward, self

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            self.cache._backend.host_attend_bytes_per_s = PACED.host_attend_bytes_per_s / 10
        return self.plain(*args)


def assert_it_was_seen(cache):
    assert cache.replanning.ratios.cores < 0.2
    assert "for they attended at" in cache.notes[-1]
    # Nothing is on the device, and nothing kept as X, so that both are shares of everything.
    assert cache.paged.host_share < cache.host_fraction / 2


def test_a_batch_of_generate_follows_cores_that_become_slower():
    model, batch = shared_model("llama-gqa"), make_batch((183, 150, 197))
    expected = generate(model, batch, plain_cache(model), 48)
    with host_cache(model, "auto", None, gpu_memory=1_600_000, profile=PACED) as cache:
        Slowing(cache, 20)
        made = generate(model, batch, cache, 48)
        assert cache._backend.host_attend_bytes_per_s < PACED.host_attend_bytes_per_s
        assert_it_was_seen(cache)
    assert_same(expected, made)


def test_rows_follow_cores_that_become_slower():
    options = CacheOptions.checked("auto", BUDGET, None, None, None, PACED, poison=True)
    with RowsCache(shared_model("llama-gqa"), Workload(6, 60, 40), options) as cache:
        Slowing(cache, 12)
        life = Life("llama-gqa", cache, 40)
        life.admit(list(range(6)), 200, None)
        for _ in range(30):
            life.decode(range(6))
        assert_it_was_seen(cache)


@pytest.mark.parametrize("settings", [{"host_fraction": 0.5}, {"policy": "stream"}])
def test_what_was_asked_for_stays(settings):
    model = shared_model("llama-gqa")
    asked = {"policy": "auto", "fraction": None, "profile": PACED, **settings}
    with host_cache(model, **asked) as cache:
        generate(model, make_batch((20, 30)), cache, 2)
        assert cache.replanning is None


def test_rows_that_a_caller_drops_leave_room_for_those_of_generate():
    model, batch = shared_model("llama-gqa"), make_batch((183, 150, 197, 160, 120, 90))
    plain, kept = plain_cache(model), torch.tensor([0, 2])
    with host_cache(model, "auto", None, gpu_memory=3_050_000, profile=MACHINE) as cache:
        for each in (plain, cache):
            forward_in_chunks(model, batch, each, [197])
        cache.replanning.rules = Rules(least_gain=0.0, every_steps=1)
        for each in (plain, cache):
            each.batch_select_indices(kept)
        mask = batch.attention_mask[kept]
        for step in range(12):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
            inputs = {
                "input_ids": torch.full((2, 1), 5 + step),
                "attention_mask": mask,
                "position_ids": mask.sum(1, keepdim=True) - 1,
            }
            with torch.no_grad():
                expected = model(**inputs, past_key_values=plain).logits
                made = model(**inputs, past_key_values=cache).logits
            assert logit_error(expected, made) <= LOGIT_TOLERANCE
            cache.paged.layout.check_integrity()
        assert cache.replanning.promoted > 0
