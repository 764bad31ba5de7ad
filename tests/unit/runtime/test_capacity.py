"""Room for pages: pools grow by a quarter, or by what is needed where a limit allows no more."""

import pytest
from tests.paged_model import make_settings

from headrace.errors import MemoryBudgetError
from headrace.plan.policies import Policy, Split
from headrace.runtime.capacity import Capacity, RowNeed
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.pages import PageKind, PagePool
from headrace.runtime.store import PageStore


def make(split=None, pages=None, **changes):
    """Return a capacity and its pools; ``pages``: the host memory that is allowed, in pages."""
    split = split or Split(stream=1.0)
    made = make_settings(Policy.RECOMPUTE, split, 1, 3, **changes)
    store = PageStore(CpuBackend(), made.paged_widths, made.dtype, made.geometry.block_tokens)
    if pages is not None:
        limit = pages * store.bytes_of(PageKind.KV)
        made = make_settings(Policy.RECOMPUTE, split, 1, 3, host_memory_bytes=limit, **changes)
    pools = {kind: PagePool(0) for kind in PageKind}
    return Capacity(pools, store, made), pools, store


@pytest.mark.parametrize("kind", PageKind)
def test_a_pool_grows_by_a_quarter_or_more(kind):
    capacity, pools, store = make()
    for free, whole in ((8, 8), (8, 8), (9, 10), (14, 14)):
        capacity.reserve({kind: free})
        assert pools[kind].free == pools[kind].capacity == store.capacity(kind) == whole


def test_pages_in_use_are_not_free():
    capacity, pools, _ = make()
    capacity.reserve({PageKind.KV: 2})
    pools[PageKind.KV].take()
    capacity.reserve({PageKind.KV: 2})
    assert pools[PageKind.KV].capacity == 3


def test_near_the_limit_a_pool_grows_by_what_is_needed():
    capacity, pools, _ = make(pages=9)
    capacity.reserve({PageKind.KV: 8})
    capacity.reserve({PageKind.KV: 9})
    assert pools[PageKind.KV].capacity == 9
    with pytest.raises(MemoryBudgetError, match="host_memory allows"):
        capacity.reserve({PageKind.KV: 10})
    assert pools[PageKind.KV].capacity == 9


def test_the_limit_of_the_host_is_not_the_devices():
    capacity, pools, _ = make(pages=1)
    capacity.reserve({PageKind.RESIDENT: 8})
    assert pools[PageKind.RESIDENT].capacity == 8


def test_a_limit_of_pages_on_the_device_leaves_none_over():
    capacity, pools, _ = make(resident_pages=9)
    capacity.reserve({PageKind.RESIDENT: 8})
    capacity.reserve({PageKind.RESIDENT: 9})
    assert pools[PageKind.RESIDENT].capacity == 9


def test_rows_fit_with_what_they_will_generate():
    capacity, _, store = make(pages=8)
    block = store.block_tokens
    assert capacity.fits([RowNeed(4 * block, 7 * block, 1)])
    assert not capacity.fits([RowNeed(4 * block, 7 * block + 1, 1)])
    # Rows share the pages of their prompt.
    assert capacity.fits([RowNeed(4 * block, 5 * block, 2)])
    assert not capacity.fits([RowNeed(4 * block, 5 * block, 1)] * 2)
    assert make()[0].fits([RowNeed(1000 * block, 2000 * block, 1)])


def test_a_prompt_that_is_kept_as_x_takes_pages_of_x():
    split = Split(stream=0.5, recompute=0.5)
    for over in (-1, 0):
        capacity, _, store = make(split)
        block = store.block_tokens
        limit = store.bytes_of(PageKind.ACTIVATIONS, 5) + store.bytes_of(PageKind.KV, 6)
        capacity, _, _ = make(split, host_memory_bytes=limit + over)
        assert capacity.fits([RowNeed(8 * block, 9 * block, 1)]) == (over == 0)
