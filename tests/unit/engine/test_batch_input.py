import pytest
from tests.batch_support import line_of, write_lines

from headrace.engine.batch_input import BatchInput
from headrace.errors import ConfigurationError


def test_requests_are_found_and_read_again(tmp_path):
    lines = [line_of("a", prompt="ä"), b"  ", b"not json", line_of("b", n=0), b"", line_of("c")]
    path = write_lines(tmp_path / "in.jsonl", *lines)
    with BatchInput(path) as batch:
        assert len(batch) == 4
        assert batch.custom_ids == ["a", "line:3", "b", "c"]
        assert [bool(valid) for valid in batch.valid] == [True, False, False, True]
        assert list(batch.places(valid=True)) == [0, 3]
        assert list(batch.places(valid=False)) == [1, 2]
        assert [batch.find(name) for name in ("c", "line:3", "d")] == [3, 1, None]
        # In an order of their own.
        assert batch.read(3).custom_id == "c"
        assert batch.read(0).request.prompts == ("ä",)
        assert batch.read(2).error.param == "n"
        assert batch.read(1).custom_id == "line:3"


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_a_last_line_needs_no_end(tmp_path, ends):
    path = tmp_path / "in.jsonl"
    path.write_bytes(ends.join([line_of("a"), line_of("b")]))
    with BatchInput(path) as batch:
        assert batch.custom_ids == ["a", "b"]
        assert batch.read(1).request is not None


def test_digests_are_of_name_and_line(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", b"bad", b"bad", line_of("a"), line_of("b"))
    other = write_lines(tmp_path / "other.jsonl", line_of("a") + b"  ", line_of("b", n=2))
    with BatchInput(path) as batch, BatchInput(other) as changed:
        digests = [batch.digest(place) for place in range(4)]
        assert len(set(digests)) == 4
        assert changed.digest(0) == digests[2]
        assert changed.digest(1) != digests[3]


def test_names_that_are_there_twice_are_listed_with_their_lines(tmp_path):
    lines = [line_of("a"), line_of("b"), line_of("a", n=2), line_of("c"), line_of("a")]
    path = write_lines(tmp_path / "in.jsonl", *lines)
    with pytest.raises(ConfigurationError, match=r"'a' on lines 1, 3, 5; give each"):
        BatchInput(path)
    many = [line_of(str(number % 100)) for number in range(1000)]
    with pytest.raises(ConfigurationError, match=r"and more.*; and 95 more") as caught:
        BatchInput(write_lines(path, *many))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_input_is_refused(tmp_path, content):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no request; give a file with one JSON"):
        BatchInput(path)


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", line_of("a"), line_of("b"))
    with BatchInput(path) as batch:
        write_lines(path, line_of("a", n=2), line_of("b"))
        with pytest.raises(ConfigurationError, match=r"was changed while.*line 2"):
            batch.read(1)


def test_the_file_is_known_by_any_name(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", line_of("a"))
    (tmp_path / "link").symlink_to(path)
    with BatchInput(path) as batch:
        assert batch.is_file((tmp_path / "link").stat())
        assert not batch.is_file(tmp_path.stat())
