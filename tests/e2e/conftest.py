import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("headrace-cache")


@pytest.fixture(scope="session")
def headrace(cache):
    """Run `headrace` with these words, as a user does, and return the finished process."""
    environment = os.environ | {"HEADRACE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def run(*words, **changes):
        return subprocess.run(
            [sys.executable, "-m", "headrace", *map(str, words)],
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def stored_profile(cache, monkeypatch):
    """Commands in this process use the profile that was measured for the first one."""
    monkeypatch.setenv("HEADRACE_CACHE", str(cache))
