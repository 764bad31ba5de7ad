from dataclasses import replace

import pytest

from headrace.errors import ConfigurationError
from headrace.hardware.catalog import machine
from headrace.model.published import published_shape
from headrace.plan.decision import Decider
from headrace.plan.demands import Schedule
from headrace.plan.options import PlanOptions
from headrace.plan.policies import Policy, Split
from headrace.plan.replan import Ratios, Replanner
from headrace.plan.step_work import PATHS
from headrace.plan.workload import Workload

OPT = published_shape("opt-6.7b")
GEMMA = published_shape("gemma-2-9b")
A100 = machine("a100-40gb-pcie4")
CASES = [
    (OPT, A100, Workload(64, 1024, 32)),
    (GEMMA, machine("rtx4090-pcie4"), Workload(16, 7000, 100)),
    (published_shape("llama-3-8b"), A100, Workload(64, 4096, 32, 4)),
]


def replanner(shape, profile, workload, **settings):
    options = PlanOptions.checked(**settings)
    decided = Decider(shape, workload, profile, options).decide(options.policy)
    return Replanner(shape, profile, options, decided.geometry)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", [Policy.AUTO, Policy.RECOMPUTE, Policy.HOST])
def test_it_is_a_fresh_decision_for_the_same_geometry(case, policy):
    shape, profile, workload = case
    made = replanner(shape, profile, workload, policy=policy)
    grown = Workload(workload.rows // 2, workload.prompt_len + 500, 20)
    fresh = Decider(shape, grown, profile, made.options).at(policy, Schedule.ROW, made.geometry)
    again = made.split(grown.rows, grown.prompt_len, generate_len=20)
    assert again == fresh
    assert again.geometry == made.geometry
    assert again.fits


def test_more_context_takes_longer_and_fewer_rows_less():
    made = replanner(OPT, A100, Workload(64, 1024, 32))
    by_context = [made.split(64, context).optimum.step_s for context in range(256, 2049, 128)]
    assert by_context == sorted(by_context)
    by_rows = [made.split(rows, 1024).optimum.step_s for rows in range(1, 65)]
    assert by_rows == sorted(by_rows)


def test_what_is_kept_on_the_device_goes_as_the_context_grows():
    made = replanner(OPT, A100, Workload(64, 1024, 32))
    resident = [made.split(64, context).split.resident for context in (256, 512, 1024, 2048)]
    assert resident == sorted(resident, reverse=True)
    assert resident[0] > resident[-1]


def test_the_schedule_and_the_machine_count():
    options = PlanOptions.checked(schedule="column")
    made = replace(replanner(OPT, A100, Workload(64, 1024, 32)), options=options)
    assert made.split(64, 1024, batches=4).schedule is Schedule.COLUMN
    paper = replace(made, profile=machine("paper-a100"), options=PlanOptions())
    assert paper.split(64, 1024).split.host == 0
    with pytest.raises(ConfigurationError, match="lets the host attend"):
        replace(paper, options=PlanOptions(policy=Policy.HOST)).split(64, 1024)


def test_the_host_gets_the_share_that_makes_the_step_shortest():
    made = replanner(OPT, A100, Workload(64, 1024, 32))
    share, step_s = made.hosted(32, 1024, 0.2, 0.0)
    for hosted in (0.0, 0.25, 0.5, 0.75, 1.0):
        split = Split(0.2, 0.8 * (1 - hosted), 0.0, 0.8 * hosted)
        assert step_s <= made.step_s(32, 1024, split) * (1 + 1e-9)
    assert 0 < share < 1
    assert made.hosted(32, 1024, 0.5, 0.0)[1] < step_s


SHARED = replace(
    A100,
    host_attend_bytes_per_s=107e9,
    h2d_while_attend_bytes_per_s=0.9 * A100.h2d_bytes_per_s,
    host_attend_while_h2d_bytes_per_s=80e9,
)


@pytest.mark.parametrize("profile", [A100, SHARED], ids=["published", "measured"])
@pytest.mark.parametrize("hosted", [0.03, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0, 2.0])
def test_the_ratio_of_the_cores_rate_is_found_from_the_rate_in_a_step(profile, hosted, ratio):
    made = replanner(OPT, profile, Workload(64, 1024, 32))
    where = 32, 1024, Split(0.0, 1 - hosted, 0.0, hosted)
    slower = made.with_ratios(Ratios(ratio))
    rate = slower.rates(*where).cores
    assert rate <= slower.profile.host_attend_rate * (1 + 1e-9)
    assert made.ratios(*where, cores=rate) == Ratios(pytest.approx(ratio, rel=0.02))


@pytest.mark.parametrize("profile", [A100, SHARED], ids=["published", "measured"])
@pytest.mark.parametrize("hosted", [0.3, 0.7])
@pytest.mark.parametrize("cores", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("link", [0.2, 0.7, 1.0])
def test_both_ratios_are_found_from_the_rates_of_a_step(profile, hosted, cores, link):
    made = replanner(OPT, profile, Workload(64, 1024, 32))
    where = 32, 1024, Split(0.0, 1 - hosted, 0.0, hosted)
    rates = made.with_ratios(Ratios(cores, link)).rates(*where)
    assert rates.link <= link * A100.h2d_bytes_per_s * (1 + 1e-9)
    found = made.ratios(*where, link=rates.link, cores=rates.cores)
    again = made.with_ratios(found).rates(*where)
    assert again == pytest.approx(rates, rel=0.03)


def test_a_link_that_is_faster_beside_the_cores_is_never_faster_than_alone():
    made = replanner(OPT, SHARED, Workload(64, 1024, 32))
    where = 32, 1024, Split(0.0, 0.5, 0.0, 0.5)
    found = made.ratios(*where, link=2 * A100.h2d_bytes_per_s)
    assert found == Ratios(1.0, pytest.approx(1 / 0.9))
    assert made.with_ratios(found).profile.joint_rates[0] == pytest.approx(A100.h2d_bytes_per_s)
    slower = made.with_ratios(Ratios(1.0, 0.5)).profile
    assert slower.h2d_bytes_per_s == pytest.approx(0.5 * A100.h2d_bytes_per_s)
    assert slower.joint_rates[0] == pytest.approx(0.45 * A100.h2d_bytes_per_s)


def test_what_was_not_seen_stays_as_it_is_known():
    made = replanner(OPT, SHARED, Workload(64, 1024, 32))
    where, known = (32, 1024, Split(0.0, 0.5, 0.0, 0.5)), Ratios(0.5, 0.8)
    assert made.ratios(*where, known=known) == known
    rates = made.with_ratios(known).rates(*where)
    assert made.ratios(*where, link=rates.link, known=known).cores == 0.5


def test_slower_cores_get_less_and_so_does_a_slower_link():
    made = replanner(OPT, SHARED, Workload(64, 1024, 32))

    def shares(of):
        return [made.with_ratios(of(one)).hosted(32, 1024, 0.2, 0.0)[0] for one in (1, 0.5, 0.1)]

    by_cores, by_link = shares(Ratios), shares(lambda ratio: Ratios(1.0, ratio))
    assert by_cores == sorted(by_cores, reverse=True)
    assert by_cores[0] > by_cores[-1]
    assert by_link == sorted(by_link)
    assert by_link[0] < by_link[-1]
    assert made.with_ratios(Ratios()).profile.joint_rates == SHARED.joint_rates


def test_a_path_that_may_not_be_taken_gets_nothing():
    made = replanner(OPT, A100, Workload(64, 1024, 32), paths=("resident", "stream", "recompute"))
    assert made.hosted(32, 1024, 0.2, 0.0)[0] == 0


BOUNDS = [
    ({"resident": 0.1, "recompute": 0.2}, {"resident": 0.3, "recompute": 0.4}, 0.3),
    ({"resident": 0.0, "recompute": 0.5}, {"resident": 0.0, "recompute": 0.6}, 0.4),
    ({"resident": 0.0, "recompute": 0.0}, {"resident": 0.0, "recompute": 0.0}, 0.0),
]


@pytest.mark.parametrize(("least", "most", "on_host"), BOUNDS)
@pytest.mark.parametrize("paths", [PATHS, ("stream", "recompute", "resident")])
def test_a_batch_is_completed_within_what_is_there_and_what_there_is_room_for(
    least, most, on_host, paths
):
    made = replanner(OPT, A100, Workload(64, 1024, 32))
    split = made.completed(32, 1024, least, most, on_host, paths)
    for path in ("resident", "recompute"):
        assert least[path] - 1e-9 <= getattr(split, path) <= most[path] + 1e-9
    assert split.stream + split.host >= on_host - 1e-9
    if "host" not in paths:
        assert split.host == 0
    step_s = made.step_s(32, 1024, split)
    for part in range(5):
        resident, recompute = (
            least[path] + part / 4 * (most[path] - least[path])
            for path in ("resident", "recompute")
        )
        if 1 - resident - recompute >= on_host and "host" in paths:
            assert step_s <= made.hosted(32, 1024, resident, recompute)[1] * (1 + 1e-6)


def test_shares_that_do_not_go_together_are_completed_in_no_way():
    made = replanner(OPT, A100, Workload(64, 1024, 32))
    least, most = {"resident": 0.4, "recompute": 0.4}, {"resident": 0.5, "recompute": 0.5}
    assert made.completed(32, 1024, least, most, 0.3, PATHS) is None
