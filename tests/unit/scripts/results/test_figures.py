"""What counts as a figure, and what a value rounds to."""

import pytest
from scripts.results.figures import agrees, figures_in, in_unit_of, written


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It took 268.0 ms to stream's 688.3 (2.57 ×).", ["268.0 ms", "688.3", "2.57 ×"]),
        ("1,341.4 ms, 97.9 %, 3%, 54.9 MB", ["1,341.4 ms", "97.9 %", "3%", "54.9 MB"]),
        ("link 55 GB/s, 312 TFLOP/s, 701 tokens/s", ["55 GB/s", "312 TFLOP/s", "701 tokens/s"]),
        ("errors of 3.2e-07 and 1e-4", ["3.2e-07", "1e-4"]),
        ("off by -2.7% or −2.7 %", ["-2.7%", "−2.7 %"]),
        ("0.60 times the speed, 20 µs", ["0.60 times", "20 µs"]),
        ("24GiB or 24 GiB", ["24GiB", "24 GiB"]),
        ("| 0.5 | 12 |", ["0.5"]),
        ("64 rows × 1,024 tokens, 64 × 1,024, 4096 × 8192", []),
        ("OPT-6.7B on PCIe 4.0 with torch 2.13 (arXiv 1805.02867), 2026-11-25", []),
        ("3 rows of 2 batches, 11 tokens", []),
        ("two\ntimes 1.5\ntimes", ["1.5 times"]),
        ("5 seconds and 7 samples", []),
    ],
)
def test_figures_are_found(text, found):
    assert [figure.text for figure in figures_in(text)] == found


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("235.3 ms", 0.23534),
        ("235.3 ms", 0.23526),
        ("1,341.4 ms", 1.34144),
        ("97.9 %", 0.97949),
        ("2.57 ×", 2.5651),
        ("0.5", 0.549),
        ("3.2e-07", 3.24e-7),
        ("-2.7%", -0.0271),
        ("−2.7 %", -0.0271),
        ("54.9 GB/s", 54.92e9),
        ("17.2 MiB", 17.2 * 2**20),
        ("312 TFLOP/s", 312e12),
        ("20 µs", 20.4e-6),
    ],
)
def test_a_value_agrees_with_what_it_rounds_to(figure, value):
    assert agrees(figure, value)


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("235.3 ms", 0.23536),
        ("235.3 ms", 235.3),
        ("235 s", 0.235),
        ("97.9 %", 97.9),
        ("2.57 ×", 2.576),
        ("3.2e-07", 3.26e-7),
        ("3.2e-07", 3.2e-6),
        ("2.7 %", -0.027),
        ("54 GB/s", 54.92e9),
        ("17.2 MB", 17.2 * 2**20),
    ],
)
def test_a_value_does_not_agree_with_anything_else(figure, value):
    assert not agrees(figure, value)


def test_a_value_is_said_in_the_figures_unit():
    assert in_unit_of("235.3 ms", 0.2412) == "241.2 ms"


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [(1.3414, ".1 ms", "1,341.4 ms"), (0.5, ".0 %", "50 %"), (3.2e-7, ".1e", "3.2e-07")],
)
def test_a_value_is_written(value, form, words):
    assert written(value, form) == words


@pytest.mark.parametrize("form", ["ms", ".1 parsec", "1 ms", ""])
def test_a_form_that_is_none_is_named(form):
    with pytest.raises(ValueError, match="is no form"):
        written(1.0, form)
