"""The results page is what the results make of it, and takes in new ones by itself."""

from pathlib import Path

import pytest
from scripts.results.__main__ import changed, generated, leftover, undrawn
from scripts.results.page import Page
from scripts.results.quoted import GENERATED, PAGES, RESULTS, ROOT
from scripts.results.runs import load, runs_of
from scripts.results.tables import quoted_table, run_table
from scripts.results.works import works_of
from tests.unit.scripts.results.second_schema import BASE, second_schema, taking

FOLDERS = ("cpu", "emulated", "h100-a", "h100-b", "h100-c", "h100-d", "predicted", "simulated")
"""Those that these tests are about; what is measured later changes nothing for them."""
NEW = Path("new/opt-6.7b-24gib.json")
READABLE_BYTES = 30_000


def test_pages_pictures_and_the_tables_of_other_pages_are_up_to_date():
    stale = [str(path) for path in [*changed(ROOT), *undrawn(ROOT), *leftover(ROOT)]]
    assert not stale, f"not what the results make of them: {', '.join(stale)}; run make results"


def test_every_run_has_its_page_and_the_results_page_leads_to_it():
    text = (ROOT / GENERATED).read_text("utf-8")
    visits = (ROOT / PAGES / "README.md").read_text("utf-8")
    assert "](results/README.md)" in text
    runs = list(runs_of(load(ROOT / RESULTS)))
    assert runs
    for run in runs:
        page = PAGES / f"{run.page}.md"
        assert (ROOT / page).is_file()
        assert f"]({run.page}.md)" in visits
    for work in works_of(runs):
        assert f"### {work.machine}" in text or work.typical.of_first_schema


def test_the_results_page_is_short_enough_to_be_read():
    assert len((ROOT / GENERATED).read_bytes()) < READABLE_BYTES


def test_what_is_no_longer_made_is_found(tmp_path):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "README.md").write_text("", "utf-8")
    stray = [Path("docs/img/results-old.png"), Path("docs/img/results-old.svg"), PAGES / "old.md"]
    for path in [*stray, *generated(ROOT), Path("docs/img/how-it-works.svg")]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("", "utf-8")
    assert leftover(tmp_path) == stray


@pytest.fixture
def files():
    found = load(ROOT / RESULTS)
    return {path: data for path, data in found.items() if path.parts[0] in FOLDERS}


def lines(text, start):
    return [line for line in text.split("\n") if line.startswith(start)]


def test_a_new_folder_is_taken_in(files):
    text = Page({**files, NEW: second_schema()}, "{{ machines }}\n\n{{ measured }}").text()
    assert "[1](results/README.md)" in text
    (steps,) = lines(text, "| [opt-6.7b-24gib](results/new.md#opt-67b-24gib) |")
    assert "| opt-6.7b, 64 × 1,024, 24.0 GiB |" in steps
    assert steps.endswith("| 268.0 | 2.57 × | 65 % | -34 % | new |")
    assert "`auto` at least 4 × `stream` | opt-6.7b-24gib | 2.57 × |" in text


def test_the_typical_of_several_visits_is_shown_and_each_visit_is_told(files):
    visits = {
        Path(f"visit-{n}/opt-6.7b-24gib.json"): taking(step_s, f"2026-12-0{n + 1}T10:00:00+00:00")
        for n, step_s in enumerate([0.4, 0.1, 0.2])
    }
    page = Page({**files, **visits}, "{{ measured }}\n\n{{ visits }}")
    text = page.text()
    (steps,) = lines(text, "| [opt-6.7b-24gib](")
    assert "(results/visit-2.md#opt-67b-24gib)" in steps
    assert steps.endswith("| visit-2, of 3 |")
    (first,) = lines(text, "| opt-6.7b-24gib |")
    assert "[visit-0](results/visit-0.md#opt-67b-24gib) | 12-01 10:00 |" in first
    assert first.endswith("| 400.0 | -55 % | 1.72 × |")
    assert [line.split("]")[0] for line in lines(text, "|  |")] == [
        "|  | [visit-1",
        "|  | [visit-2",
    ]
    (speed,) = [
        text for name, text in page.pictures.items() if name.endswith("h100-80gb-hbm3-speed.svg")
    ]
    assert "3.44 × (1.72 to 6.88)" in speed


