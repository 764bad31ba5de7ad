"""Check that the package installs, with a compiler and without one, and passes its tests there.

    python scripts/check_wheel.py --torch "torch==2.13.0"

Two fresh virtual environments are made outside the source tree, with torch first and alone.

``compiler``: the source distribution is built, the wheel is built from that, and is installed. The
native library must be the one in the wheel: nothing may be built on first use.

``no compiler``: ``pip install .`` where no compiler is on the ``PATH``. It must succeed, torch must
attend in the kernel's place, and the command line must say so and why.

In both, every file of the package must be there, the audit must pass, and so must ``TESTS``, from a
copy of ``tests/`` without the sources beside it. Exits 1 if anything fails. Needs ``build``, a C++
compiler, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("src", "pyproject.toml", "setup.py", "README.md", "LICENSE")
TESTED_WITH = ("tests", "pyproject.toml")
TESTS = (
    "tests/unit/runtime/test_native_library.py",
    "tests/unit/runtime/test_native_lane.py",
    "tests/unit/runtime/test_host_lane.py",
    "tests/unit/runtime/test_host_attention_calls.py",
    "tests/unit/runtime/test_host_attention_exactness.py",
    "tests/unit/runtime/test_host_attention_threads.py",
    "tests/unit/runtime/test_host_attention_values.py",
    "tests/unit/runtime/test_host_attention_bench.py",
    "tests/property/test_host_attention.py",
    "tests/exactness/test_host.py",
    "tests/e2e/test_cli_bench_host_attention.py",
    "tests/e2e/test_cli_generate.py",
    "tests/e2e/test_cli_audit.py",
    "tests/e2e/test_cli_plan.py",
)
TEST_PACKAGES = ("pytest", "hypothesis")
LIBRARY = "runtime/native/_headrace_native"
AUDIT = ("audit", "demo", "--quiet", "--dtype", "float32", "--policies", "host")
PROBE = """
import json, headrace
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.native.library import LOADER
with HostAttention(threads=1) as made:
    path = LOADER.load()._name if made.reason is None else None
    print(json.dumps([headrace.__file__, path, made.variant, made.reason]))
"""


class CheckError(Exception):
    """Something does not hold; the message says what."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and how programs run with it.

    Attributes:
        name: what it is called in the summary.
        folder: the environment.
        compiles: whether programs find a compiler.
    """

    name: str
    folder: Path
    compiles: bool

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of its programs: nothing leads to the source tree."""
        ours = ("PYTHON", "HEADRACE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        path = str(self.folder / "bin")
        if self.compiles:
            path = os.pathsep.join([path, kept.get("PATH", os.defpath)])
        else:
            for name in ("CC", "CXX"):
                kept.pop(name, None)
        return kept | {"PATH": path, "HEADRACE_CACHE": str(self.cache)}

    @property
    def cache(self) -> Path:
        """Where headrace keeps profiles, and would keep a library that it builds."""
        return self.folder / "headrace-cache"

    @property
    def package(self) -> Path:
        """The installed package."""
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return packages / "headrace"

    def run(self, program: str, *words: object, cwd: Path | None = None) -> str:
        """Run one of its programs elsewhere than in the source tree; return what it printed.

        Raises:
            CheckError: it fails.
        """
        command = [str(self.folder / "bin" / program), *map(str, words)]
        return run(command, cwd or self.folder, self.variables)

    def pip_install(self, *words: object, cwd: Path | None = None) -> None:
        """Install packages, without a word unless it fails."""
        self.run("python", "-m", "pip", "install", "-q", *words, cwd=cwd)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torch", default="torch", help="what of torch to install first")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and say where")
    args = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="headrace-wheel-"))
    try:
        summary = list(check_all(folder, args.torch))
    except CheckError as error:
        summary = [("environments", f"FAILED: {error}")]
    finally:
        if args.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print("\n".join(["", *(f"{name:12} {verdict}" for name, verdict in summary)]))
    return 1 if any(verdict.startswith("FAILED") for _, verdict in summary) else 0


def check_all(folder: Path, torch: str) -> Iterator[tuple[str, str]]:
    """Yield each part's name and verdict."""
    compiler = Environment("compiler", folder / "compiler", compiles=True)
    without = Environment("no compiler", folder / "no-compiler", compiles=False)
    say(f"making environments with {torch} in {folder}")
    run([sys.executable, "-m", "venv", str(compiler.folder)], folder, compiler.variables)
    compiler.pip_install(torch)
    shutil.copytree(compiler.folder, without.folder, symlinks=True)
    copy(TESTED_WITH, folder / "tested")
    for environment, install in ((compiler, install_wheel), (without, install_source)):
        yield environment.name, verdict(environment, install)


