"""Builds the corpus: which standard-library files, the tokenizer, the token arrays."""

import hashlib
import itertools
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_model.prepared import TOKENIZER_DIR, Manifest, PreparedCorpus
from demo_model.recipe import END_OF_TEXT, PADDING, VOCAB_SIZE, Recipe

# Installed packages, generated tables, and deprecated or GUI tools.
EXCLUDED_DIRS = frozenset(
    {"site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3", "idlelib"}
)
MAX_FILE_BYTES = 300_000
HELD_OUT_FRACTION = 0.03
MEAN_CHARS_BETWEEN_CUTS = 400

# One token per line break; a line's indentation apart from its first word; otherwise a space
# belongs to the word or the signs after it, and other runs of spaces stay together.
TOKEN_PATTERN = (
    r"\n|(?<![^\n])[ \t]+| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"
)


@dataclass(frozen=True)
class SourceFile:
    """A source file's path relative to the library, with forward slashes, and its text."""

    name: str
    text: str

    @property
    def digest(self) -> int:
        """A number below 2**64 that depends on the name alone."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    @property
    def held_out(self) -> bool:
        """Whether the file is kept from the training and the tokenizer."""
        return self.digest / 2**64 < HELD_OUT_FRACTION


def prepare(work_dir: Path) -> Manifest:
    """Read the running interpreter's library and write the prepared corpus to `work_dir`."""
    files = list(read_library(Path(sysconfig.get_paths()["stdlib"])))
    if not files:
        raise FileNotFoundError("the standard library has no readable .py files here")
    train_files = [file for file in files if not file.held_out]
    held_out_files = [file for file in files if file.held_out]

    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([file.text for file in train_files])
    save_tokenizer(tokenizer, work_dir / TOKENIZER_DIR)
    corpus = encode_corpus(tokenizer, train_files, held_out_files)
    corpus.save(work_dir)
    return corpus.manifest


def read_library(library_dir: Path) -> Iterator[SourceFile]:
    """Yield the files to use in order of name, leaving out those that are not valid text."""
    for path in sorted(library_dir.rglob("*.py")):
        relative = path.relative_to(library_dir)
        if EXCLUDED_DIRS.intersection(relative.parts) or path.name.startswith("_sysconfigdata"):
            continue
        if not 0 < path.stat().st_size <= MAX_FILE_BYTES:
            continue
        try:
            with tokenize.open(path) as stream:
                yield SourceFile(relative.as_posix(), stream.read())
        except (SyntaxError, UnicodeDecodeError):  # test files with a deliberately wrong encoding
            continue


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer that gives back every text unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, target_dir: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as AutoTokenizer reads them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=Recipe().max_context_tokens,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(target_dir)


def encode_corpus(
    tokenizer: Tokenizer, train_files: list[SourceFile], held_out_files: list[SourceFile]
) -> PreparedCorpus:
    """Turn both parts into token arrays, each document followed by the end-of-text token."""
    vocabulary = tokenizer.get_vocab()
    end_id = vocabulary[END_OF_TEXT]
    train = [encode_document(tokenizer, cut_text(file), end_id) for file in train_files]
    held_out = [encode_document(tokenizer, [file.text], end_id) for file in held_out_files]
    held_out_tokens = np.concatenate([np.array([end_id], dtype=np.uint16), *held_out])
    manifest = Manifest(
        python_version=platform.python_version(),
        vocab_size=len(vocabulary),
        end_id=end_id,
        padding_id=vocabulary[PADDING],
        train_files=len(train_files),
        train_bytes=sum(len(file.text.encode()) for file in train_files),
        train_tokens=sum(len(tokens) for tokens in train),
        held_out_files=len(held_out_files),
        held_out_bytes=sum(len(file.text.encode()) for file in held_out_files),
        held_out_tokens=len(held_out_tokens) - 1,
    )
    starts = np.cumsum([0, *(len(tokens) for tokens in train[:-1])], dtype=np.int64)
    return PreparedCorpus(manifest, np.concatenate(train), starts, held_out_tokens)


def cut_text(file: SourceFile) -> list[str]:
    """Cut a text at random places, half of them just after a space.

    The pieces are encoded one by one, so that the model learns to go on after a prompt that ends
    within a word or with a space, where the tokenizer would not have ended a token.
    """
    random = np.random.default_rng(file.digest)
    cuts = random.integers(0, len(file.text) + 1, size=len(file.text) // MEAN_CHARS_BETWEEN_CUTS)
    after_space = random.random(len(cuts)) < 0.5
    places = {
        file.text.find(" ", int(cut)) + 1 if move else int(cut)
        for cut, move in zip(cuts, after_space, strict=True)
    }
    bounds = sorted(places | {0, len(file.text)})
    return [file.text[start:end] for start, end in itertools.pairwise(bounds)]


def encode_document(
    tokenizer: Tokenizer, pieces: list[str], end_id: int
) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Encode the pieces of one document, then the end-of-text token."""
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    ids = [token_id for encoding in encodings for token_id in encoding.ids]
    return np.array([*ids, end_id], dtype=np.uint16)
