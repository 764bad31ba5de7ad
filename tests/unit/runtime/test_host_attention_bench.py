"""The benchmark of the host's attention: all ways compute the same, in turns, from the same bytes.

How fast they are is no test's business.
"""

import pytest
import torch
from tests.host_attention_support import needs_native

from headrace.errors import HeadraceError
from headrace.runtime import host_attention_bench as bench
from headrace.runtime.attention import normalised
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.host_attention_bench import Setting, measure

SMALL = 1 << 18
SETTINGS = [
    Setting(128, 2, 1, SMALL),
    Setting(192, 2, 4, SMALL, torch.float32),
    Setting(64, 1, 8, SMALL, torch.float16, large_pages=True),
]


@pytest.fixture(scope="module")
def attention():
    with HostAttention(threads=2) as made:
        yield made


def test_rows_fill_the_cache_and_there_is_at_least_one():
    setting = Setting(context=128, heads=2, group=4, cache_bytes=10 * 128 * 2 * 2 * 128 * 2 + 1)
    assert setting.row_bytes == 2 * 128 * 2 * 128 * 2
    assert (setting.rows, setting.kv_bytes) == (10, 10 * setting.row_bytes)
    assert Setting(128, 2, 4, cache_bytes=1).rows == 1


@needs_native
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_way_has_a_rate(attention, setting):
    threads = torch.get_num_threads()
    rates = measure(attention, setting, rounds=5, sample_s=0.0)
    assert torch.get_num_threads() == threads
    assert rates.setting is setting
    for name in ("memory", "host_attention", "sdpa", "products"):
        assert getattr(rates, f"{name}_bytes_per_s") > 0
    assert rates.memory_share > 0


@needs_native
def test_the_ways_take_turns_and_torchs_fewer(attention, monkeypatch):
    turns = []
    ways = {name: lambda name=name: turns.append(name) for name in ("memory", "host", "sdpa")}
    ways["products"] = lambda: turns.append("products")
    monkeypatch.setattr(bench, "_ways", lambda *_: ways)
    measure(attention, SETTINGS[0], rounds=5, sample_s=0.0)
    every, ours = list(ways), ["memory", "host"]
    warm_up = every
    assert turns == [*warm_up, *every, *ours * 3, *every]


@needs_native
def test_the_kernel_is_fed_what_torch_is_fed(attention, monkeypatch):
    """With all keys and values alike, whatever the order of pages, all ways agree."""
    monkeypatch.setattr(bench, "_filled", lambda shape, one: torch.ones(shape, dtype=one.dtype))
    results = []
    empty = bench.empty_partial
    monkeypatch.setattr(
        bench, "empty_partial", lambda shape: results.append(empty(shape)) or results[-1]
    )
    setting = Setting(128, 2, 4, SMALL, torch.float32)
    ways = bench._ways(attention, setting)
    ways["host"]()
    ones = torch.ones(setting.rows, 2, 4, bench.WIDTH)
    torch.testing.assert_close(normalised(results[0], torch.float32), ones)
    torch.testing.assert_close(normalised(ways["products"](), torch.float32), ones)
    torch.testing.assert_close(ways["sdpa"](), ones.flatten(1, 2)[:, :, None])


def test_without_the_native_library_nothing_is_measured():
    with (
        HostAttention(threads=1, variant="off") as attention,
        pytest.raises(HeadraceError, match="memory is read by the native library"),
    ):
        measure(attention, SETTINGS[0], rounds=1, sample_s=0.0)
