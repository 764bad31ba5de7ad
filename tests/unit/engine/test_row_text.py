import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.loading import load_model
from headrace.engine.request import SamplingParams
from headrace.engine.row_text import RowText

TOKENIZER = load_model("demo", device="cpu", dtype="float32").tokenizer
END = 0
SINGLE_BYTES = [token for token in range(len(TOKENIZER)) if TOKENIZER.decode([token]) == "\ufffd"]
SAMPLE = TOKENIZER("def add(a, b):\n    return 'é€😀' + a - b  # 日本\n" * 3)["input_ids"]

any_token = st.one_of(
    st.integers(0, len(TOKENIZER) - 1), st.sampled_from(SINGLE_BYTES), st.sampled_from(SAMPLE)
)
sequences = st.one_of(
    st.lists(any_token, min_size=1, max_size=60),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).map(
        lambda text: TOKENIZER(text)["input_ids"]
    ),
)


def tokens_of(text):
    return TOKENIZER(text)["input_ids"]


def row_text(ends=(END,), **settings):
    return RowText(TOKENIZER, SamplingParams(**settings), ends)


def take(row, token):
    """Add a token; return the text that may be shown now."""
    row.take(token)
    return row.news()


def finish(row, reason):
    """End a row; return the text that was held back."""
    row.finish(reason)
    return row.news()


def expected_row(tokens, params, ends):
    """Return text, tokens and reason by decoding everything after every token."""
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else ends)}
    taken = []
    for token in tokens:
        taken.append(token)
        if token in ends:
            return TOKENIZER.decode(taken[:-1]), taken, "stop"
        text = TOKENIZER.decode(taken)
        places = [place for stop in params.stop if (place := text.find(stop)) >= 0]
        if places:
            return text[: min(places)], taken, "stop"
        if len(taken) == params.max_tokens:
            return text, taken, "length"
    return TOKENIZER.decode(taken), taken, "cancelled"


@settings(max_examples=300, deadline=None)
@given(
    tokens=sequences,
    stop_places=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 5)), max_size=2),
    stop_tokens=st.lists(any_token, max_size=1),
    max_tokens=st.integers(1, 60),
    ignore_eos=st.booleans(),
)
def test_pieces_add_up_to_the_text_of_all_tokens_decoded_at_once(
    tokens, stop_places, stop_tokens, max_tokens, ignore_eos
):
    whole = TOKENIZER.decode(tokens)
    stops = [whole[place : place + length] for place, length in stop_places]
    params = SamplingParams(
        # A replacement character comes and goes with the tokens of a character.
        stop=tuple(stop for stop in stops if stop and "\ufffd" not in stop),
        stop_token_ids=tuple(stop_tokens),
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )
    row = RowText(TOKENIZER, params, (END,))
    shown = ""
    for token in tokens:
        shown += take(row, token)
        assert shown == row.text
    shown += finish(row, "cancelled")
    text, taken, reason = expected_row(tokens, params, (END,))
    assert (shown, row.text) == (text, text)
    assert (row.token_ids, row.finish_reason) == (tuple(taken), reason)


@settings(max_examples=100, deadline=None)
@given(
    tokens=sequences,
    stop=st.text("ab(:", max_size=2),
    asked=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_the_text_is_the_same_however_often_it_is_asked_for(tokens, stop, asked):
    params = SamplingParams(stop=(stop,) if stop else (), max_tokens=60)
    row, other = (RowText(TOKENIZER, params, (END,)) for _ in range(2))
    shown = ""
    for token, ask in zip(tokens, asked, strict=False):
        row.take(token)
        other.take(token)
        shown += row.news() if ask else ""
    shown += finish(row, "cancelled")
    other.finish("cancelled")
    assert row.text == other.text == other.news() == shown
    assert (row.token_ids, row.finish_reason) == (other.token_ids, other.finish_reason)


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.sampled_from(tokens_of("a b c d ab cd")), min_size=1, max_size=30),
    stop=st.text("abcd ", min_size=1, max_size=4),
    least=st.integers(0, 10),
)
def test_the_first_tokens_complete_no_stop_string(tokens, stop, least):
    params = SamplingParams(stop=stop, min_tokens=least, max_tokens=30)
    row = RowText(TOKENIZER, params, ())
    for token in tokens:
        row.take(token)
    row.finish("cancelled")
    whole = TOKENIZER.decode(tokens)
    exempt = len(TOKENIZER.decode(tokens[:least]))
    places = [
        place
        for place in range(len(whole))
        if whole.startswith(stop, place) and place + len(stop) > exempt
    ]
    assert row.text == whole[: min(places, default=len(whole))]
    assert (row.finish_reason == "stop") == bool(places)


def test_an_end_token_is_among_the_tokens_but_not_in_the_text():
    row = row_text()
    word, *_ = tokens_of("return")
    assert take(row, word) == "return"
    assert (row.finished, row.finish_reason) == (False, None)
    assert take(row, END) == ""
    assert (row.finished, row.finish_reason, row.text) == (True, "stop", "return")
    assert row.token_ids == (word, END)


def test_stop_tokens_are_cut_alike_even_where_the_end_is_ignored():
    first, second = tokens_of("return self")
    row = row_text(stop_token_ids=(second,), ignore_eos=True)
    shown = [take(row, token) for token in (END, first, second)]
    assert shown == ["<|endoftext|>", "return", ""]
    assert (row.finish_reason, row.token_ids) == ("stop", (END, first, second))


def test_the_first_tokens_do_not_end_the_row():
    row = row_text(min_tokens=2, ignore_eos=False)
    for token in (END, END):
        row.take(token)
        assert not row.finished
    row.take(END)
    assert (row.finish_reason, row.text) == ("stop", "<|endoftext|>" * 2)


def test_a_finished_row_takes_no_more():
    row = row_text(max_tokens=1)
    row.take(5)
    assert (take(row, 6), finish(row, "cancelled")) == (TOKENIZER.decode([5]), "")
    assert (row.token_ids, row.finish_reason) == ((5,), "length")


@pytest.mark.parametrize("reason", ["cancelled", "length"])
def test_a_row_that_is_ended_gives_what_it_held_back(reason):
    tokens = tokens_of("x = 1\n# th")
    row = row_text(stop=("# the end",))
    shown = "".join(take(row, token) for token in tokens)
    assert shown == "x = 1\n"
    assert finish(row, reason) == "# th"
    assert (row.text, row.finish_reason) == ("x = 1\n# th", reason)


def test_an_unfinished_character_is_shown_when_the_row_ends_only():
    *begun, _ = tokens_of("€")
    row = row_text(max_tokens=len(begun))
    shown = [take(row, token) for token in begun]
    assert shown[:-1] == [""] * (len(begun) - 1)
    assert shown[-1] == row.text == TOKENIZER.decode(begun) == "\ufffd"


def test_a_stop_string_counts_in_text_that_was_held_back_to_the_end():
    *begun, _ = tokens_of("€")
    row = row_text(stop=("\ufffd",))
    for token in begun:
        row.take(token)
    assert finish(row, "cancelled") == ""
    assert (row.text, row.finish_reason) == ("", "stop")


def test_a_row_that_is_ended_at_once_is_empty():
    row = row_text()
    assert finish(row, "cancelled") == ""
    assert (row.text, row.token_ids, row.finish_reason) == ("", (), "cancelled")
