from dataclasses import replace

import pytest

from headrace.hardware.catalog import machine
from headrace.model.cost import all_layers_weight_bytes, kv_bytes_per_token
from headrace.model.published import published_shape
from headrace.plan.operations import Kind
from headrace.plan.options import Objective
from headrace.plan.paper import Method, studies
from headrace.plan.plan import make_plan, plan_program
from headrace.plan.policies import Policy
from headrace.plan.reproduction import methods, one_at_a_time, simulate_study
from headrace.plan.simulate import operation_work_s, predicted_step_s
from headrace.plan.workload import Workload

STUDIES = {study.key: study for study in studies()}
A100 = machine("a100-40gb-pcie4")
OURS = (Method.RECOMPUTE, Method.AUTO, Method.AUTO_HOST, Method.AUTO_FREE)


def only(key, *places):
    """A study with few of its cases, simulated."""
    study = STUDIES[key]
    return list(simulate_study(replace(study, cases=tuple(study.cases[at] for at in places))))


@pytest.fixture(scope="module")
def latency():
    return only("latency-model", 0, 1)


@pytest.fixture(scope="module")
def with_host():
    (row,) = only("latency", 1)
    return row


@pytest.fixture(scope="module")
def throughput():
    (row,) = only("throughput", 0)
    return row


def test_the_settings_are_those_of_the_paper():
    for key in ("latency-model", "latency"):
        cases = STUDIES[key].cases
        assert {case.model for case in cases} == {"opt-6.7b"}
        assert {case.workload.rows for case in cases} == {64}
        lengths = [(case.workload.prompt_len, case.workload.generate_len) for case in cases]
        assert lengths == [(128, 32), (128, 128), (256, 32), (256, 128), (512, 32), (512, 128)]
    cases = STUDIES["throughput"].cases
    assert [(case.model, case.workload.prompt_len) for case in cases] == [
        (model, prompt_len)
        for model in ("opt-6.7b", "opt-13b", "opt-30b")
        for prompt_len in (256, 512, 1024)
    ]
    assert {case.workload.batch_rows for case in cases} == {(32,) * 8}
    assert {case.workload.generate_len for case in cases} == {32}


def test_reported_figures_stand_where_the_paper_has_them():
    for key in ("latency-model", "latency"):
        reported = [case.reported for case in STUDIES[key].cases]
        assert [one and one.share for one in reported] == [None, 0.358, None, None, None, None]
    reported = {case.model: case.reported for case in STUDIES["throughput"].cases}
    shares = {model: one.share for model, one in reported.items()}
    assert shares == {"opt-6.7b": 0.151, "opt-13b": 0.462, "opt-30b": 0.290}
    assert all(one.is_maximum and one.source for one in reported.values())
    for key, study in STUDIES.items():
        assert study.differs
        if key.startswith("low-end"):
            assert all(case.reported is None for case in study.cases)


def test_the_papers_own_machine_has_no_cores_that_could_attend():
    assert methods(STUDIES["latency-model"]) == (
        *(Method.SYNCHRONOUS, Method.STREAM, Method.PAPER),
        *(Method.RECOMPUTE, Method.AUTO),
    )
    assert set(methods(STUDIES["latency"])) == set(Method)
    assert Method.SYNCHRONOUS not in methods(STUDIES["throughput"])


def test_the_papers_schedule_saves_what_its_formula_says(latency):
    short, long = latency
    assert short.saving(Method.PAPER) == pytest.approx(0.352, abs=0.005)
    # Later on there is less X than would be best: only the prompt has any.
    assert 0.25 < long.saving(Method.PAPER) < short.saving(Method.PAPER)


