"""Large pages: what the system is asked for, and that nothing depends on its answer."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from headrace.runtime import large_pages
from headrace.runtime.large_pages import prefer_large_pages

LARGE = 1 << 23
SMAPS = Path("/proc/self/smaps")
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def asked(monkeypatch):
    """Collects what the system is asked for, and says yes."""
    calls = []

    def madvise(first, size, advice):
        calls.append((first, size, advice))
        return 0

    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    monkeypatch.setattr(large_pages, "_madvise", lambda: madvise)
    return calls


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_the_whole_pages_of_a_buffer_are_asked_for(asked, dtype):
    buffer = torch.empty(LARGE // dtype.itemsize, dtype=dtype)
    assert prefer_large_pages(buffer)
    ((first, size, advice),) = asked
    assert advice == 14
    assert first % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    assert buffer.data_ptr() <= first < buffer.data_ptr() + mmap.PAGESIZE
    end = buffer.data_ptr() + LARGE
    assert end - mmap.PAGESIZE < first + size <= end


def test_a_small_buffer_is_left_alone(asked):
    assert not prefer_large_pages(torch.empty(1 << 10))
    assert not prefer_large_pages(torch.empty(0))
    assert asked == []


def test_a_system_that_refuses_or_knows_none_is_no_error(monkeypatch, asked):
    buffer = torch.zeros(LARGE, dtype=torch.uint8)
    monkeypatch.setattr(large_pages, "_madvise", lambda: lambda *_: -1)
    assert not prefer_large_pages(buffer)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert not prefer_large_pages(buffer)
    assert not buffer.any()


@pytest.mark.skipif(
    not (SMAPS.exists() and SWITCH.exists()), reason="the system does not tell of its pages"
)
def test_the_system_takes_note():
    buffer = torch.empty(LARGE, dtype=torch.uint8)
    assert prefer_large_pages(buffer)
    assert "hg" in flags_at(buffer.data_ptr() + LARGE // 2)
    buffer.fill_(7)
    assert buffer.eq(7).all()


def flags_at(address):
    """Return the flags of the memory at an address, as the system lists them."""
    for area in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", area)
        if bounds and int(bounds[1], 16) <= address < int(bounds[2], 16):
            return re.search(r"(?m)^VmFlags: (.*)$", area)[1].split()
    return []
