import argparse
import inspect
import json
import os

import pytest

from headrace import LLM
from headrace.cli import main
from headrace.cli.main import build_parser, load_commands

WORK = ["--rows", "4", "--prompt", "128", "--generate", "16"]
PLAN = ["plan", "opt-6.7b", *WORK, "--hardware", "t4-pcie3"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # Set first, so that it is restored afterwards whatever it was.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def error_of(capsys, words):
    assert main([*words, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--gpu-memory", "much"], ["--gpu-memory", "'much'", "GiB"]),
        (["--host-memory", "-1GiB"], ["--host-memory"]),
        (["--gpu-memory", "0"], ["--gpu-memory", "above 0"]),
        (["--policy", "fast"], ["fast", "recompute"]),
        (["--objective", "beauty"], ["beauty", "throughput"]),
        (["--dtype", "int8"], ["int8", "bfloat16"]),
        (["--rows", "0"], ["rows is 0"]),
        (["--recompute-fraction", "2"], ["2.0", "0 to 1"]),
        (["--policy", "stream", "--recompute-fraction", "0.5"], ["stream", "rebuilds nothing"]),
        (["--device", "cpu"], ["--device", "--hardware"]),
        (["--emulate", "t4-pcie3"], ["--emulate", "--hardware"]),
        (["--row", "5"], ["unrecognized"]),
        (["--dtype", "bfloat16"], ["bfloat16", "float16"]),
    ],
)
def test_what_is_off_is_said_with_what_is_allowed(capsys, extra, parts):
    message = error_of(capsys, [*PLAN, *extra])
    for part in parts:
        assert part in message


def test_a_machine_that_cannot_be_emulated_is_refused_before_torch(capsys):
    assert "h300" in error_of(capsys, ["plan", "demo", *WORK, "--emulate", "h300"])
    assert "h300" in error_of(capsys, ["profile", "--emulate", "h300"])


@pytest.mark.parametrize("words", [["batch", "in", "out", "--model", "demo"], ["generate", "demo"]])
def test_as_many_rows_run_at_once_as_in_python_and_the_help_says_so(capsys, words):
    default = inspect.signature(LLM).parameters["max_rows"].default
    assert build_parser(load_commands()).parse_args(words).max_rows == default
    with pytest.raises(SystemExit):
        main([words[0], "--help"])
    option = capsys.readouterr().out.partition("  --max-rows")[2].partition("\n  --")[0]
    assert f"(default: {default})" in " ".join(option.split())


@pytest.mark.parametrize("command", [[], ["plan"], ["profile"]])
def test_help_and_version_are_successes(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert not ended.value.code
    assert "usage: headrace" in capsys.readouterr().out


def test_a_usage_error_is_json_too(capsys):
    assert main(["plan", "--json"]) == 2
    assert "--rows" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("headrace.cli.plan_answer.answer", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main([*PLAN, "--dtype", "float16"])


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, "50000"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_openmp_is_calmed_unless_the_user_has_a_policy(monkeypatch, capsys, given, wanted):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_commands_agree_on_the_common_options():
    parser = build_parser(load_commands())
    subparsers = next(
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name, subparser in subparsers.choices.items():
        options = {option for action in subparser._actions for option in action.option_strings}
        assert {"--json", "--quiet"} <= options, name
        assert subparser.prog == f"headrace {name}"