def test_of_many_visits_the_newest_are_told_one_by_one(files):
    visits = {
        Path(f"visit-{n}/opt-6.7b-24gib.json"): taking(0.2, f"2026-12-0{n + 1}T10:00:00+00:00")
        for n in range(8)
    }
    page = Page({**files, **visits}, "{{ visits }}")
    (first,) = lines(page.text(), "| opt-6.7b-24gib |")
    assert "[visit-2]" in first
    assert len(lines(page.text(), "|  |")) == 5


def test_rivals_that_exceed_the_budget_or_are_not_exact_are_marked(files):
    data = second_schema()
    agreement = {**data["policies"][0]["agreement"], "passed": False}
    data["rivals"][0]["within_budget"] = False
    data["rivals"].append({"rival": "transformers-static", "step_s": 0.536, "agreement": agreement})
    text = Page({**files, NEW: data}, "{{ measured }}").text()
    beside = text.partition("Beside transformers")[2]
    (rivals,) = lines(beside, "| [opt-6.7b-24gib](")
    assert "| 268.0 (auto) | 50.0 (0.19 ×); beyond the budget |" in rivals
    assert "| 536.0 (2.00 ×); **not exact** |" in rivals


def test_a_suite_of_several_cases_is_taken_in(files):
    case = second_schema()
    for one in case["policies"]:
        one["origin"] = "emulated"
    case["machine"] = "t4-pcie3"
    where = case.pop("environment") | {"gpu": None}
    suite = {"schema_version": 2, "workloads": ["suite"], "environment": where, "cases": [case]}
    text = Page({**files, Path("new/suite.json"): suite}, "{{ emulated }}").text()
    part = text.split("### t4-pcie3")[1].split("###")[0]
    assert "[new-t4-pcie3](results/new-t4-pcie3.md)" in part
    assert lines(part, "| opt-6.7b-24gib | opt-6.7b, 64 × 1,024, 24.0 GiB |")
    assert lines(text, "| aim | ")[0].endswith("| t4-pcie3 |")


def test_words_may_not_have_figures_of_their_own(files):
    with pytest.raises(ValueError, match=r"235\.3 ms"):
        Page(files, "It took 235.3 ms.").text()


def test_figures_in_words_come_from_a_visit_of_a_work_or_from_a_file(files):
    place = "{{ opt-6.7b-24gib | policies[auto].step_s | .1 ms }}"
    assert Page(files, place).text() == "311.8 ms"
    visits = {
        Path(f"visit-{n}/x.json"): taking(step_s, f"2026-12-0{n + 1}T10:00:00+00:00")
        for n, step_s in enumerate([0.4, 0.1234, 0.2])
    }
    assert Page({**files, **visits}, place).text() == "200.0 ms"
    for which, figure in (("best", "123.4 ms"), ("slowest", "400.0 ms")):
        assert Page({**files, **visits}, place.replace("{{ ", f"{{{{ {which} ")).text() == figure
    place = place.replace("opt-6.7b-24gib |", "h100-b/opt-6.7b-24gib.json |")
    assert Page(files, place).text() == "235.3 ms"


def test_lines_of_lists_are_filled_each_for_itself(files):
    place = "{{ h100-b/opt-6.7b-24gib.json | policies[auto].step_s | .1 ms }}"
    words = " ".join(["word"] * 30)
    text = Page(files, f"- It took\n  {place}.\n- {words}\n  {place}").text()
    assert text.startswith("- It took 235.3 ms.\n- word word")
    assert all(line.startswith(("- ", "  ")) for line in text.split("\n"))
    assert max(map(len, text.split("\n"))) <= 104


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("{{ nothing }}", "neither a section"),
        ("{{ no-case | a | .1 ms }}", "there is no run"),
        ("{{ worst opt-6.7b-24gib | a | .1 ms }}", "there is no run"),
        ("{{ no/file.json | a | .1 ms }}", "no file"),
    ],
)
def test_a_place_that_cannot_be_filled_is_named(files, place, words):
    with pytest.raises(ValueError, match=words):
        Page(files, place).text()


def test_a_table_leaves_out_columns_that_say_nothing():
    (run,) = runs_of({BASE: load(ROOT / RESULTS)[BASE]})
    assert "by the host" not in run_table(run)
    (run,) = runs_of({BASE: second_schema()})
    assert "by the host" in run_table(run)


def test_a_table_of_what_did_not_run_is_refused():
    (run,) = runs_of({BASE: second_schema()})
    with pytest.raises(ValueError, match="has no 'resident'"):
        quoted_table(run, ["stream", "resident"])
