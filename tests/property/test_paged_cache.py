"""Whatever is done to a cache, and whenever transfers happen, attention is that of a plain one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checked_backend import CheckedBackend, watch_reads
from tests.paged_model import PagedModel, make_settings

from headrace.plan.policies import Policy, Split
from headrace.runtime.conveyor import Conveyor
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.staging import StagingRing, StoreRing
from headrace.runtime.writer import Writer

SPLITS = [
    Split(stream=1.0),
    Split(resident=1.0),
    Split(recompute=1.0),
    Split(stream=0.5, recompute=0.5),
    Split(resident=0.3, stream=0.3, recompute=0.4),
    Split(resident=0.6, stream=0.4),
    Split(resident=0.4, recompute=0.6),
]
CASES = {
    "seed": st.integers(0, 2**20),
    "split": st.sampled_from(SPLITS),
    "policy": st.sampled_from([Policy.RECOMPUTE, Policy.KVPR]),
    "pages_per_granule": st.integers(1, 4),
    "ring_slots": st.integers(3, 6),
    "rows": st.integers(1, 4),
    "softcap": st.sampled_from([None, None, 3.0]),
}


@pytest.fixture
def watched(monkeypatch):
    watch_reads(monkeypatch)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(**CASES)
def test_attention_is_exact_whenever_transfers_happen(
    watched, seed, split, policy, pages_per_granule, ring_slots, rows, softcap
):
    made = make_settings(policy, split, pages_per_granule, ring_slots)
    model = PagedModel(CheckedBackend(seed), made, rows, seed)
    model.softcap = softcap
    model.run(seed, actions=12)


@settings(max_examples=15, deadline=None)
@given(**CASES)
def test_attention_is_exact_on_the_threads_of_a_cpu(
    seed, split, policy, pages_per_granule, ring_slots, rows, softcap
):
    made = make_settings(policy, split, pages_per_granule, ring_slots)
    backend = CpuBackend()
    try:
        model = PagedModel(backend, made, rows, seed)
        model.softcap = softcap
        model.run(seed, actions=12)
    finally:
        backend.close()


@settings(max_examples=20, deadline=None)
@given(**CASES, workspace=st.sampled_from([1, 300, 5000]))
def test_a_small_workspace_changes_nothing(
    seed, split, policy, pages_per_granule, ring_slots, rows, softcap, workspace
):
    made = make_settings(policy, split, pages_per_granule, ring_slots, workspace_bytes=workspace)
    model = PagedModel(CheckedBackend(seed), made, rows, seed)
    model.softcap = softcap
    model.run(seed, actions=5)


FAULTS = {
    "loads do not wait for stores": (Writer, "last_store", lambda self, layer: None),
    "loads do not wait for readers": (StagingRing, "reader_done", lambda self, slot: None),
    "compute does not wait for loads": (Conveyor, "_wait_for_load", lambda self, index: None),
    "stores do not wait for slots": (
        StoreRing,
        "take",
        lambda self: (0, self._buffer[0]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_missing_wait_is_found(monkeypatch, watched, fault):
    """The checks bite: each of these faults is found by some of a few runs."""
    monkeypatch.setattr(*FAULTS[fault])
    made = make_settings(Policy.RECOMPUTE, Split(stream=0.5, recompute=0.5), 1, 3)

    def run_some():
        for seed in range(20):
            PagedModel(CheckedBackend(seed), made, 2, seed).run(seed, actions=12)

    with pytest.raises(AssertionError):
        run_some()
