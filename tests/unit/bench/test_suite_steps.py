"""How many steps a case takes where a link is emulated."""

from headrace.bench.policies import MeasureOptions
from headrace.bench.suite import Foreseen, _with_enough_steps

USUAL = MeasureOptions(rounds=2, steps_per_round=3)


def foreseen(*steps_s: float) -> list[Foreseen]:
    return [Foreseen("stream", step_s, step_s) for step_s in steps_s]


def test_where_all_steps_are_long_fewer_are_taken():
    assert _with_enough_steps(USUAL, foreseen(0.3, 1.1)).steps_per_round == 2
    assert _with_enough_steps(USUAL, foreseen(1.0, 4.1)).steps_per_round == 1
    one = MeasureOptions(rounds=2, steps_per_round=1)
    assert _with_enough_steps(one, foreseen(0.3)).steps_per_round == 1


def test_one_short_step_needs_them_all():
    assert _with_enough_steps(USUAL, foreseen(0.2, 1.1)) == USUAL
