import json

import pytest
from tests.e2e.in_process import assert_refused, run_here
from tests.host_attention_support import native_variants, needs_native

from headrace.cli import bench_host_attention
from headrace.runtime import host_attention_bench

SMALL = ("host-attention", "--tokens", "64,128", "--cache-size", "256KiB", "--rounds", "1")
CASES = [
    (heads, group, tokens) for tokens in (64, 128) for heads, group in ((32, 1), (8, 4), (8, 8))
]


@pytest.fixture
def short(monkeypatch):
    """Turns that end at once."""
    monkeypatch.setitem(host_attention_bench.measure.__kwdefaults__, "sample_s", 0.0)


@needs_native
def test_each_way_has_a_column(short, capsys):
    done = run_here(capsys, "bench", *SMALL, "--threads", "1", "--large-pages", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "1 threads" in lines[0]
    assert any(variant in lines[0] for variant in native_variants())
    assert lines[0].endswith("heads of 128 elements, in large pages")
    for column in ("memory", "kernel", "share", "torch sdpa", "two products"):
        assert column in lines[2]
    assert len([line for line in lines if line.rstrip().endswith("B/s")]) == len(CASES)
    assert "Measured in turns, medians of 1 rounds" in done.stdout


@needs_native
def test_json_is_one_object(short, capsys, tmp_path):
    file = tmp_path / "rates.json"
    done = run_here(capsys, "bench", *SMALL, "--dtype", "float32", "--json", "--output", file)
    assert done.returncode == 0
    assert "8 key/value heads with 4 query heads each" in done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads(file.read_text())
    assert (data["schema_version"], data["workload"]) == (1, "host-attention")
    assert (data["origin"], data["dtype"], data["large_pages"]) == ("measured", "float32", False)
    assert data["variant"] in native_variants()
    assert data["environment"].keys() >= {"cpu", "torch", "date"}
    assert [(one["kv_heads"], one["group"], one["tokens"]) for one in data["cases"]] == CASES
    for one in data["cases"]:
        assert one["kv_bytes"] == one["rows"] * 2 * one["tokens"] * one["kv_heads"] * 128 * 4
        for name in ("memory", "host_attention", "sdpa", "products"):
            assert one[f"{name}_bytes_per_s"] > 0
        assert one["memory_share"] > 0


@needs_native
def test_the_command_line_runs_it(headrace):
    done = headrace("bench", *SMALL, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["cases"]) == len(CASES)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--tokens", "100"), ["--tokens is '100'", "multiples of 64"]),
        (("--tokens", "0"), ["--tokens is '0'"]),
        (("--tokens", "64,many"), ["--tokens is '64,many'"]),
        (("--tokens", "640000000000"), ["TiB", "lower --tokens"]),
        (("--threads", "0"), ["--threads is 0", "allowed is 1 to"]),
        (("--threads", "100000"), ["--threads is 100000", "cores of this process"]),
        (("--rounds", "0"), ["--rounds is 0", "1 up"]),
        (("--cache-size", "much"), ["--cache-size is 'much'"]),
        (("--device", "cuda"), ["--device is cuda", "host's cores"]),
        (("--rows", "4"), ["--rows is 4", "host-attention has no such setting"]),
        (("--policies", "auto"), ["--policies is 'auto'", "host-attention has no such setting"]),
        (("--emulate", "t4-pcie3"), ["--emulate is 't4-pcie3'", "no such setting"]),
        (("--simulate", "paper"), ["NAME is 'host-attention'", "measures nothing"]),
        (("--output", "/no/such/file.json"), ["--output is '/no/such/file.json'"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, words, parts):
    assert_refused(run_here(capsys, "bench", "host-attention", *words, "--quiet"), parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("demo", "--threads", "1"), ["--threads is 1", "`headrace bench host-attention`"]),
        (("demo", "--tokens", "64"), ["--tokens is '64'", "`headrace bench host-attention`"]),
        (("--simulate", "paper", "--large-pages"), ["--large-pages is True", "measures nothing"]),
    ],
)
def test_its_options_are_refused_elsewhere(capsys, words, parts):
    assert_refused(run_here(capsys, "bench", *words, "--quiet"), parts)


def test_without_the_native_library_the_reason_is_said(capsys, monkeypatch):
    monkeypatch.setenv("HEADRACE_NATIVE", "off")
    done = run_here(capsys, "bench", *SMALL, "--quiet")
    assert_refused(done, ["native kernel, which is not had here", "switched off"])
    assert bench_host_attention.NAME in done.stderr