def test_full_transfer_takes_what_the_link_takes(latency):
    shape = published_shape("opt-6.7b")
    for row in latency:
        workload = row.case.workload
        tokens = sum(workload.context_at(step) // 16 * 16 for step in range(workload.decode_steps))
        size_bytes = 64 * tokens * shape.num_layers * kv_bytes_per_token(shape)
        assert row.methods[Method.STREAM].decode_s == pytest.approx(size_bytes / 32e9, rel=1e-3)


def test_ours_is_never_slower_than_the_papers_schedule(latency, with_host, throughput):
    for row in (*latency, with_host, throughput):
        paper = row.methods[Method.PAPER]
        for method in OURS:
            if method in row.methods:
                assert row.methods[method].decode_s <= paper.decode_s
        assert row.saving(Method.STREAM) == row.gain(Method.STREAM) == 0
        assert row.saving(Method.PAPER) > 0


def test_nothing_is_slower_than_one_thing_at_a_time(latency, with_host):
    for row in (*latency, with_host):
        slowest = max(row.methods.values(), key=lambda one: one.decode_s)
        assert slowest.method is Method.SYNCHRONOUS


def test_the_hosts_cores_and_the_devices_memory_help(with_host, throughput):
    for row in (with_host, throughput):
        seconds = [row.methods[method].decode_s for method in OURS[1:]]
        assert seconds == sorted(seconds, reverse=True)
        assert row.methods[Method.AUTO].split.host == 0
        assert row.methods[Method.AUTO_HOST].split.host > 0
        assert row.methods[Method.AUTO_HOST].split.resident == 0


def test_savings_and_gains_are_the_same_thing(with_host):
    for method in with_host.methods:
        saving, gain = with_host.saving(method), with_host.gain(method)
        assert (1 - saving) * (1 + gain) == pytest.approx(1)


def test_weights_stay_on_the_device_or_all_travel(with_host, throughput):
    for one in with_host.methods.values():
        assert one.weights_streamed == 0
    for method, one in throughput.methods.items():
        assert one.schedule == "column"
        if method is not Method.AUTO_FREE:
            assert one.weights_streamed == 1


def test_column_by_column_full_transfer_brings_weights_once_a_step(throughput):
    shape, workload = published_shape("opt-6.7b"), throughput.case.workload
    pages = sum(workload.context_at(step) // 16 * 16 for step in range(31))
    kv_bytes = workload.rows * pages * shape.num_layers * kv_bytes_per_token(shape)
    least_s = (kv_bytes + 31 * all_layers_weight_bytes(shape)) / A100.h2d_bytes_per_s
    found = throughput.methods[Method.STREAM]
    assert least_s * 0.995 <= found.decode_s < 1.05 * least_s
    assert found.tokens_per_s == pytest.approx(256 * 31 / found.decode_s)


def test_one_at_a_time_takes_the_sum_of_all():
    shape = published_shape("opt-6.7b")
    plan = make_plan(shape, Workload(64, 512, 32), A100, policy="stream")
    program = one_at_a_time(plan_program(plan, shape))
    latency_s = {True: A100.copy_latency_s, False: A100.launch_latency_s}
    expected_s = sum(
        operation_work_s(op, A100, shape.dtype) + latency_s[op.kind is Kind.LOAD_KV]
        for op in program.operations
        if op.kind is not Kind.STORE_KV
    )
    assert predicted_step_s(program, A100, shape.dtype, 3) == pytest.approx(expected_s)
    assert expected_s > plan.step_s


def test_what_does_not_fit_is_marked():
    study = STUDIES["low-end-latency"]
    large = replace(study.cases[0], workload=Workload(96, 1984, 32))
    (row,) = simulate_study(replace(study, cases=(large,)))
    # The paper's schedule keeps X besides K/V.
    assert row.methods[Method.STREAM].feasible
    assert not row.methods[Method.PAPER].feasible


def test_studies_are_told_and_their_policies_are_named(throughput):
    told = []
    study = STUDIES["latency-model"]
    rows = list(simulate_study(replace(study, cases=study.cases[:1]), told.append))
    assert told == ["latency-model: opt-6.7b, prompts of 128 tokens"]
    assert rows[0].methods[Method.PAPER].policy is Policy.KVPR
    assert throughput.methods[Method.STREAM].policy is Policy.STREAM
    assert study.objective is Objective.LATENCY
