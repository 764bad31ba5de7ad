import pytest

from headrace.bench.verdict import verdict, verdict_words


def policy(name, step_s, predicted_s, bound_s, link=None):
    return {
        "policy": name,
        "step_s": step_s,
        "prediction_error": predicted_s / step_s - 1,
        "bound_share": bound_s / step_s,
        "of_profile": {"link": link},
    }


def case(policies, rivals=(), budget=None, passed=True):
    return {
        "policies": policies,
        "rivals": [{"rival": name, "step_s": step_s} for name, step_s in rivals],
        "workload": {"gpu_memory": budget},
        "passed": passed,
    }


CASES = [
    case(
        [
            policy("stream", 1.0, 0.9, 0.95, 0.97),
            policy("auto", 0.52, 0.5, 0.5),
            policy("host", 0.5, 0.5, 0.4),
        ],
        [("transformers", 0.1)],
        budget=1 << 30,
    ),
    case([policy("resident", 0.103, 0.1, 0.05)], [("transformers", 0.1)]),
]


def test_figures_are_those_of_the_worst_case():
    found = verdict(CASES)
    assert found["passed"]
    assert found["prediction_error_worst"] == pytest.approx(0.1)
    assert found["prediction_error_median"] == pytest.approx((0.029126 + 0.038461) / 2, rel=1e-3)
    assert found["auto_behind"] == pytest.approx(0.04)
    # The step of 0.103 s is too short to count.
    assert found["bound_share_least"] == pytest.approx(0.8)
    assert found["bound_share_median"] == pytest.approx(0.95)
    assert found["link_share_least"] == 0.97
    # Only the case without a budget says what we cost where everything fits.
    assert found["fits_behind"] == pytest.approx(0.03)
    words = " ".join(verdict_words(found))
    assert "10.0% at most" in words
    assert "auto is slower than the best other policy by 4.0% at most" in words
    assert "3.0% slower than plain transformers'" in words


def test_tokens_that_differ_come_first():
    found = verdict([*CASES, case([], passed=False)])
    assert not found["passed"]
    assert verdict_words(found)[0].startswith("TOKENS DIFFER")


def test_nothing_is_said_of_what_was_not_run():
    found = verdict([])
    assert found.pop("passed") is True
    assert set(found.values()) == {None}
    assert len(verdict_words({"passed": True, **found})) == 1
