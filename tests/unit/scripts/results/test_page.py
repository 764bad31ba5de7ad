"""The results page is what the results make of it, and takes in new ones by itself."""

import copy
from pathlib import Path

import pytest
from scripts.results.__main__ import changed, leftover
from scripts.results.page import Page
from scripts.results.quoted import RESULTS, ROOT
from scripts.results.runs import load, newest, runs_of
from scripts.results.tables import quoted_table, run_table
from scripts.results.targets import target_table

BASE = Path("h100-d/opt-6.7b-24gib.json")
FOLDERS = ("cpu", "emulated", "h100-a", "h100-b", "h100-c", "h100-d", "predicted", "simulated")
"""Those that these tests are about; what is measured later changes nothing for them."""


def test_the_page_its_pictures_and_the_tables_of_others_are_up_to_date():
    stale = [str(path) for path in [*changed(ROOT), *leftover(ROOT)]]
    assert not stale, f"not what the results make of them: {', '.join(stale)}; run make results"


def test_every_machine_that_was_measured_is_shown():
    text = (ROOT / "docs/results.md").read_text("utf-8")
    runs = list(runs_of(load(ROOT / RESULTS)))
    assert runs
    for run in runs:
        assert f"### {run.machine}" in text or run.origin == "emulated"
    for run in newest(runs):
        assert run.file.as_posix() in text


def second_schema(date="2026-12-01T00:00:00+00:00", **changes):
    """Return a case as the suite writes it: with rivals, exactness and what could not run."""
    data = copy.deepcopy(load(ROOT / RESULTS)[BASE])
    data |= {"schema_version": 2, "case": "opt-6.7b-24gib", "passed": True, "adapted": ["smaller"]}
    data["environment"]["date"] = date
    data["workload"] |= {
        "gpu_memory": 24 * 2**30,
        "layers": 32,
        "weights_on_host": 0.0,
        "narrow": 1,
    }
    data["asked"] = {"layers": 32}
    agreement = {
        "compared_with": "transformers",
        "tokens_identical": True,
        "max_logit_error": 0.002,
        "tolerance": 0.01,
        "passed": True,
    }
    for one in data["policies"]:
        one |= {"host_fraction": 0.25, "agreement": agreement}
    rival = {"rival": "transformers", "step_s": 0.05, "peak_gpu_bytes": 60 * 2**30}
    data["rivals"] = [{**rival, "tokens_per_s": 1280.0, "agreement": None}]
    data["unable"] = [{"name": "transformers-static", "reason": "too large"}]
    return {**data, **changes}


@pytest.fixture
def files():
    found = load(ROOT / RESULTS)
    return {path: data for path, data in found.items() if path.parts[0] in FOLDERS}


def shown(files):
    return {run.file.as_posix() for run in newest(runs_of(files))}


def test_of_each_work_the_newest_run_is_shown(files):
    assert BASE.as_posix() in shown(files)
    assert "h100-b/opt-6.7b-24gib.json" not in shown(files)
    new = Path("new/opt-6.7b-24gib.json")
    assert shown({**files, new: second_schema()}) == shown(files) - {BASE.as_posix()} | {str(new)}
    old = second_schema(date="2020-01-01T00:00:00+00:00")
    assert shown({**files, new: old}) == shown(files)


def test_a_run_whose_tokens_differ_is_not_shown(files):
    wrong = second_schema(passed=False)
    first = wrong["policies"][0]
    first["agreement"] = {**first["agreement"], "passed": False}
    assert shown({**files, Path("new/opt-6.7b-24gib.json"): wrong}) == shown(files)


def test_a_run_in_which_a_rival_alone_differs_is_shown(files):
    new = Path("new/opt-6.7b-24gib.json")
    found = shown({**files, new: second_schema(passed=False)})
    assert found == shown(files) - {BASE.as_posix()} | {str(new)}


def test_the_same_work_under_another_name_takes_the_others_place(files):
    new = Path("new/other.json")
    assert BASE.as_posix() not in shown({**files, new: second_schema(case="other")})


def test_a_new_folder_is_taken_in_with_rivals_and_exactness(files):
    text = Page(
        {**files, Path("new/opt-6.7b-24gib.json"): second_schema()}, "{{ measured }}"
    ).text()
    part = text.split("#### opt-6.7b-24gib")[1].split("####")[0]
    assert "new/opt-6.7b-24gib.json" in part
    assert "| transformers |" in part
    assert "identical, 2.0e-03 of 1.0e-02" in part
    assert "the others are compared with it" in part
    assert "- smaller" in part
    assert "`transformers-static` cannot run: too large" in part
    assert "within 24.0 GiB" in part
    assert "Earlier, on the NVIDIA H100" in text


def test_a_suite_of_several_cases_is_taken_in(files):
    case = second_schema()
    for one in case["policies"]:
        one["origin"] = "emulated"
    case["machine"] = "a100-40gb-pcie4"
    where = case.pop("environment") | {"gpu": None}
    suite = {"schema_version": 2, "workloads": ["suite"], "environment": where, "cases": [case]}
    page = Page({**files, Path("new/suite.json"): suite}, "{{ emulated }}")
    part = page.text().split("### opt-6.7b-24gib")[1]
    assert "Emulated: a100-40gb-pcie4" in part
    assert "`headrace bench suite`" in part


def test_words_may_not_have_figures_of_their_own(files):
    with pytest.raises(ValueError, match=r"235\.3 ms"):
        Page(files, "It took 235.3 ms.").text()


def test_figures_in_words_come_from_the_newest_run_or_from_a_file(files):
    place = "{{ opt-6.7b-24gib | policies[auto].step_s | .1 ms }}"
    assert Page(files, place).text() == "268.0 ms"
    new = second_schema()
    new["policies"][-1]["step_s"] = 0.1234
    assert Page({**files, Path("new/x.json"): new}, place).text() == "123.4 ms"
    place = place.replace("opt-6.7b-24gib |", "h100-b/opt-6.7b-24gib.json |")
    assert Page(files, place).text() == "235.3 ms"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("{{ nothing }}", "neither a section"),
        ("{{ no-case | a | .1 ms }}", "no run is shown"),
        ("{{ no/file.json | a | .1 ms }}", "no file"),
    ],
)
def test_a_place_that_cannot_be_filled_is_named(files, place, words):
    with pytest.raises(ValueError, match=words):
        Page(files, place).text()


def test_aims_are_judged_by_the_figures(files):
    run = next(run for run in newest(runs_of(files)) if run.file == BASE)
    assert "| opt-6.7b-24gib | `auto` at least 4 × `stream` | 2.57 × | **no** |" in target_table(
        [run]
    )
    fast = second_schema()
    fast["policies"][-1]["step_s"] = 0.1
    (run,) = runs_of({Path("new/x.json"): fast})
    assert "| opt-6.7b-24gib | `auto` at least 4 × `stream` | 6.88 × | yes |" in target_table([run])


def test_a_table_leaves_out_columns_that_say_nothing():
    (run,) = runs_of({BASE: load(ROOT / RESULTS)[BASE]})
    assert "by the host" not in run_table(run)
    (run,) = runs_of({BASE: second_schema()})
    assert "by the host" in run_table(run)


def test_a_table_of_what_did_not_run_is_refused():
    (run,) = runs_of({BASE: second_schema()})
    with pytest.raises(ValueError, match="has no 'resident'"):
        quoted_table(run, ["stream", "resident"])
