"""The native library under sanitizers: random calls that read no byte too many and agree.

``FUZZ_SECONDS`` says how long each variant is fuzzed under each of them, and ``FUZZ_SEED`` with
which random numbers; ``make sanitize`` takes longer than the tests do.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from headrace.runtime.native import build

DRIVER = Path(__file__).parents[2] / "native" / "fuzz_host_attention.cpp"
SECONDS, SEED = os.environ.get("FUZZ_SECONDS", "2"), os.environ.get("FUZZ_SEED", "1")
SANITIZERS = {
    "none": [],
    "address and undefined": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}

pytestmark = pytest.mark.slow


def build_with(flags, sources, path):
    """Build a program; return whether that succeeded, and what the compiler said."""
    compiler = next((name for name in build.COMPILERS if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    command = [compiler, *build.FLAGS, "-g", *flags, f"-I{build.FOLDER}"]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(path)], capture_output=True, text=True
    )
    return done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SANITIZERS)
def test_random_calls(name, tmp_path):
    flags = SANITIZERS[name]
    (tmp_path / "empty.cpp").write_text("int main() { return 0; }")
    trial = tmp_path / "trial"
    works, _ = build_with(flags, [tmp_path / "empty.cpp"], trial)
    if not works or subprocess.run([trial], capture_output=True).returncode != 0:
        pytest.skip(f"programs with the sanitizer for {name} do not build or run here")
    program = tmp_path / "fuzz"
    built, said = build_with(flags, [DRIVER, *build.source_files()], program)
    assert built, said
    patience_s = 300 + 10 * float(SECONDS)
    done = subprocess.run(
        [program, SECONDS, SEED], capture_output=True, text=True, timeout=patience_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees" in done.stdout
