"""What the check of the wheel takes for a failure."""

import os

import pytest
from scripts import check_wheel
from scripts.check_wheel import CheckError, Environment, check_files, check_tests

FILES = ("__init__.py", "assets/demo/config.json", "runtime/native/kernel.h")
LIBRARY = "runtime/native/_headrace_native.cpython-311.so"


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source tree of few files, one of which was made in it."""
    monkeypatch.setattr(check_wheel, "ROOT", tmp_path / "source")
    fill(tmp_path / "source/src/headrace", [*FILES, "__pycache__/x.pyc", "assets/.hidden"])


@pytest.fixture
def environments(tmp_path):
    """One with a compiler and one without."""
    return {
        name: Environment(name, tmp_path / name, compiles=name == "compiler")
        for name in ("compiler", "without")
    }


def installed(environment, names):
    fill(environment.folder / "lib/python3.11/site-packages/headrace", names)


def test_programs_find_neither_the_source_tree_nor_a_hidden_compiler(environments, monkeypatch):
    for name in ("PYTHONPATH", "HEADRACE_NATIVE", "CC", "CXX"):
        monkeypatch.setenv(name, "something")
    with_one, without = (one.variables for one in environments.values())
    for variables in (with_one, without):
        assert not {"PYTHONPATH", "HEADRACE_NATIVE"} & variables.keys()
        assert variables["HEADRACE_CACHE"].endswith("headrace-cache")
    assert with_one["CXX"] == "something"
    assert with_one["PATH"].endswith(os.environ["PATH"])
    assert not {"CC", "CXX"} & without.keys()
    assert without["PATH"] == str(environments["without"].folder / "bin")


def test_all_files_and_a_library_are_as_they_must_be(source, environments):
    installed(environments["compiler"], [*FILES, LIBRARY, "__pycache__/y.pyc"])
    installed(environments["without"], FILES)
    for environment in environments.values():
        check_files(environment)


@pytest.mark.parametrize(
    ("name", "files", "complaint"),
    [
        ("compiler", [FILES[0], FILES[1], LIBRARY], "not installed: runtime/native/kernel.h"),
        ("compiler", [*FILES, LIBRARY, "notes.txt"], "not in the source tree: notes.txt"),
        ("compiler", FILES, "libraries that were installed: none"),
        ("without", [*FILES, LIBRARY], "libraries that were installed: .*_headrace_native"),
    ],
)
def test_other_files_are_named(source, environments, name, files, complaint):
    installed(environments[name], files)
    with pytest.raises(CheckError, match=complaint):
        check_files(environments[name])


def report(*reasons):
    """Return a report of one test that passed and some that were skipped."""
    skipped = "".join(f'<testcase><skipped message="{reason}"/></testcase>' for reason in reasons)
    return f"<testsuites><testsuite><testcase/>{skipped}</testsuite></testsuites>"


@pytest.mark.parametrize(
    ("name", "reasons", "complaint"),
    [
        ("compiler", ["another", "there is no C++ compiler"], "although there is a compiler"),
        ("compiler", ["no native library: it is off"], "although there is a compiler"),
        ("without", ["another"], "although there is no compiler"),
        ("compiler", ["another"], None),
        ("without", ["another", "the native library cannot be built here"], None),
    ],
)
def test_tests_that_skip_are_those_that_must(environments, monkeypatch, name, reasons, complaint):
    environment = environments[name]
    environment.folder.mkdir()

    def run(self, *words, cwd):
        assert cwd == environment.folder.parent / "tested"
        (self.folder / "tests.xml").write_text(report(*reasons))

    monkeypatch.setattr(Environment, "run", run)
    if complaint is None:
        assert check_tests(environment) == f"1 tests passed, {len(reasons)} skipped"
    else:
        with pytest.raises(CheckError, match=complaint):
            check_tests(environment)
