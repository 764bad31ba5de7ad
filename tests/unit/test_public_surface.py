import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

SOURCE = Path(headrace.__file__).parents[1]
TORCH_FREE = [
    "headrace",
    "headrace.errors",
    "headrace.units",
    "headrace.timeline",
    "headrace.hardware",
    "headrace.model",
    "headrace.model.shape",
    "headrace.model.cost",
    "headrace.plan",
]


def run_python(code, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_public_names_are_sorted():
    assert headrace.__all__ == sorted(set(headrace.__all__))


@pytest.mark.parametrize("name", headrace.__all__)
def test_a_public_name_can_be_imported(name):
    assert getattr(headrace, name) is not None
    assert name in dir(headrace)


@pytest.mark.parametrize("name", sorted(set(headrace.__all__) - {"__version__"}))
def test_a_public_name_has_a_docstring(name):
    assert getattr(headrace, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HostCash'"):
        _ = headrace.HostCash


def test_the_package_works_from_a_source_tree_that_is_not_installed():
    # -S leaves out site-packages, and with it any installed headrace.
    assert run_python("import headrace; print(headrace.__version__)", "-S")


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_the_planner_and_what_it_stands_on_loads_no_torch(module):
    loaded = run_python(f"import {module}, sys; print('torch' in sys.modules)")

    assert loaded == "False"


def test_importing_the_runtime_loads_no_solver():
    solvers = "{'highspy', 'scipy.optimize'}"
    code = f"import headrace.runtime.paged, sys; print({solvers} & set(sys.modules))"
    assert run_python(code) == "set()"
