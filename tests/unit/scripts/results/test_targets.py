"""Aims are judged by the figures of every visit."""

from pathlib import Path

from scripts.results.runs import runs_of
from scripts.results.targets import aims_by_machine, aims_table
from scripts.results.works import works_of
from tests.unit.scripts.results.second_schema import BASE, second_schema, taking


def works(*steps):
    """Return a work that was visited as often, in which a step of ``auto`` took so many seconds."""
    files = {
        Path(f"visit-{n}/opt-6.7b-24gib.json"): taking(step_s, f"2026-12-0{n + 1}T00:00:00+00:00")
        for n, step_s in enumerate(steps)
    }
    return works_of(runs_of(files))


def lines(table, aim):
    return [line for line in table.split("\n") if line.startswith(f"| {aim} |")]


def test_one_visit_holds_or_does_not():
    four = "`auto` at least 4 × `stream`"
    (line,) = lines(aims_table(works_of(runs_of({BASE: second_schema()}))), four)
    assert line == f"| {four} | opt-6.7b-24gib | 2.57 × |  |  | **0 of 1** |"
    (line,) = lines(aims_table(works(0.1)), four)
    assert line == f"| {four} | opt-6.7b-24gib | 6.88 × |  |  | 1 of 1 |"


def test_several_visits_are_told_by_the_typical_the_best_and_the_worst():
    four = "`auto` at least 4 × `stream`"
    (line,) = lines(aims_table(works(0.1, 0.2, 0.4)), four)
    assert line == f"| {four} | opt-6.7b-24gib | 3.44 × | 6.88 × | 1.72 × | **1 of 3** |"


def test_an_aim_of_all_works_says_where_it_was_worst():
    table = aims_table(works(0.1, 0.2, 0.5))
    (line,) = lines(table, "`auto` at most 3 % slower than the best other policy")
    assert line.endswith("| 0.69 × (opt-6.7b-24gib, visit-2) | **2 of 3** |")
    (line,) = lines(table, "steps of 0.2 s and more at 90 % of their bound or better")
    assert "(`auto` in opt-6.7b-24gib, visit-2)" in line
    (line,) = lines(table, "median prediction error at most 5 %")
    assert line.endswith("| **no** |")


def test_predictions_that_are_right_hold():
    data = second_schema()
    for one in data["policies"]:
        one["predicted_step_s"] = 1.04 * one["step_s"]
    found = lines(
        aims_table(works_of(runs_of({BASE: data}))), "median prediction error at most 5 %"
    )
    assert found == ["| median prediction error at most 5 % | all | 4.0 % | 4.0 % | 4.0 % | yes |"]


def test_machines_are_compared_by_how_often_an_aim_holds():
    table = aims_by_machine({"fast": works(0.1, 0.12), "slow": works(0.1, 0.4)})
    assert table.startswith("| aim | fast | slow |\n")
    (line,) = lines(table, "`auto` at least 4 × `stream`")
    assert line.endswith("| 2 of 2; least 5.74 × | **1 of 2**; least 1.72 × (opt-6.7b-24gib) |")


def test_without_works_there_is_no_table():
    assert aims_table([]) == ""
