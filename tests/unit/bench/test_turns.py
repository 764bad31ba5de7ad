import pytest

from headrace.bench import turns
from headrace.bench.turns import take_turns


class Noted:
    """A run that notes what is done with it, and fails where it is told to."""

    def __init__(self, name, log, fails=None):
        self.name, self._log, self._fails = name, log, fails

    def _do(self, what):
        self._log.append(f"{self.name} {what}")
        if what == self._fails:
            raise ValueError("out  of\nmemory")

    def open(self):
        self._do("opens")

    def take_turn(self):
        self._do("turns")

    def finish(self):
        self._do("finishes")

    def close(self):
        self._log.append(f"{self.name} closes")


def went(log):
    return [line for line in log if not line.endswith("closes")]


def run(runs, one_at_a_time, **more):
    return take_turns(runs, 2, 9, one_at_a_time, lambda _: None, **more)


def test_runs_alternate():
    log = []
    assert run([Noted("a", log), Noted("b", log)], False) == []
    opens, turns, ends = (
        ["a opens", "b opens"],
        ["a turns", "b turns"],
        ["a finishes", "b finishes"],
    )
    assert went(log) == [*opens, *turns, *turns, *ends]


def test_or_one_comes_after_the_other():
    log = []
    run([Noted("a", log), Noted("b", log)], True)
    one = ["opens", "turns", "turns", "finishes"]
    assert went(log) == [f"{name} {what}" for name in "ab" for what in one]


def test_what_a_run_leaves_is_given_back_before_the_next(monkeypatch):
    log = []
    monkeypatch.setattr(turns, "release_spare_memory", lambda: log.append("released"))
    run([Noted("a", log), Noted("b", log)], True)
    assert log.index("a finishes") < log.index("released") < log.index("b opens")
    assert log.index("b finishes") < len(log) - 1 - log[::-1].index("released")


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("fails", ["opens", "turns"])
def test_one_that_fails_does_not_take_the_others_along(one_at_a_time, fails):
    log, failed = [], []
    runs = [Noted("a", log, fails), Noted("b", log)]
    unable = run(runs, one_at_a_time, forgiven=(ValueError,), failed=failed.append)
    assert [(one.name, one.reason) for one in unable] == [("a", "out of memory")]
    assert failed == ["a"]
    assert log.count(f"a {fails}") == 1
    assert "a finishes" not in log
    assert "b finishes" in log
    # Its memory is free before anyone goes on.
    assert log.index("a closes") == log.index(f"a {fails}") + 1


def test_other_errors_end_everything_and_all_is_closed():
    log = []
    with pytest.raises(ValueError, match="memory"):
        run([Noted("a", log), Noted("b", log, "turns")], False, forgiven=(KeyError,))
    assert log[-2:] == ["a closes", "b closes"]
