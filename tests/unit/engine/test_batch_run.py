import errno
import os

import pytest
from tests.batch_support import (
    CHAT,
    FakeEngine,
    line_of,
    results_of,
    run_batch,
    write_lines,
)

from headrace.engine.batch_journal import ResultWriteError
from headrace.errors import ConfigurationError

MIXED = [
    line_of("whole", prompt="abcd"),
    line_of("two", prompt=["a", "bc"], n=2, model="m"),
    line_of("ids", prompt=[1, 2, 3]),
    b"not json",
    line_of("bad", temperature="hot"),
    line_of("chat", CHAT),
    line_of("fails", prompt=["a", "fail", "fail too"]),
]


@pytest.fixture
def path(tmp_path):
    return write_lines(tmp_path / "in.jsonl", *MIXED)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def test_every_request_gets_one_result(path, output):
    counts = run_batch(path, output)
    found = results_of(output)
    assert found.keys() == {"whole", "two", "ids", "line:4", "bad", "chat", "fails"}
    assert (counts.total, counts.completed, counts.failed, counts.skipped) == (7, 3, 4, 0)
    assert (counts.prompt_tokens, counts.generated_tokens) == (4 + 3 + 3, 3 + 12 + 3)
    whole = found["whole"]["response"]
    assert whole["status_code"] == 200
    assert whole["body"]["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
    }
    assert (whole["body"]["object"], whole["body"]["model"]) == ("text_completion", "demo")


def test_several_prompts_become_choices_in_their_order(path, output):
    run_batch(path, output)
    body = results_of(output)["two"]["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["model"] == "m"
    again = run_batch(path, output, FakeEngine(at_once=1), overwrite=True)
    assert again.skipped == 0
    assert results_of(output)["two"]["response"]["body"]["choices"] == body["choices"]


def test_errors_are_results(path, output):
    run_batch(path, output)
    found = results_of(output)
    assert found["line:4"]["response"] is None
    assert found["line:4"]["error"]["code"] == "invalid_json"
    for name, param, code in [
        ("bad", "temperature", None),
        ("chat", "messages", "no_chat_template"),
        ("fails", None, "failed"),
    ]:
        assert found[name]["error"] is None
        assert found[name]["response"]["status_code"] == 400
        error = found[name]["response"]["body"]["error"]
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert error["message"]


def test_ids_are_distinct_and_the_same_in_every_run(path, output):
    run_batch(path, output)
    first = results_of(output)
    run_batch(path, output, overwrite=True)
    second = results_of(output)
    assert {name: line["id"] for name, line in first.items()} == {
        name: line["id"] for name, line in second.items()
    }
    ids = {line["id"] for line in first.values()}
    assert len(ids) == len(first)
    assert all(name.startswith("batch_req_") for name in ids)


def test_what_is_done_is_not_done_again(path, output):
    run_batch(path, output)
    before = output.read_bytes()
    engine = FakeEngine()
    counts = run_batch(path, output, engine)
    assert output.read_bytes() == before
    assert engine.asked == []
    assert (counts.done, counts.skipped, counts.skipped_failed, counts.completed) == (7, 7, 4, 0)


def test_requests_that_were_added_are_done(path, output):
    run_batch(path, output)
    before = output.read_bytes()
    write_lines(path, *MIXED, line_of("new"))
    counts = run_batch(path, output)
    assert (counts.skipped, counts.completed) == (7, 1)
    assert output.read_bytes().startswith(before)


def test_a_batch_that_goes_on_keeps_the_time_of_its_first_run(path, output, monkeypatch):
    write_lines(path, MIXED[0])
    monkeypatch.setattr("time.time", lambda: 1000.5)
    run_batch(path, output)
    write_lines(path, *MIXED[:2])
    monkeypatch.setattr("time.time", lambda: 2000.5)
    run_batch(path, output)
    created = [line["response"]["body"]["created"] for line in results_of(output).values()]
    assert created == [1000, 1000]


def test_the_results_of_another_input_are_refused(path, output):
    run_batch(path, output)
    before = output.read_bytes()
    write_lines(path, line_of("other"))
    with pytest.raises(ConfigurationError, match=r"does not ask for.*--overwrite"):
        run_batch(path, output)
    assert output.read_bytes() == before
    counts = run_batch(path, output, overwrite=True)
    assert (counts.completed, list(results_of(output))) == (1, ["other"])


def test_a_result_of_a_request_that_was_changed_is_refused(path, output):
    run_batch(path, output)
    write_lines(path, line_of("whole", prompt="other"), *MIXED[1:])
    with pytest.raises(ConfigurationError, match=r"'whole', whose request.*was another then"):
        run_batch(path, output)


def test_a_result_that_is_there_twice_is_refused(path, output):
    run_batch(path, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines, lines[2]]))
    with pytest.raises(ConfigurationError, match=r"line 8.*for the second time"):
        run_batch(path, output)


def test_an_engine_that_fails_is_closed_and_what_was_done_stays(path, output):
    def interrupt(request):
        if request.prompt == (1, 2, 3):
            raise KeyboardInterrupt

    engine = FakeEngine(at_once=1, on_request=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_batch(path, output, engine)
    assert engine.closed
    assert {"whole", "two", "line:4", "bad"} == results_of(output).keys()
    run_batch(path, output)
    assert len(results_of(output)) == 7


@pytest.mark.parametrize("full_after", range(7))
def test_a_disk_that_is_full_stops_the_run_and_a_rerun_goes_on(path, output, full_after):
    wanted = path.parent / "wanted.jsonl"
    run_batch(path, wanted)
    left = iter(range(full_after))

    def write(descriptor, line):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, line)

    engine = FakeEngine()
    with pytest.raises(ResultWriteError, match="No space left"):
        run_batch(path, output, engine, write=write)
    assert engine.closed == bool(engine.asked)
    assert len(results_of(output)) == full_after
    run_batch(path, output)
    assert results_of(output, created=False) == results_of(wanted, created=False)


def test_requests_are_read_as_there_is_room(path, output):
    write_lines(path, *(line_of(str(number)) for number in range(50)))
    most = 0

    def look(request):
        nonlocal most
        done = len(output.read_bytes().splitlines())
        most = max(most, len(engine.asked) + 1 - done)

    engine = FakeEngine(at_once=4, on_request=look)
    run_batch(path, output, engine)
    assert most == 4


def test_progress_is_told_after_each_result(path, output):
    done = []
    run_batch(path, output, on_progress=lambda counts: done.append(counts.done))
    assert done == list(range(1, 8))


def test_an_engine_that_loses_requests_is_a_defect(path, output):
    class Lossy(FakeEngine):
        def complete(self, requests):
            yield from list(super().complete(requests))[1:]

    with pytest.raises(RuntimeError, match="without an answer"):
        run_batch(path, output, Lossy())


def test_what_the_model_cannot_be_given_is_answered_while_others_run(path, output):
    write_lines(path, line_of("chat", CHAT), *(line_of(str(number)) for number in range(9)))
    order = []
    run_batch(path, output, on_progress=lambda counts: order.append(counts.failed))
    assert order[0] == 1


def test_an_engine_that_is_held_elsewhere_is_closed_too(path, output):
    class Held:
        def __init__(self):
            self.closed = False

        def complete(self, requests):
            return self

        def __iter__(self):
            return self

        def __next__(self):
            raise KeyboardInterrupt

        def close(self):
            self.closed = True

    engine = Held()
    with pytest.raises(KeyboardInterrupt):
        run_batch(path, output, engine)
    assert engine.closed
