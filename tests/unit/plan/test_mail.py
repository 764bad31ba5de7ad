"""Queries and results of the host's attention, where it was measured how long they take."""

from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.decode import decode_program
from headrace.plan.device_time import mail_bytes
from headrace.plan.geometry import Geometry
from headrace.plan.operations import Kind
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy, Split
from headrace.plan.whatif import scaled
from headrace.plan.work import bound_s, operation_s, work_s
from headrace.plan.workload import Workload
from headrace.timeline import Lane

SHAPE = replace(published_shape("opt-6.7b"), dtype="bfloat16")
PLAIN = machine("h200-141gb-pcie5")
RATE, CALL_S = 8e9, 5e-5
SLOW = replace(PLAIN, mail_bytes_per_s=RATE, mail_call_s=CALL_S)
ROWS = 64
MAIL_S = ROWS * mail_bytes(SHAPE) / RATE


@pytest.fixture
def program():
    return decode_program(SHAPE, ROWS, 1024, Split(host=1.0), Geometry(64, 1 << 25), Policy.HOST)


def of_layer(program, kind):
    return next(op for op in program.operations if op.layer == 3 and op.kind is kind)


def test_a_row_has_queries_and_a_result_of_each_head():
    assert mail_bytes(SHAPE) == 32 * (128 * 2 + 130 * 4)


def test_they_are_the_devices_work_where_they_were_measured(program):
    merge, attend = of_layer(program, Kind.MERGE), of_layer(program, Kind.HOST_ATTEND)
    dtype = SHAPE.dtype
    more_s = operation_s(merge, SLOW, dtype) - operation_s(merge, PLAIN, dtype)
    assert more_s == pytest.approx(MAIL_S)
    slower = min(PLAIN.h2d_bytes_per_s, PLAIN.d2h_bytes_per_s)
    beside_s = ROWS * mail_bytes(SHAPE) / slower + 2 * PLAIN.copy_latency_s
    less_s = operation_s(attend, PLAIN, dtype) - operation_s(attend, SLOW, dtype)
    assert less_s == pytest.approx(beside_s - CALL_S)


def test_they_count_for_the_device_and_for_the_cores(program):
    plain, slow = (work_s(program, profile, SHAPE.dtype) for profile in (PLAIN, SLOW))
    layers = SHAPE.num_layers
    assert slow["gpu"] - plain["gpu"] == pytest.approx(layers * MAIL_S)
    slower = min(PLAIN.h2d_bytes_per_s, PLAIN.d2h_bytes_per_s)
    beside_s = ROWS * mail_bytes(SHAPE) / slower
    assert slow["host"] - plain["host"] == pytest.approx(layers * (MAIL_S - beside_s))
    assert bound_s(program, SLOW, SHAPE.dtype) > bound_s(program, PLAIN, SHAPE.dtype)


def test_layers_without_the_cores_have_none():
    split, geometry = Split(stream=1.0), Geometry(64, 1 << 25)
    program = decode_program(SHAPE, ROWS, 1024, split, geometry, Policy.STREAM)
    assert of_layer(program, Kind.MERGE).mail_bytes == 0
    assert not [op for op in program.operations if op.lane is Lane.HOST_ATTEND]


def test_a_plan_does_without_the_cores_where_their_mail_takes_longer_than_they_save():
    options = PlanOptions(policy=Policy.AUTO, gpu_memory_bytes=16 << 30)
    quick, slow = (
        Decider(SHAPE, Workload(64, 128, 24), profile, options).decide(Policy.AUTO)
        for profile in (PLAIN, replace(PLAIN, mail_bytes_per_s=1e8))
    )
    assert quick.split.host > 0
    assert slow.split.host == 0


def test_they_go_with_the_rate_of_the_link():
    assert scaled(SLOW, ("h2d_bytes_per_s",), 2.0).mail_bytes_per_s == 2 * RATE
    assert scaled(SLOW, ("host_attend_bytes_per_s",), 2.0).mail_bytes_per_s == RATE
    assert scaled(PLAIN, ("h2d_bytes_per_s",), 2.0).mail_bytes_per_s is None
