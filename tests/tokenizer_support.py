"""Small tokenizers of the kinds that models have, made in a moment."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["▁", "▁hello", "▁world", "▁a", "a", "b", "c", "e", "l", "o", ".", ",", "▁b", "\n"]


def byte_fallback():
    """Return one as Llama 2 has it: words begin with a space, unknown characters are bytes."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    made = Tokenizer(model)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


def word_pieces():
    """Return one whose decoder puts spaces between words."""
    tokens = ["[UNK]", "hello", "world", "##ly", "##s", ".", ",", "a", "b"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)
