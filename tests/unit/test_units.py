import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import ConfigurationError
from headrace.units import (
    format_bytes,
    format_count,
    format_flops,
    format_rate,
    format_seconds,
    parse_bytes,
)

UNIT_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ("16GiB", 16 * 2**30),
        ("8 GB", 8 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("0.1GB", 10**8),
        ("4096", 4096),
        ("  7 kb\n", 7000),
        ("2tib", 2 * 2**40),
        ("0", 0),
        ("0.4 B", 0),
        (12, 12),
        (1.5e9, 1_500_000_000),
        (0, 0),
        (2.6, 3),
    ],
)
def test_parse_bytes_reads_a_size(size, size_bytes):
    parsed = parse_bytes(size)

    assert parsed == size_bytes
    assert type(parsed) is int


@pytest.mark.parametrize(
    "size",
    [
        *("", " ", "GiB", "16 G", "16 Gbit", "16GiB/s", "-1", "-1GiB", "1,5 GB", "1_000", "1e9"),
        *("16 GiB 3", "0x10", "inf", "nan", ".5GB", "1.GB", "٣ GB", "9" * 5000),
        *(-1, -0.5, math.inf, -math.inf, math.nan, True, False),
    ],
)
def test_parse_bytes_refuses_what_is_not_a_size(size):
    with pytest.raises(ConfigurationError, match=re.escape(repr(size))):
        parse_bytes(size)


def test_parse_bytes_says_what_is_off_and_what_is_allowed():
    with pytest.raises(ConfigurationError) as caught:
        parse_bytes("16 G", setting="gpu_memory")

    message = str(caught.value)
    assert message.startswith("gpu_memory is '16 G'")
    assert all(unit in message for unit in UNIT_BYTES)
    assert '"16GiB"' in message
    assert "\n" not in message


@given(st.integers(min_value=0, max_value=2**80))
def test_parse_bytes_returns_a_whole_count_as_it_is(count):
    assert parse_bytes(count) == count


@given(st.integers(0, 10**9), st.sampled_from(sorted(UNIT_BYTES)), st.sampled_from(["", " "]))
def test_parse_bytes_multiplies_by_the_unit(count, unit, space):
    text = f"{count}{space}{unit}"

    assert parse_bytes(text) == count * UNIT_BYTES[unit]
    assert parse_bytes(text.upper()) == parse_bytes(text.lower()) == parse_bytes(text)


@given(st.text(max_size=12))
def test_parse_bytes_reads_or_refuses_any_text(text):
    try:
        parsed = parse_bytes(text)
    except ConfigurationError:
        return
    assert parsed >= 0


@given(st.integers(min_value=0, max_value=2**52))
def test_parse_bytes_reads_back_what_format_bytes_writes(size_bytes):
    written = format_bytes(size_bytes)

    unit_bytes = UNIT_BYTES[written.split()[1]]
    assert abs(parse_bytes(written) - size_bytes) <= 0.05 * unit_bytes + 1


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023.4, "1023 B"),
        (1023.7, "1.0 KiB"),
        (1024, "1.0 KiB"),
        (16 * 2**30, "16.0 GiB"),
        (1024**3 - 1, "1.0 GiB"),
        (-3 * 2**20, "-3.0 MiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (math.inf, "inf B"),
    ],
)
def test_format_bytes(size_bytes, written):
    assert format_bytes(size_bytes) == written


@pytest.mark.parametrize(
    ("bytes_per_s", "written"),
    [(0, "0.0 B/s"), (25.3e9, "25.3 GB/s"), (999.96e6, "1.0 GB/s"), (3.35e12, "3.4 TB/s")],
)
def test_format_rate(bytes_per_s, written):
    assert format_rate(bytes_per_s) == written


@pytest.mark.parametrize(
    ("flops_per_s", "written"),
    [(312e12, "312.0 TFLOP/s"), (1.979e15, "2.0 PFLOP/s"), (41.5e9, "41.5 GFLOP/s")],
)
def test_format_flops(flops_per_s, written):
    assert format_flops(flops_per_s) == written


@pytest.mark.parametrize(
    ("duration_s", "written"),
    [
        (0, "0 s"),
        (3e-9, "3.0 ns"),
        (45.67e-6, "45.7 µs"),
        (0.0123, "12.3 ms"),
        (0.99996, "1.0 s"),
        (90, "90.0 s"),
        (7200, "7200.0 s"),
        (-0.002, "-2.0 ms"),
        (math.inf, "inf s"),
        (math.nan, "nan s"),
    ],
)
def test_format_seconds(duration_s, written):
    assert format_seconds(duration_s) == written


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0"),
        (131072, "131,072"),
        (999_999, "999,999"),
        (999_999.7, "1.0 million"),
        (6_658_473_984, "6.7 billion"),
        (-1_500_000, "-1.5 million"),
        (math.inf, "inf"),
    ],
)
def test_format_count(count, written):
    assert format_count(count) == written


@pytest.mark.parametrize(
    ("write", "step", "factor_of"),
    [
        (format_rate, 1000, {"B/s": 1, "KB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}),
        (format_seconds, 1000, {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1}),
    ],
)
@given(value=st.floats(min_value=1e-9, max_value=1e14))
def test_a_written_value_is_right_to_half_its_last_digit(write, step, factor_of, value):
    number, unit = write(value).split()
    factor = factor_of[unit]

    assert abs(float(number) * factor - value) <= 0.0501 * factor + 1e-9 * value
    if unit != list(factor_of)[-1]:
        assert float(number) < step


@given(st.floats(min_value=1e-9, max_value=1e14))
def test_a_sign_changes_nothing_else(value):
    assume(format_count(value) != "0")

    for write in (format_bytes, format_rate, format_flops, format_seconds, format_count):
        assert write(-value) == f"-{write(value)}"
