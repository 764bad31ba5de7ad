"""Plans that a budget of device memory makes a mixture: some pages on the device, others not."""

import functools

import pytest
from tests.support import assert_same, generate, host_cache, make_batch, plain_cache

from headrace.engine.loading import load_model
from headrace.runtime.pages import PageKind

MACHINE = "a100-40gb-pcie4"
LENGTHS = (603, 500, 697, 64, 640, 511)
TOKENS = 40


@functools.cache
def demo():
    return load_model("demo", dtype="float32").model


@functools.cache
def expected():
    return generate(demo(), make_batch(LENGTHS), plain_cache(demo()), TOKENS)


@functools.cache
def resident_plan():
    with host_cache(demo(), "resident", None, profile=MACHINE) as cache:
        generate(demo(), make_batch(LENGTHS), cache, new_tokens=1)
        return cache.plan


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_budget_between_all_and_nothing_keeps_a_part_on_the_device(share):
    whole = resident_plan()
    budget = int(whole.gpu_bytes - share * whole.gpu_items["resident_kv"])
    with host_cache(demo(), "auto", None, profile=MACHINE, gpu_memory=budget) as cache:
        made = generate(demo(), make_batch(LENGTHS), cache, TOKENS)
        layout = cache.paged.layout
        layout.check_integrity()
        pages = {kind: len(layout.pages(kind)) for kind in PageKind}
        assert 0.02 < cache.plan.split.resident < 0.95
        assert cache.plan.placement.resident_pages >= pages[PageKind.RESIDENT] > 0
        assert pages[PageKind.KV] + pages[PageKind.ACTIVATIONS] > 0
        assert cache.plan.gpu_bytes <= budget
        assert cache.peak_gpu_bytes <= budget
    assert_same(expected(), made)
