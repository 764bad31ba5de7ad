import json
import os
import platform
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import transformers

import headrace
from headrace.engine import environment as module
from headrace.engine.environment import environment

ROOT = Path(__file__).parents[3]


def test_it_says_with_what_was_measured():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["headrace"] == headrace.__version__
    assert found["python"] == platform.python_version()
    assert found["cpu_cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_it_names_no_host_and_nobody():
    text = json.dumps(environment())
    for name in (socket.gethostname(), str(Path.home()), str(ROOT)):
        assert len(name) < 3 or name not in text


def test_the_date_has_a_zone():
    date = datetime.fromisoformat(environment()["date"])
    assert date.tzinfo == UTC


def test_the_gpu_is_named_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert environment()["gpu"] == "a GPU"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no source tree under git")
def test_the_commit_is_that_of_the_source_tree():
    commit = environment()["commit"]
    assert commit is None or re.fullmatch("[0-9a-f]{12}", commit)


def test_installed_below_a_tree_of_something_else_there_is_no_commit(monkeypatch, tmp_path):
    installed = ROOT / "some" / "lib" / "site-packages" / "headrace" / "engine" / "environment.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("git was asked"))
    assert environment()["commit"] is None


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "src/headrace/engine/environment.py"))
    assert environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None