def verdict(environment: Environment, install: Callable[[Environment], str]) -> str:
    """Install the package into an environment and check it there; return the summary's line."""
    try:
        say(f"{environment.name}: installing headrace")
        installed = install(environment)
        check_files(environment)
        attends = check_attention(environment)
        say(f"{environment.name}: running the tests")
        environment.pip_install("-c", ROOT / "constraints.txt", *TEST_PACKAGES)
        tests = check_tests(environment)
        check_nothing_was_built(environment)
    except CheckError as error:
        return f"FAILED: {error}"
    return f"passed: {installed}; {attends}; {tests}"


def install_wheel(environment: Environment) -> str:
    """Build the source distribution, the wheel from it, and install that; return what it is."""
    dist = environment.folder / "dist"
    source = copy(BUILT_FROM, environment.folder / "source")
    build = [sys.executable, "-m", "build", "--outdir", str(dist), str(source)]
    run(build, environment.folder, environment.variables)
    (wheel,) = dist.glob("*.whl")
    environment.pip_install("-c", ROOT / "constraints.txt", wheel)
    return wheel.name


def install_source(environment: Environment) -> str:
    """Install from a copy of the source tree, as a user does; return what was done."""
    source = copy(BUILT_FROM, environment.folder / "source")
    environment.pip_install("-c", ROOT / "constraints.txt", ".", cwd=source)
    return "pip install ."


def check_files(environment: Environment) -> None:
    """Raise unless the installed package has the source tree's files, and a library or none."""
    expected, found = (
        {str(path.relative_to(top)) for path in top.rglob("*") if belongs(path)}
        for top in (ROOT / "src/headrace", environment.package)
    )
    libraries = {name for name in found if name.startswith(LIBRARY)}
    if lacking := expected - found:
        raise CheckError(f"not installed: {', '.join(sorted(lacking))}")
    if more := found - expected - libraries:
        raise CheckError(f"installed, but not in the source tree: {', '.join(sorted(more))}")
    if len(libraries) != environment.compiles:
        raise CheckError(f"native libraries that were installed: {sorted(libraries) or 'none'}")


def belongs(path: Path) -> bool:
    """Return whether a file is one of the package's."""
    return path.is_file() and path.parent.name != "__pycache__" and not path.name.startswith(".")


def check_attention(environment: Environment) -> str:
    """Raise unless the host attends by what was installed, and says so; return what it is."""
    file, library, variant, reason = json.loads(environment.run("python", "-c", PROBE))
    if Path(file).parent != environment.package:
        raise CheckError(f"headrace is imported from {file}")
    audit: dict[str, Any] = json.loads(environment.run("headrace", *AUDIT, "--json"))
    notes = {note for result in audit["results"] for note in result["notes"]}
    shown = {line for line in environment.run("headrace", *AUDIT).splitlines() if "note:" in line}
    if environment.compiles:
        if not str(library).startswith(str(environment.package / LIBRARY)):
            raise CheckError(f"the native library is {library}; {reason}")
        if notes or shown:
            raise CheckError(f"the audit has notes: {notes}, {shown}")
        check_nothing_was_built(environment)
        return f"{variant} from {Path(library).name}"
    if variant != "torch" or "there is no C++ compiler" not in reason:
        raise CheckError(f"without a compiler, {variant} attends; {reason}")
    told = f"the host attends slowly: {reason}"
    if notes != {told} or shown != {f"note: {told}"}:
        raise CheckError(f"the audit does not say {told!r}, but {notes}, {shown}")
    return f"torch attends, since {reason.partition(';')[0]}"


def check_nothing_was_built(environment: Environment) -> None:
    """Raise if a library was built on first use."""
    if (environment.cache / "native").exists():
        raise CheckError(f"a native library was built into {environment.cache}")


def check_tests(environment: Environment) -> str:
    """Raise unless the tests pass, and only some skip without a compiler; say how many."""
    report = environment.folder / "tests.xml"
    words = ("-m", "not gpu and not slow", f"--junitxml={report}", *TESTS)
    environment.run("python", "-m", "pytest", *words, cwd=environment.folder.parent / "tested")
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = Counter(one.get("message", "") for case in cases for one in case.findall("skipped"))
    native = {why for why in skipped if "native library" in why or "compiler" in why}
    if environment.compiles and native:
        raise CheckError(f"tests were skipped although there is a compiler: {sorted(native)}")
    if not environment.compiles and not native:
        raise CheckError("no test was skipped although there is no compiler")
    return f"{len(cases) - skipped.total()} tests passed, {skipped.total()} skipped"


def copy(names: tuple[str, ...], target: Path) -> Path:
    """Copy parts of the source tree, without what was made in it; return where to."""
    target.mkdir()
    made = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=made)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def run(command: list[str], cwd: Path, variables: dict[str, str]) -> str:
    """Run a command; return its standard output.

    Raises:
        CheckError: it fails. What it printed is printed.
    """
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise CheckError(f"exit code {done.returncode} from {' '.join(command)}")
    return done.stdout


def say(what: str) -> None:
    """Print what is being done, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
