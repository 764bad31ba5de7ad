import json

import pytest
from tests.e2e.in_process import assert_refused, run_here

WORK = ["--rows", "4", "--prompt", "128", "--generate", "16"]
PLAN = ["plan", "opt-6.7b", *WORK, "--hardware", "t4-pcie3"]


def with_hardware(hardware):
    return ["plan", "opt-6.7b", *WORK, "--hardware", hardware]


def with_model(model):
    return ["plan", model, *WORK, "--hardware", "t4-pcie3"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--help-me"], ["COMMAND", "headrace --help"]),
        (with_model("no-such/model"), ["no-such/model", "hub id", "llama-3-8b"]),
    ],
)
def test_a_process_ends_with_one_line_and_exit_code_2(headrace, words, parts):
    assert_refused(headrace(*words), parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["plam", "--help-me"], ["plam", "plan", "profile"]),
        (["plan", "opt-6.7b"], ["--rows", "--prompt", "headrace plan --help"]),
        ([*PLAN, "--rows", "many"], ["--rows", "many"]),
        (with_hardware("h300"), ["h300", "h200-141gb-pcie5"]),
        (with_model("/no/such/model"), ["/no/such/model", "config.json", "llama-3-8b"]),
        (with_model("lama-3-8b"), ["did you mean 'llama-3-8b'?"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, *words, "--quiet"), parts)


def test_an_error_is_an_object_too_where_json_is_wanted(headrace):
    done = headrace(*with_hardware("h300"), "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ProfileError"
    assert done.stderr == f"headrace: error: {error['message']}\n"


@pytest.mark.parametrize("content", ["", '{"schema_version": 1', '{"schema_version": 99}', "[]"])
def test_a_damaged_profile_is_named(capsys, tmp_path, content):
    file = tmp_path / "damaged.json"
    file.write_text(content)
    words = with_hardware(file)
    assert_refused(run_here(capsys, *words, "--quiet"), [str(file), "headrace profile"])


def test_a_page_that_cannot_be_written_is_named(capsys, tmp_path):
    page = tmp_path / "no" / "page.html"
    words = [*PLAN, "--dtype", "float16", "--timeline", page]
    assert_refused(run_here(capsys, *words, "--quiet"), [str(page)])
