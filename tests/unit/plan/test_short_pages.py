"""What short pages take the host's attention: as measured, in the planner and in the simulator."""

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.decode import decode_program
from headrace.plan.demands import attained_rates, host_attention, short_pages
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy, Split
from headrace.plan.step_work import Schedule, StepWork
from headrace.plan.whatif import scaled
from headrace.plan.work import bound_s, operation_work_s
from headrace.plan.workload import Workload

OPT = replace(published_shape("opt-6.7b"), dtype="bfloat16")
CALLS = replace(
    machine("h200-141gb-pcie5"), attend_call_s=33e-6, rebuild_call_s=35e-6, load_call_s=20e-6
)
SLOW = replace(CALLS, host_page_s=30e-9)
SMALL = PlanOptions(policy=Policy.AUTO, gpu_memory_bytes=24 << 30)
WORKLOAD = Workload(64, 1024, 24)
PAGE_TOKENS = (16, 32, 64, 128)


def cores_s(profile, page_tokens):
    work = StepWork(OPT, 64, 1024, 1024, page_tokens=page_tokens)
    return sum(term.seconds for term in host_attention(work, profile))


def test_only_pages_shorter_than_the_measured_ones_are_counted():
    assert [short_pages(6400, tokens) for tokens in PAGE_TOKENS] == [300, 100, 0, 0]


def test_each_takes_what_was_measured():
    read_s = cores_s(CALLS, 16)
    for tokens in PAGE_TOKENS:
        more_pages = short_pages(64 * 1024 * OPT.num_kv_heads * OPT.num_layers, tokens)
        assert cores_s(SLOW, tokens) == pytest.approx(read_s + more_pages * 30e-9)
        assert cores_s(CALLS, tokens) == pytest.approx(read_s)


@pytest.mark.parametrize("page_tokens", PAGE_TOKENS)
def test_a_program_says_the_same_as_the_planner(page_tokens):
    geometry = Geometry(page_tokens, 1 << 25)
    program = decode_program(OPT, 64, 1024, Split(host=1.0), geometry, Policy.HOST)
    read = [replace(op, link_bytes=0) for op in program.operations if op.kind is Kind.HOST_ATTEND]
    found = sum(operation_work_s(op, SLOW, OPT.dtype) for op in read)
    assert found == pytest.approx(cores_s(SLOW, page_tokens))
    longer = bound_s(program, SLOW, OPT.dtype) - bound_s(program, CALLS, OPT.dtype)
    assert (longer > 0) == (page_tokens < 64)


def test_the_cores_rate_is_of_the_bytes_alone():
    values = {column: 1.0 for column, _, _ in StepWork(OPT, 64, 1024, 1024).columns("host")}
    rates = [
        attained_rates(
            StepWork(OPT, 64, 1024, 1024, page_tokens=tokens), SLOW, ("host",), values
        ).cores
        for tokens in (16, 64)
    ]
    expected = SLOW.host_attend_rate * cores_s(CALLS, 16) / cores_s(SLOW, 16)
    assert rates == pytest.approx([expected, SLOW.host_attend_rate])


def test_pages_are_longer_where_short_ones_take_the_cores_time():
    chosen = {
        page_s: Decider(OPT, WORKLOAD, replace(CALLS, host_page_s=page_s), SMALL).decide(
            Policy.AUTO
        )
        for page_s in (None, 0.0, 100e-9)
    }
    tokens = [one.geometry.block_tokens for one in chosen.values()]
    assert tokens[0] == tokens[1] == 16
    assert tokens[2] == 64
    # It is the better choice of the two, by what the planner knows.
    decider = Decider(OPT, WORKLOAD, replace(CALLS, host_page_s=100e-9), SMALL)
    short = decider.at(Policy.AUTO, Schedule.ROW, chosen[None].geometry)
    assert decider.estimated_step_s(chosen[100e-9]) < decider.estimated_step_s(short)


def test_what_a_page_takes_goes_with_the_cores_rate():
    assert SLOW.with_rates(0.5).host_page_s == pytest.approx(60e-9)
    assert scaled(SLOW, ("host_attend_bytes_per_s",), 2.0).host_page_s == pytest.approx(15e-9)
    assert scaled(SLOW, ("h2d_bytes_per_s",), 2.0).host_page_s == SLOW.host_page_s
    assert scaled(CALLS, ("host_attend_bytes_per_s",), 2.0).host_page_s is None
