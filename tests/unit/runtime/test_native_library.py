"""How the native library is found, built, kept and loaded."""

import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from headrace.errors import ConfigurationError
from headrace.runtime import host_attention
from headrace.runtime.host_attention import HostAttention
from headrace.runtime.native import build, library
from headrace.runtime.native.build import NativeBuildError
from headrace.runtime.native.library import Loader, NativeUnavailableError

SMALL_LIBRARY = f"""
#pragma GCC visibility push(default)
extern "C" {{
int headrace_abi() {{ return {library.ABI}; }}
const char* headrace_source_hash() {{ return HEADRACE_SOURCE_HASH; }}
const char* headrace_variants() {{ return "portable"; }}
void* headrace_pool_create(int, const char*) {{ return nullptr; }}
void* headrace_pool_of_team(int, const char*, void*) {{ return nullptr; }}
void headrace_pool_destroy(void*) {{}}
void* headrace_lane_create(void*) {{ return nullptr; }}
void headrace_lane_destroy(void*) {{}}
int headrace_lane_push(void*, const void*, const void*, const void*, void*) {{ return 0; }}
int headrace_attend(void*, const void*) {{ return 0; }}
unsigned long headrace_stream_read(void*, const void*, long) {{ return 0; }}
}}
"""

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in build.COMPILERS), reason="there is no C++ compiler"
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of sources that build quickly, in place of the package's."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "small.cpp").write_text(SMALL_LIBRARY)
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def program(path, text):
    """Write a script that can be run."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def counting_compiler(tmp_path, monkeypatch):
    """Set CXX to a compiler that writes down each build; return where."""
    log = tmp_path / "builds"
    real = next(name for name in build.COMPILERS if shutil.which(name))
    script = program(
        tmp_path / "compiler",
        f'case "$*" in *-shared*) echo built >> "{log}";; esac\nexec {real} "$@"',
    )
    monkeypatch.setenv("CXX", str(script))
    return log


def kept(cache):
    return sorted(path.name for path in cache.iterdir())


@needs_compiler
def test_what_was_built_is_kept_and_used_again(sources, cache, tmp_path, monkeypatch):
    log = counting_compiler(tmp_path, monkeypatch)
    assert Loader(cache).load().headrace_abi() == library.ABI
    loader = Loader(cache)
    assert loader.load() is loader.load()
    assert log.read_text() == "built\n"
    assert len(kept(cache)) == 1


@needs_compiler
def test_other_sources_are_built_anew(sources, cache):
    Loader(cache).load()
    (sources / "more.h").write_text("// more")
    Loader(cache).load()
    assert len(kept(cache)) == 2


@needs_compiler
def test_another_compiler_builds_its_own(sources, cache, tmp_path, monkeypatch):
    Loader(cache).load()
    counting_compiler(tmp_path, monkeypatch)
    Loader(cache).load()
    assert len(kept(cache)) == 2


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF"])
def test_a_damaged_library_is_built_anew(sources, cache, content):
    compiler = build.find_compiler()
    path = build.library_path(cache, compiler)
    path.parent.mkdir()
    path.write_bytes(content)
    assert Loader(cache).load().headrace_abi() == library.ABI


@needs_compiler
def test_a_library_that_came_with_the_package_needs_no_compiler(sources, cache, monkeypatch):
    build.build(build.find_compiler(), sources / "_headrace_native.so")
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    assert Loader(cache).load().headrace_abi() == library.ABI
    assert not cache.exists()


@needs_compiler
def test_a_library_of_other_sources_is_not_used(sources, cache):
    build.build(build.find_compiler(), sources / "_headrace_native.so")
    (sources / "small.cpp").write_text(SMALL_LIBRARY + "// changed\n")
    assert Loader(cache).load().headrace_source_hash().decode() == build.source_hash()
    assert len(kept(cache)) == 1


@needs_compiler
def test_two_may_build_at_once(sources, cache):
    loaders, failed = [Loader(cache) for _ in range(4)], []

    def load(loader):
        try:
            loader.load()
        except NativeUnavailableError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=load, args=(loader,)) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(kept(cache)) == 1


@needs_compiler
def test_a_compiler_may_have_arguments(sources, monkeypatch):
    real = build.find_compiler()[0]
    monkeypatch.setenv("CXX", f"{real} -DSOMETHING='a b'")
    assert build.find_compiler() == [real, "-DSOMETHING=a b"]


def test_no_compiler_is_said_in_one_line(sources, cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        NativeUnavailableError, match=r"there is no C\+\+ compiler \(g\+\+"
    ) as first:
        Loader(cache).load()
    assert "\n" not in str(first.value)


def test_a_compiler_that_does_not_exist_is_named(sources, cache, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++ -O2")
    with pytest.raises(NativeUnavailableError, match="CXX names '/nonexistent/c\\+\\+', which is"):
        Loader(cache).load()


def test_a_broken_compiler_is_said_in_one_line(sources, cache, tmp_path, monkeypatch):
    broken = 'case "$*" in *-shared*) echo note >&2; echo "fatal error: no" >&2; exit 4;; esac'
    monkeypatch.setenv("CXX", str(program(tmp_path / "broken", broken)))
    loader = Loader(cache)
    messages = []
    for _ in range(2):
        with pytest.raises(NativeUnavailableError) as caught:
            loader.load()
        messages.append(str(caught.value))
    assert messages[0].endswith("broken failed (fatal error: no)")
    assert "\n" not in messages[0]
    assert messages[0] == messages[1]
    assert kept(cache) == []


def test_a_compiler_that_is_no_program_is_said(sources, cache, tmp_path, monkeypatch):
    script = tmp_path / "no_program"
    script.write_bytes(b"\0\0\0\0")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NativeUnavailableError, match="no_program does not run"):
        Loader(cache).load()


@needs_compiler
def test_a_compiler_that_makes_no_library_is_said(sources, cache, tmp_path, monkeypatch):
    lazy = program(
        tmp_path / "lazy",
        'case "$*" in *-shared*) ;; *) exit 0;; esac\n'
        'while [ $# -gt 1 ]; do shift; done; echo text > "$1"',
    )
    monkeypatch.setenv("CXX", str(lazy))
    with pytest.raises(NativeUnavailableError, match="was built but cannot be loaded"):
        Loader(cache).load()


@needs_compiler
def test_a_folder_that_cannot_be_written_is_said(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeUnavailableError, match=r"cannot be written .* set HEADRACE_CACHE to"):
        Loader(tmp_path / "file" / "cache").load()


def test_torch_attends_without_a_library_and_says_why(monkeypatch):
    class Lacking:
        def load(self):
            raise NativeUnavailableError("there is no C++ compiler")

    monkeypatch.setattr(host_attention, "LOADER", Lacking())
    monkeypatch.delenv("HEADRACE_NATIVE", raising=False)
    attention = HostAttention()
    assert (attention.variant, attention.reason) == ("torch", "there is no C++ compiler")
    with pytest.raises(ConfigurationError, match="'avx2' is asked for, but there is no C"):
        HostAttention(variant="avx2")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /bin/false")
def test_nothing_is_built_on_import(cache):
    environment = os.environ | {"CXX": "/bin/false", "HEADRACE_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = "import headrace.runtime.host_attention"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not cache.exists()


def test_libraries_are_kept_beside_the_profiles(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    assert library._cache_folder() == tmp_path / "native"


def test_a_build_that_fails_raises(sources, cache):
    with pytest.raises(NativeBuildError, match="the compiler /bin/false failed"):
        build.build(["/bin/false"], cache / "library.so")
