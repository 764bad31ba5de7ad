"""Rows that come are divided as suits the batch that they join: tokens and limits stay."""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batcher_support import assert_as_alone, batcher_of, beginning, greedy, run
from tests.exactness.test_batcher import request_lists
from tests.support import shared_model

from headrace.hardware.catalog import machine
from headrace.hf import attached_cache
from headrace.hf.replanning import Replanning
from headrace.plan.options import PlanOptions
from headrace.plan.replan import Replanner
from headrace.runtime.pages import PageKind

SLOW_LINK = replace(
    machine("a100-40gb-pcie4"),
    gemm_flops_per_s={"float32": 3e10},
    h2d_bytes_per_s=1e9,
    d2h_bytes_per_s=1e9,
    host_attend_bytes_per_s=1e9,
)
"""Where a tiny model is best divided over all paths."""

PROFILES = [
    SLOW_LINK,
    replace(SLOW_LINK, gemm_flops_per_s={"float32": 1e12}),
    replace(SLOW_LINK, gemm_flops_per_s={"float32": 1e9}),
    replace(SLOW_LINK, host_attends=False),
]
"""X is best for some, for all, and for none of the tokens; and the host's cores cannot attend."""

WAYS = [("auto", 0.5, None), ("auto", 0.3, 0.4)]


@contextmanager
def replanned(profile, resident_pages):
    """Let caches that are asked for a fraction have it to begin with, and change it as they run."""
    plan = attached_cache.plan_cache

    def planned(*args, **named):
        found = plan(*args, **named)
        made = replace(found.settings, resident_pages=resident_pages)
        options = PlanOptions.checked(weights_streamed=0.0)
        replanner = Replanner(made.shape, profile, options, made.geometry)
        return replace(found, settings=made, replanner=replanner)

    with patch.object(attached_cache, "plan_cache", planned):
        yield


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("way", WAYS)
def test_rows_that_come_later_are_divided_otherwise(name, way):
    lengths = [30, 140, 60, 100, 20, 150, 80, 50, 120, 40]
    requests = [
        (beginning(40 + n)[:length], greedy(10 + 2 * n), 3 * n) for n, length in enumerate(lengths)
    ]
    shares = set()

    def check(cache):
        shares.update((row.split.resident, row.split.recompute) for row in cache.paged.layout.rows)
        assert cache.paged.layout.pools[PageKind.RESIDENT].capacity <= 6

    with replanned(SLOW_LINK, 6):
        batcher = batcher_of(shared_model(name), way)
        jobs = run(batcher, requests, check=check)
        divided, notes = batcher.cache.replanning.divided, batcher.cache.notes
        batcher.close()
    assert_as_alone(name, requests, jobs)
    assert len(shares) > 2
    assert divided > 0
    assert f"the prompts of {divided} rows" in notes[-1]


@given(
    requests=request_lists(),
    name=st.sampled_from(["llama", "llama-gqa", "opt"]),
    way=st.sampled_from(WAYS),
    place=st.integers(0, len(PROFILES) - 1),
    pages=st.sampled_from([0, 3, 20]),
    host_memory=st.sampled_from([10_000_000, 400_000, 250_000, 160_000]),
    share=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_nobody_fails_for_it_where_pools_are_nearly_full(
    requests, name, way, place, pages, host_memory, share
):
    def check(cache):
        assert cache.paged.host_bytes <= host_memory
        assert cache.paged.layout.pools[PageKind.RESIDENT].capacity <= pages

    def made():
        with replanned(PROFILES[place], pages):
            batcher = batcher_of(
                shared_model(name), way, host_memory=host_memory, share_prompts=share
            )
            try:
                return run(batcher, requests, check=check)
            finally:
                batcher.close()

    jobs = made()
    failed = {number for number, job in enumerate(jobs) if job.error is not None}
    if failed:
        # Even alone it is too large for so little memory.
        with patch.object(Replanning, "of_arriving", lambda *args: None):
            planned = made()
        assert failed <= {number for number, job in enumerate(planned) if job.error is not None}
    kept = [number for number in range(len(requests)) if number not in failed]
    assert_as_alone(name, [requests[one] for one in kept], [jobs[one] for one in kept])


@pytest.mark.parametrize("profile", PROFILES)
def test_equal_batches_are_divided_alike(profile):
    requests = [(beginning(60 + n)[: 20 + 12 * n], greedy(6), 2 * n) for n in range(8)]
    found = []
    for _ in range(2):
        seen = []
        with replanned(profile, 5):
            batcher = batcher_of(shared_model("llama"), ("auto", 0.5, None))
            run(
                batcher,
                requests,
                check=lambda cache, seen=seen: seen.append(
                    [row.split for row in cache.paged.layout.rows]
                ),
            )
            batcher.close()
        found.append(seen)
    assert found[0] == found[1]
