from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.stop_strings import StopStrings

texts = st.text("abc", max_size=4)
stop_strings = st.lists(st.text("abc", min_size=1, max_size=5), max_size=3)


def first_place(text, stops, before=0):
    """Return where the first of the stop strings begins that end after some characters."""
    places = [
        place
        for stop in stops
        for place in range(len(text))
        if text.startswith(stop, place) and place + len(stop) > before
    ]
    return min(places, default=None)


@settings(max_examples=300, deadline=None)
@given(stop_strings, st.lists(texts, max_size=10), st.integers(0, 4))
def test_the_text_is_cut_before_the_first_stop_string(stops, pieces, exempt):
    finder, shown, so_far = StopStrings(stops), "", ""
    for number, piece in enumerate(pieces):
        so_far += piece
        shown += finder.take(piece, counts=number >= exempt)
        before = len("".join(pieces[:exempt]))
        place = first_place(so_far, stops, before) if number >= exempt else None
        assert finder.found == (place is not None)
        if finder.found:
            assert shown == so_far[:place]
            assert finder.take("more") == finder.finish() == ""
            return
        held = so_far[len(shown) :]
        assert so_far.startswith(shown)
        # No more is held back than may become a stop string, and all of that.
        promising = [
            count
            for count in range(len(so_far) + 1)
            if any(stop.startswith(so_far[len(so_far) - count :]) and stop for stop in stops)
            and not any(so_far[len(so_far) - count :] == stop for stop in stops)
        ]
        assert len(held) == max(promising, default=0) or exempt
    assert shown + finder.finish() == so_far


def test_without_stop_strings_nothing_is_held_back():
    finder = StopStrings(())
    assert [finder.take("a"), finder.take("bc"), finder.finish()] == ["a", "bc", ""]
    assert not finder.found


def test_what_may_become_a_stop_string_is_held_back():
    finder = StopStrings(["end.", "ne"])
    assert [finder.take(text) for text in ("the e", "n", "d", "less", " e", "nd.", "x")] == [
        "the ",
        "",
        "",
        "endless",
        " ",
        "",
        "",
    ]
    assert finder.found


def test_of_two_stop_strings_that_end_together_the_longer_counts():
    finder = StopStrings(["c", "abc"])
    assert (finder.take("xab"), finder.take("c"), finder.found) == ("x", "", True)


def test_a_stop_string_may_repeat_itself():
    finder = StopStrings(["aab"])
    assert [finder.take(letter) for letter in "aaab"] == ["", "", "a", ""]
    assert finder.found


def test_a_stop_string_that_ends_in_exempt_text_is_passed_on():
    finder = StopStrings(["ab"])
    assert finder.take("xabya", counts=False) == "xaby"
    assert not finder.found
    # One that merely begins there counts.
    assert finder.take("b") == ""
    assert finder.found
