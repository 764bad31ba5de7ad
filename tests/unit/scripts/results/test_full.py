"""Every run is told in full on the page of its visit."""

from pathlib import Path

from scripts.results.full import full_pages
from scripts.results.quoted import RESULTS, ROOT
from scripts.results.runs import load, runs_of
from scripts.results.tables import run_table
from tests.unit.scripts.results.second_schema import second_schema

NEW = Path("new/opt-6.7b-24gib.json")


def test_every_run_and_every_check_is_on_the_page_of_its_visit():
    files = load(ROOT / RESULTS)
    pages = full_pages(files)
    for run in runs_of(files):
        part = pages[run.page].split(f"\n## {run.name}\n")[1].split("\n## ")[0]
        assert f"../../benchmarks/results/{run.file}" in part
        assert run_table(run) in part
    for folder in ("h100-j", "h200-b"):
        assert "\n## Exactness on small models, audited on this machine\n" in pages[folder]
    assert "\n## Rows that come and go\n" in pages["h100-j"]
    assert "\n## Exactness with streamed weights\n" in pages["h100-i"]
    assert "throughput gained over `stream`" in pages["simulated"]


def test_a_new_visit_gets_a_page_with_rivals_and_exactness():
    pages = full_pages({NEW: second_schema()})
    assert list(pages) == ["new", "README"]
    assert "| [new](new.md) | measured | NVIDIA H100 80GB HBM3 |" in pages["README"]
    assert pages["new"].startswith("# NVIDIA H100 80GB HBM3, measured: new\n")
    part = pages["new"].split("## opt-6.7b-24gib")[1]
    assert "new/opt-6.7b-24gib.json" in part
    assert "| transformers |" in part
    assert "identical, 2.0e-03 of 1.0e-02" in part
    assert "the others are compared with it" in part
    assert "- smaller" in part
    assert "`transformers-static` cannot run: too large" in part
    assert "within 24.0 GiB" in part
    assert "counts nowhere" not in part


def test_a_run_whose_tokens_differ_is_told_and_marked():
    wrong = second_schema(passed=False)
    wrong["policies"][0]["agreement"] = {**wrong["policies"][0]["agreement"], "passed": False}
    page = full_pages({NEW: wrong})["new"]
    assert "counts nowhere" in page
    assert "DIFFERENT" in page


def test_a_suite_of_several_cases_has_a_page_for_each_machine_that_was_emulated():
    cases = [second_schema(machine=name) for name in ("a100-40gb-pcie4", "rtx4090-pcie4")]
    for case in cases:
        where = case.pop("environment") | {"gpu": None}
        for one in case["policies"]:
            one["origin"] = "emulated"
    suite = {"schema_version": 2, "workloads": ["suite"], "environment": where, "cases": cases}
    pages = full_pages({Path("new/suite.json"): suite})
    assert list(pages) == ["new-a100-40gb-pcie4", "new-rtx4090-pcie4", "README"]
    assert "Emulated: a100-40gb-pcie4." in pages["new-a100-40gb-pcie4"]
    assert "`headrace bench suite`" in pages["new-a100-40gb-pcie4"]
