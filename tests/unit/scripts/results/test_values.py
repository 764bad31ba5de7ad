"""Expressions over a result's JSON."""

import pytest
from scripts.results.values import ValueNotFoundError, number_of

DATA = {
    "profile": {"h2d": 50.0},
    "policies": [
        {"policy": "stream", "step_s": 0.6, "error": -0.1},
        {"policy": "auto", "step_s": 0.2, "error": 0.05},
    ],
    "audits": [
        {"model": "opt", "dtype": "float32", "results": [{"error": 1.0}, {"error": 3.0}]},
        {"model": "opt", "dtype": "bfloat16", "results": [{"error": 2.0}]},
    ],
    "rows": [{"model": "opt-6.7b", "x of kvpr": 0.704, "passed": True}],
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("profile.h2d", 50.0),
        ("profile['h2d']", 50.0),
        ("policies[auto].step_s", 0.2),
        ("policies[0].step_s", 0.6),
        ("policies[stream].step_s / policies[auto].step_s", 3.0),
        ("1000 * (policies[auto].step_s - 0.1)", 100.0),
        ("-policies[auto].error", -0.05),
        ("max(policies.step_s)", 0.6),
        ("median(abs(policies.error))", 0.075),
        ("audits[opt][bfloat16].results[0].error", 2.0),
        ("max(audits.results.error)", 3.0),
        ("len(policies)", 2.0),
        ("rows['opt-6.7b']['x of kvpr']", 0.704),
    ],
)
def test_a_value_is_found(expression, value):
    assert number_of(expression, DATA) == pytest.approx(value)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("policies[host].step_s", "'host'"),
        ("policies[auto].steps", "no field 'steps'"),
        ("policies[7].step_s", "entry 7 among 2"),
        ("policies[auto]", "no number"),
        ("rows[0].passed", "no number"),
        ("audits[opt].results", "no number"),
        ("policies.step_s", "no number"),
        ("profile[auto]", "no field 'auto'"),
        ("profile.h2d[0]", "no entries"),
        ("policies[", "not an expression"),
        ("open('x')", "not understood"),
        ("profile.h2d.__class__", "no field '__class__'"),
        ("2 ** 3", "not understood"),
    ],
)
def test_what_has_no_value_is_named(expression, words):
    with pytest.raises(ValueNotFoundError, match=r".*") as caught:
        number_of(expression, DATA)
    assert words in str(caught.value)
