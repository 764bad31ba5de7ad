"""Host attention by any number of threads, for any callers, in forked processes."""

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.host_attention_errors import assert_small
from tests.host_attention_support import CORES, DTYPES, NATIVE, make_case, needs_native

from headrace.runtime import host_attention
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.native.library import LOADER


def run_at_once(calls):
    """Run each call on a thread of its own."""
    callers = [threading.Thread(target=call) for call in calls]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


@needs_native
@pytest.mark.parametrize("threads", range(1, 2 * CORES + 1))
def test_any_number_of_threads(threads):
    """Results are exact, and the same whoever was faster."""
    for variant in NATIVE:
        with HostAttention(threads=threads, variant=variant) as attention:
            for dtype in DTYPES:
                case = make_case((5000, 3, 700, 1), grouped=4, dtype=dtype)
                first = case.attend(attention)
                assert_small(case, first)
                for _ in range(20):
                    again = case.attend(attention)
                    assert torch.equal(again.output, first.output)
                    assert torch.equal(again.maximum, first.maximum)
                    assert torch.equal(again.total, first.total)


@needs_native
@pytest.mark.parametrize("threads", range(1, CORES + 2))
def test_threads_of_torch_attend_too(threads):
    """Results are those of own threads, also for several callers and beside torch's products."""
    left, right = torch.randn(2, 200, 200)
    product = left @ right
    for variant in NATIVE:
        with (
            HostAttention(threads, variant) as own,
            HostAttention(threads, variant, of_torch=True) as attention,
        ):
            case = make_case((5000, 3, 700, 1), grouped=4)
            expected = case.attend(own)
            wrong = []

            def call(case=case, attention=attention, expected=expected, wrong=wrong):
                for _ in range(20):
                    found = case.attend(attention)
                    if not (
                        torch.equal(found.output, expected.output)
                        and torch.equal(left @ right, product)
                    ):
                        wrong.append(found)

            run_at_once([call, call])
            assert not wrong


@needs_native
def test_without_openmp_its_own_threads_attend(monkeypatch):
    monkeypatch.setattr(host_attention, "torch_team", lambda: None)
    with HostAttention(2, of_torch=True) as attention:
        case = make_case((300, 10), grouped=2)
        assert_small(case, case.attend(attention))


def test_callers_on_several_threads_take_turns(attention):
    cases = [make_case((300, 10), grouped=2, seed=seed) for seed in range(4)]
    expected = [case.attend(attention) for case in cases]
    wrong = []

    def call(index):
        for _ in range(20):
            part = cases[index].attend(attention)
            if not torch.equal(part.output, expected[index].output):
                wrong.append(index)

    run_at_once([partial(call, index) for index in range(4)])
    assert not wrong


@needs_native
def test_pools_exist_side_by_side():
    case = make_case((2000,), grouped=2)
    with HostAttention(threads=2) as one, HostAttention(threads=3) as other:
        for _ in range(10):
            for attention in (one, other):
                assert_small(case, case.attend(attention))


@needs_native
def test_a_call_leaves_torch_as_it_was():
    """Torch's products on the caller's thread, which may use the same tiles, come out the same."""
    case = make_case((300, 70), grouped=5, dtype=torch.bfloat16)
    left, right = torch.randn(2, 96, 96).bfloat16()
    for variant in NATIVE:
        with HostAttention(threads=2, variant=variant) as attention:
            expected, first = left @ right, case.attend(attention)
            for _ in range(5):
                assert torch.equal(left @ right, expected)
                assert torch.equal(case.attend(attention).output, first.output)


@needs_native
def test_memory_is_read():
    with HostAttention(threads=2) as attention:
        attention.stream_read(torch.ones(3_000_001, dtype=torch.uint8), torch.ones(5))


@needs_native
def test_a_forked_process_attends_too():
    """Its threads are not there; the caller does all the work."""
    script = """
import os, sys, torch
torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
from tests.host_attention_errors import assert_small
from tests.host_attention_support import make_case
from headrace.runtime import host_attention
from headrace.runtime.host_attention import HostAttention
case = make_case((3000,), grouped=2)
attention = HostAttention(threads=3)
case.attend(attention)
child = os.fork()
if child == 0:
    try:
        assert_small(case, case.attend(attention))
        attention.close()
    except BaseException:
        os._exit(1)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    built = Path(LOADER.load()._name).parents[1]  # so that the child need not build it anew
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "HEADRACE_CACHE": str(built)}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | paths, timeout=120)
