import argparse
import io
import json
import sys

import pytest

from headrace.cli import output
from headrace.errors import ConfigurationError


def options(**changes):
    return argparse.Namespace(**{"json": False, "quiet": False, **changes})


def raising(error):
    def command():
        raise error

    return command


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_holds_standard_output_for_itself(capsys):
    args = options(json=True)
    with output.reserved(args):
        print("a library's chatter")
        output.emit(args, {"answer": 42}, "forty-two")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"answer": 42}
    assert err == "a library's chatter\n"


def test_people_get_text(capsys):
    args = options()
    with output.reserved(args):
        output.emit(args, {"answer": 42}, "forty-two")
    assert capsys.readouterr() == ("forty-two\n", "")


def test_no_number_is_written_that_json_lacks():
    with pytest.raises(ValueError, match="JSON"):
        output.emit(options(json=True), {"rate": float("inf")}, "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigurationError("rows is 0;\n  change rows"), 2, "rows is 0; change rows"),
        (PermissionError(13, "Permission denied", "/x"), 2, "cannot use '/x': Permission denied"),
        (OSError("no such model\nthere"), 2, "no such model there"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, message):
    assert output.guarded(raising(error), as_json=False) == code
    assert capsys.readouterr() == ("", f"headrace: error: {message}\n")
    assert output.guarded(raising(error), as_json=True) == code
    assert json.loads(capsys.readouterr().out) == {
        "error": {"type": type(error).__name__, "message": message}
    }


def test_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError):
        output.guarded(raising(ZeroDivisionError()), as_json=True)


def test_a_command_returns_its_own_exit_code():
    assert output.guarded(lambda: 1, as_json=False) == 1


def test_progress_is_lines_where_there_is_no_terminal(capsys):
    with output.Progress(options()) as progress:
        progress("one")
        progress("two")
    assert capsys.readouterr() == ("", "one\ntwo\n")


def test_progress_is_one_line_on_a_terminal_and_is_cleared(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    with output.Progress(options()) as progress:
        progress("a line that is longer than the terminal is wide")
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown == ["", "a line that is long", ""]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_can_be_quiet(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with output.Progress(options(quiet=True)) as progress:
        progress("one")
    assert stream.getvalue() == ""


def test_columns_are_aligned_and_numbers_to_the_right():
    assert output.table(("name", "n"), [("a", "1"), ("longer", "100")]).splitlines() == [
        "name      n",
        "──────  ───",
        "a         1",
        "longer  100",
    ]


def test_a_table_may_be_empty():
    assert output.table(("name",), []) == "name\n────"
