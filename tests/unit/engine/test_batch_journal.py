import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.engine.batch_journal import Journal, ResultWriteError
from headrace.errors import ConfigurationError


def result(name, text="x"):
    body = {"created": 5, "text": text}
    response = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return {"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None}


def names_in(path, **options):
    with Journal(path, **options) as journal:
        return [past.custom_id for past in journal.past_results()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def written(path):
    with Journal(path) as journal:
        journal.append(result("a"))
        journal.append(result("b", "ü \u2028 \ud800 \n"))
    return path


def test_results_are_lines_of_json_and_are_found_again(written):
    lines = written.read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:2]] == [
        result("a"),
        result("b", "ü \u2028 \ud800 \n"),
    ]
    assert lines[2:] == [b""]
    with Journal(written) as journal:
        first, second = journal.past_results()
    assert (first.line, first.custom_id, first.digest) == (1, "a", "a")
    assert (second.line, second.succeeded, second.created) == (2, True, 5)


def test_results_of_errors_are_known(path):
    refused = result("a") | {"response": {"status_code": 400, "body": {"error": {}}}}
    unread = result("b") | {"response": None, "error": {"code": "x", "message": "y"}}
    with Journal(path) as journal:
        journal.append(refused)
        journal.append(unread)
        found = [(past.succeeded, past.created) for past in journal.past_results()]
    assert found == [(False, None), (False, None)]


def test_a_last_line_cut_off_anywhere_is_cut_away_and_nothing_else(written):
    whole = written.read_bytes()
    first_end = whole.index(b"\n") + 1
    for size in range(first_end, len(whole)):
        written.write_bytes(whole[:size])
        with Journal(written) as journal:
            assert [past.custom_id for past in journal.past_results()] == ["a"]
            assert written.read_bytes() == whole[:first_end]
            journal.append(result("b", "ü \u2028 \ud800 \n"))
        assert written.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 50, b'{"id": "bat\0\0\0', b'{"id": "batch_req_x", \0\0'])
def test_zeros_that_a_loss_of_power_leaves_are_cut_away(written, tail):
    whole = written.read_bytes()
    written.write_bytes(whole + tail)
    assert names_in(written) == ["a", "b"]
    assert written.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"my notes", 1),
        (b"my notes\n", 1),
        (b"[]\n", 1),
        (b'{"custom_id": "a", "method": "POST"}\n', 1),
        (b'{"id": "other", "custom_id": "a", "response": null}\n', 1),
        (b'{"id": "batch_req_1", "custom_id": null, "response": null}\n', 1),
        (b'{"id": 5, "custom_id": "a", "response": null}\n', 1),
        (b'{"id": "batch_req_1", "custom_id": "a", "response": null}\nmy notes', 2),
        (b'{"id": "batch_req_1", "custom_id": "a", "response": null}\n{"id": 5}\n', 2),
        (b"[" * 100_000 + b"\n", 1),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(path, content, line):
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"its line {line} is no result.*--overwrite"):
        names_in(path)
    assert path.read_bytes() == content


def test_overwriting_drops_what_was_there(path):
    path.write_bytes(b"my notes")
    assert names_in(path, overwrite=True) == []
    assert path.read_bytes() == b""


def test_one_process_writes_at_a_time(written):
    with Journal(written):
        with pytest.raises(ConfigurationError, match="another process writes to"):
            Journal(written)
        with pytest.raises(ConfigurationError, match="another process writes to"):
            Journal(written, overwrite=True)
        code = (
            "import fcntl, sys; file = open(sys.argv[1], 'r+')\n"
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        held = subprocess.run([sys.executable, "-c", code, written], capture_output=True)
        assert b"BlockingIOError" in held.stderr
    assert names_in(written) == ["a", "b"]


@pytest.mark.parametrize("where", ["/dev/full", "/dev/null", "/"])
def test_what_is_no_file_is_refused(where):
    with pytest.raises(ConfigurationError, match="no regular file"):
        Journal(Path(where))


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "no" / "out.jsonl")


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_a_full_disk_leaves_whole_results(written, taken):
    before = written.read_bytes()

    def write(descriptor, line):
        """Take some bytes, then none, as a disk does that fills up."""
        if not write.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count, write.room = os.write(descriptor, line[: write.room]), 0
        return count

    write.room = taken
    with (
        Journal(written, write=write) as journal,
        pytest.raises(ResultWriteError, match=r"No space left.*make room.*goes on from them"),
    ):
        journal.append(result("c"))
    assert written.read_bytes() == before
    with Journal(written) as journal:
        assert len(list(journal.past_results())) == 2
        journal.append(result("c"))
    assert names_in(written) == ["a", "b", "c"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_that_is_full_is_an_error(written):
    before = written.read_bytes()
    full = os.open("/dev/full", os.O_WRONLY)
    with (
        Journal(written, write=lambda _, line: os.write(full, line)) as journal,
        pytest.raises(ResultWriteError, match="No space left"),
    ):
        journal.append(result("c"))
    os.close(full)
    assert written.read_bytes() == before


def test_a_write_in_pieces_is_one_line(path):
    with Journal(path, write=lambda to, line: os.write(to, line[:7])) as journal:
        journal.append(result("a"))
    assert names_in(path) == ["a"]


@pytest.fixture
def syncs(monkeypatch):
    moments = []

    def sync(descriptor):
        moments.append(time.monotonic())

    monkeypatch.setattr(os, "fsync", sync)
    return moments


def test_many_results_need_few_syncs(path, syncs):
    with Journal(path) as journal:
        for number in range(300):
            journal.append(result(str(number)))
    # The folder of a new file, the end, and one in each second.
    assert len(syncs) <= 2 + (syncs[-1] - syncs[0])


def test_what_was_written_is_synced_also_while_nothing_follows(path, syncs):
    with Journal(path, sync_every_s=0.01) as journal:
        assert len(syncs) == 1
        journal.append(result("a"))
        deadline = time.monotonic() + 10
        while len(syncs) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(syncs) == 2
    assert len(syncs) == 3


def test_a_folder_that_cannot_be_synced_is_no_error(path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        journal = Journal(path)
    journal.close()


def test_an_error_of_the_disk_stops_the_next_write(path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(path, sync_every_s=0.01)
    monkeypatch.setattr(os, "fsync", broken)
    journal.append(result("a"))
    time.sleep(0.5)
    with pytest.raises(ResultWriteError, match="Input/output error"):
        journal.append(result("b"))
    with pytest.raises(ResultWriteError, match="Input/output error"):
        journal.close()
