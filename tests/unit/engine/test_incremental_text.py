import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer_support import byte_fallback, word_pieces

from headrace.engine.incremental_text import IncrementalText
from headrace.engine.loading import load_model

DEMO = load_model("demo", device="cpu", dtype="float32").tokenizer
LLAMA, PIECES = byte_fallback(), word_pieces()
TEXT = "naïve 日本語 — 😀👩‍👩‍👧 żółć Ω\n\tdef f(x): return '🇸🇪' # ok\u00a0\ufffd end"
SINGLE_BYTES = [token for token in range(len(DEMO)) if DEMO.decode([token]) == "\ufffd"]

tokens_of_any_kind = st.one_of(st.integers(0, len(DEMO) - 1), st.sampled_from(SINGLE_BYTES))
written = st.text(st.characters(codec="utf-8"), max_size=30).map(
    lambda text: DEMO(text)["input_ids"]
)
sequences = st.lists(st.one_of(written, st.lists(tokens_of_any_kind, max_size=12)), max_size=8).map(
    lambda parts: [token for part in parts for token in part]
)


class Counted:
    """A tokenizer that notes how many tokens each call decodes."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.lengths = []

    def decode(self, tokens):
        self.lengths.append(len(tokens))
        return self._tokenizer.decode(tokens)


def pieces_of(tokenizer, tokens):
    text = IncrementalText(tokenizer)
    return [*(text.take(token) for token in tokens), text.finish()]


@settings(max_examples=300, deadline=None)
@given(sequences)
def test_pieces_add_up_to_the_whole(tokens):
    pieces = pieces_of(DEMO, tokens)
    assert "".join(pieces) == DEMO.decode(tokens)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SINGLE_BYTES), max_size=150))
def test_bytes_that_are_no_text_add_up_too(tokens):
    assert "".join(pieces_of(DEMO, tokens)) == DEMO.decode(tokens)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=80), st.data())
def test_what_is_given_is_the_beginning_of_valid_text(text, data):
    tokens = DEMO(text)["input_ids"]
    taken = IncrementalText(DEMO)
    shown = ""
    for token in tokens[: data.draw(st.integers(0, len(tokens)))]:
        shown += taken.take(token)
        assert text.startswith(shown)


def test_a_character_is_given_with_its_last_token():
    tokens = DEMO("😀")["input_ids"]
    assert len(tokens) == 4
    assert pieces_of(DEMO, tokens) == ["", "", "", "😀", ""]
    assert pieces_of(DEMO, tokens[:3]) == ["", "", "", "\ufffd"]
    # What comes before it in the same token is not held back.
    assert pieces_of(DEMO, [*DEMO("ok")["input_ids"], *tokens])[-2:] == ["😀", ""]


def test_pieces_of_all_kinds_of_text_come_at_once():
    tokens = DEMO(TEXT * 20)["input_ids"]
    pieces = pieces_of(DEMO, tokens)
    assert "".join(pieces) == TEXT * 20 == DEMO.decode(tokens)
    assert pieces[-1] == ""


def worst_streams():
    lead, follow = DEMO("é")["input_ids"]
    emoji = DEMO("😀")["input_ids"]
    return {
        "text": DEMO("for x in range(10):\n    print(x)\n" * 60)["input_ids"],
        "characters": DEMO("日本語😀" * 60)["input_ids"],
        "bytes that only follow": [follow] * 600,
        "bytes that only begin": [lead] * 600,
        "characters that never end": emoji[:3] * 200,
        "special tokens": [0, 1] * 300,
    }


@pytest.mark.parametrize("kind", worst_streams())
def test_a_token_costs_the_same_however_long_the_text_is(kind):
    tokens = worst_streams()[kind]
    counted = Counted(DEMO)
    pieces = pieces_of(counted, tokens)
    assert max(counted.lengths) <= 48
    assert sum(counted.lengths) <= 33 * len(tokens)
    assert "".join(pieces) == DEMO.decode(tokens)
    assert len(pieces[-1]) <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["▁hello", "▁world", "▁", "a", "b", ".", "é", "日", "😀", "\n"]),
        max_size=60,
    )
)
def test_words_that_begin_with_a_space_and_bytes_for_other_characters(parts):
    tokens = []
    for part in parts:
        known = LLAMA.convert_tokens_to_ids(part)
        tokens += [known] if known else [byte + 1 for byte in part.encode()]
    pieces = pieces_of(LLAMA, tokens)
    assert "".join(pieces) == LLAMA.decode(tokens)
    assert pieces[-1] == ""


def test_many_characters_in_bytes_come_one_by_one():
    tokens = [byte + 1 for byte in ("😀日é" * 50).encode()]
    pieces = pieces_of(LLAMA, tokens)
    assert [piece for piece in pieces if piece] == [*("😀日é" * 50)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=60))
def test_a_decoder_that_puts_spaces_between_words(tokens):
    assert "".join(pieces_of(PIECES, tokens)) == PIECES.decode(tokens)


def test_text_that_was_given_stays_where_a_decoder_changes_its_mind():
    # Bytes of an unfinished run are all invalid once one of them is.
    tokens = [byte + 1 for byte in [*"é".encode(), 0x80]] + [LLAMA.convert_tokens_to_ids("a")]
    assert LLAMA.decode(tokens) == "\ufffd\ufffd\ufffda"
    assert pieces_of(LLAMA, tokens)[:2] == ["", "é"]
    assert pieces_of(LLAMA, tokens)[-2].endswith("a")
