"""Which runs are of one work, and which visit is typical."""

from pathlib import Path

import pytest
from scripts.results.quoted import RESULTS, ROOT
from scripts.results.runs import load, runs_of
from scripts.results.works import gain, headline, reference, works_of
from tests.unit.scripts.results.second_schema import BASE, second_schema, taking

FOLDERS = ("cpu", "emulated", "h100-a", "h100-b", "h100-c", "h100-d", "predicted", "simulated")
"""Those that these tests are about; what is measured later changes nothing for them."""


@pytest.fixture
def files():
    found = load(ROOT / RESULTS)
    return {file: data for file, data in found.items() if file.parts[0] in FOLDERS}


def visits(files, name="opt-6.7b-24gib"):
    """Return where the runs of a work on the GPU are, the slowest first."""
    found = [
        work for work in works_of(runs_of(files)) if work.name == name and "H100" in work.machine
    ]
    return [run.file.as_posix() for work in found for run in work.runs]


def test_every_visit_is_a_run_of_the_work_the_slowest_first(files):
    folders = ["h100-a", "h100-c", "h100-d", "h100-b"]
    named = [f"{folder}/opt-6.7b-24gib.json" for folder in folders]
    assert visits(files) == ["h100-a/opt-6.7b-24gib-small-pages.json", *named]


def test_runs_of_the_first_schema_are_left_out_where_there_are_newer(files):
    new = Path("new/opt-6.7b-24gib.json")
    old = second_schema(date="2020-01-01T00:00:00+00:00")
    assert visits({**files, new: second_schema()}) == [str(new)]
    assert visits({**files, new: old}) == [str(new)]


def test_a_run_of_smaller_sizes_is_left_out_where_it_ran_as_asked(files):
    cut, whole = Path("cut/opt-6.7b-24gib.json"), Path("whole/opt-6.7b-24gib.json")
    small = second_schema(adapted=["host memory: 44 GiB needed, 40 GiB free"])
    assert visits({**files, cut: small}) == [str(cut)]
    assert visits({**files, cut: small, whole: second_schema(adapted=[])}) == [str(whole)]


def test_a_run_whose_tokens_differ_is_not_shown(files):
    wrong = second_schema(passed=False)
    first = wrong["policies"][0]
    first["agreement"] = {**first["agreement"], "passed": False}
    assert visits({**files, Path("new/opt-6.7b-24gib.json"): wrong}) == visits(files)


def test_a_run_in_which_a_rival_alone_differs_is_shown(files):
    new = Path("new/opt-6.7b-24gib.json")
    assert visits({**files, new: second_schema(passed=False)}) == [str(new)]


def test_the_same_work_under_another_name_is_the_same_work(files):
    new = Path("new/other.json")
    found = {**files, new: second_schema(case="other")}
    assert visits(found) == []
    assert visits(found, "other") == [str(new)]


@pytest.mark.parametrize(
    ("steps", "typical"),
    [([0.3], 0.3), ([0.3, 0.2], 0.3), ([0.3, 0.1, 0.2], 0.2), ([0.4, 0.1, 0.2, 0.3], 0.3)],
)
def test_typical_is_the_visit_in_the_middle_the_slower_one_of_two(steps, typical):
    files = {
        Path(f"visit-{n}/opt-6.7b-24gib.json"): taking(step_s, f"2026-12-0{n + 1}T00:00:00+00:00")
        for n, step_s in enumerate(steps)
    }
    (work,) = works_of(runs_of(files))
    assert work.typical.steps["auto"] == typical
    assert work.best.steps["auto"] == min(steps)
    assert work.slowest.steps["auto"] == max(steps)
    assert [run.steps["auto"] for run in work.by_date] == steps


def test_works_are_in_the_order_of_the_catalogue(files):
    names = [work.name for work in works_of(runs_of(files)) if "H100" in work.machine]
    assert names[:3] == ["opt-6.7b-24gib", "opt-13b-16gib", "llama-3-8b-21gib"]
    assert names[3:] == sorted(names[3:])


def test_a_run_is_judged_by_auto_over_stream_and_where_all_fits_by_resident_over_transformers():
    data = second_schema()
    (run,) = runs_of({BASE: data})
    assert (headline(run), reference(run)) == ("auto", "stream")
    assert gain(run) == run.steps["stream"] / run.steps["auto"]
    data["policies"][-1] |= {"policy": "resident", "step_s": 0.04}
    data["policies"] = data["policies"][-1:]
    (run,) = runs_of({BASE: data})
    assert (headline(run), reference(run)) == ("resident", "transformers")
    assert gain(run) == pytest.approx(0.05 / 0.04)
    del data["rivals"]
    (run,) = runs_of({BASE: data})
    assert (headline(run), reference(run)) == ("resident", None)
    assert gain(run) == pytest.approx(1 / 0.04)
