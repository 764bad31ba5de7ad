"""Pages in memory, and granules of them: what is put in is what is gathered."""

import pytest
import torch

from headrace.plan.policies import Split
from headrace.runtime.cpu_lanes import CpuBackend
from headrace.runtime.granules import cut_granules
from headrace.runtime.layout import Layout
from headrace.runtime.pages import PageKind
from headrace.runtime.placer import Placer
from headrace.runtime.store import LayerWidths, PageStore

BLOCK = 16
WIDTHS = {0: LayerWidths(2, 4, 10), 3: LayerWidths(1, 8, 10)}
CPU = torch.device("cpu")


@pytest.fixture
def store():
    made = PageStore(CpuBackend(), WIDTHS, torch.float32, BLOCK)
    for pages in (5, 0, 3, 4):
        made.grow(PageKind.KV, pages)
    made.grow(PageKind.ACTIVATIONS, 2)
    return made


def test_sizes(store):
    assert store.capacity(PageKind.KV) == 12
    assert store.growths == 4
    page = 2 * BLOCK * (2 * 4 + 1 * 8) * 4
    assert store.bytes_of(PageKind.KV) == page
    assert store.bytes_of(PageKind.ACTIVATIONS, 2) == 2 * BLOCK * 20 * 4
    assert store.host_bytes == 12 * page + 2 * BLOCK * 20 * 4
    positions = 2 * BLOCK * 8
    assert store.device_bytes == positions
    store.grow(PageKind.RESIDENT, 1)
    assert store.device_bytes == page + positions
    assert store.positions.shape == (2, BLOCK)


def test_runs_end_where_memory_does(store):
    runs = store.runs(PageKind.KV, [0, 1, 3, 4, 5, 6, 7, 8, 11])
    assert runs == [(0, 2), (3, 2), (5, 3), (8, 1), (11, 1)]


def test_pages_are_gathered_as_they_were_put(store):
    for layer, width in WIDTHS.items():
        for page in range(12):
            for number, part in enumerate(store.pages(PageKind.KV, layer, page, 1)):
                assert part.shape == (1, width.num_kv_heads, BLOCK, width.head_dim)
                part.fill_(100 * layer + 2 * page + number)
    for layer in WIDTHS:
        keys, values = store.gather(PageKind.KV, layer, [1, 4, 5, 11])
        assert keys[:, 0, 0, 0].tolist() == [100 * layer + 2 * page for page in (1, 4, 5, 11)]
        assert torch.equal(values, keys + 1)


def test_one_run_is_gathered_without_a_copy(store):
    keys, _ = store.gather(PageKind.KV, 0, [5, 6])
    assert keys.data_ptr() == store.pages(PageKind.KV, 0, 5, 1)[0].data_ptr()


def test_a_page_that_does_not_exist(store):
    with pytest.raises(IndexError, match="no page 12 of kind kv"):
        store.pages(PageKind.KV, 0, 12, 1)


def layout_of(lengths):
    layout = Layout(BLOCK, Split(stream=1.0))
    layout.start(len(lengths))
    placer, new = Placer(layout), [list(range(length)) for length in lengths]
    for kind, pages in placer.pages_needed(new).items():
        layout.pools[kind].grow(pages)
    placer.append(new, 0)
    return layout


def test_granules_are_even_and_hold_every_page_once():
    layout = layout_of([80, 16, 49])
    granules = cut_granules(layout, PageKind.KV, 4, CPU)
    assert [len(granule.pages) for granule in granules] == [3, 3, 3]
    assert [page for granule in granules for page in granule.pages] == list(range(9))
    assert [granule.entry_page for granule in granules] == [None] * 3
    assert granules[1].entry_rows == (0, 0, 1)
    assert granules[1].rows.tolist() == [0, 1]
    assert granules[1].tokens == 48
    assert all(granule.visible is None for granule in granules)


def test_rows_that_share_pages_have_entries_of_their_own():
    layout = layout_of([32, 16])
    layout.select([0, 0, 1])
    (granule,) = cut_granules(layout, PageKind.KV, 8, CPU)
    assert granule.pages == (0, 1, 2)
    assert granule.entry_page.tolist() == [0, 0, 1, 1, 2]
    assert granule.entry_rows == (0, 1, 0, 1, 2)
    assert granule.tokens == 48
    assert granule.entries == 5


def test_hidden_and_cropped_tokens_are_not_visible():
    layout = layout_of([32, 32])
    layout.show(0, torch.tensor([column != 5 for column in range(32)]).numpy())
    layout.crop(30)
    (granule,) = cut_granules(layout, PageKind.KV, 8, CPU)
    hidden = (~granule.visible).nonzero().tolist()
    assert hidden == [[0, 5], [1, 14], [1, 15], [3, 14], [3, 15]]


def test_an_empty_pool_has_no_granules():
    assert cut_granules(layout_of([3]), PageKind.KV, 8, CPU) == []
