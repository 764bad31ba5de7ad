import json
from pathlib import Path

import pytest
from tests.e2e.in_process import run_here

from headrace.hardware.profile_file import load_profile

WORDS = ("profile", "--model", "demo", "--emulate", "a100-40gb-pcie4", "--quick")
PLAN = ("plan", "demo", "--rows", "4", "--prompt", "128", "--generate", "16")


@pytest.fixture(scope="module")
def measured(headrace):
    """The first profile: measured, and stored."""
    return headrace(*WORDS, "--force", "--json")


def test_standard_output_holds_one_object_and_nothing_else(measured, cache):
    assert measured.returncode == 0
    profile = json.loads(measured.stdout)
    assert (profile["origin"], profile["emulates"]) == ("emulated", "a100-40gb-pcie4")
    assert Path(profile["path"]).is_relative_to(cache)
    assert "gemm_flops_per_s" in measured.stderr


def test_the_stored_profile_is_shown_with_its_label(measured, stored_profile, capsys):
    done = run_here(capsys, *WORDS)
    stored = json.loads(measured.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("EMULATED", stored["path"], stored["date"], "link to the device", "a small copy"):
        assert words in done.stdout


def test_a_profile_can_be_written_to_a_file_and_planned_with(
    measured, stored_profile, capsys, tmp_path
):
    file = tmp_path / "machine.json"
    done = run_here(capsys, *WORDS, "--output", file, "--json")
    assert json.loads(done.stdout)["path"] == str(file)
    assert load_profile(file).emulates == "a100-40gb-pcie4"
    plan = json.loads(run_here(capsys, *PLAN, "--hardware", file, "--json").stdout)
    assert "emulated" in plan["origin"]


def test_a_plan_without_hardware_uses_the_stored_profile(measured, stored_profile, capsys):
    done = run_here(capsys, *PLAN, "--emulate", "a100-40gb-pcie4")
    assert done.returncode == 0
    assert "measuring" not in done.stderr
    assert "EMULATED link" in done.stdout
