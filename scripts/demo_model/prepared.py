"""The prepared corpus on disk: token arrays, the tokenizer and a manifest.

Shapes: D documents, T tokens, R rows of S + 1 tokens (S inputs and, shifted by one, S targets).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MANIFEST_FILE = "manifest.json"
TRAIN_TOKENS_FILE = "train_tokens.npy"
TRAIN_STARTS_FILE = "train_starts.npy"
HELD_OUT_TOKENS_FILE = "held_out_tokens.npy"
TOKENIZER_DIR = "tokenizer"

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Manifest:
    """What the prepared arrays were made from."""

    python_version: str
    vocab_size: int
    end_id: int
    padding_id: int
    train_files: int
    train_bytes: int
    train_tokens: int
    held_out_files: int
    held_out_bytes: int
    held_out_tokens: int


@dataclass(frozen=True)
class PreparedCorpus:
    """Token arrays of both parts.

    `train_tokens` is `[T]`, and `train_starts` `[D]` says where each of its documents begins.
    Every document ends with the end-of-text token; `held_out_tokens` also begins with one, so
    that its first real token has something to be predicted from.
    """

    manifest: Manifest
    train_tokens: Tokens
    train_starts: npt.NDArray[np.int64]
    held_out_tokens: Tokens

    def save(self, work_dir: Path) -> None:
        """Write the arrays and the manifest into an existing directory."""
        np.save(work_dir / TRAIN_TOKENS_FILE, self.train_tokens)
        np.save(work_dir / TRAIN_STARTS_FILE, self.train_starts)
        np.save(work_dir / HELD_OUT_TOKENS_FILE, self.held_out_tokens)
        text = json.dumps(asdict(self.manifest), indent=2)
        (work_dir / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, work_dir: Path) -> "PreparedCorpus":
        """Read what `save` wrote; raise FileNotFoundError when `prepare` has not been run."""
        manifest_path = work_dir / MANIFEST_FILE
        if not manifest_path.exists():
            raise FileNotFoundError(f"{manifest_path} is missing: run the `prepare` command first")
        return cls(
            manifest=Manifest(**json.loads(manifest_path.read_text(encoding="utf-8"))),
            train_tokens=np.load(work_dir / TRAIN_TOKENS_FILE),
            train_starts=np.load(work_dir / TRAIN_STARTS_FILE),
            held_out_tokens=np.load(work_dir / HELD_OUT_TOKENS_FILE),
        )

    def rows_per_epoch(self, row_tokens: int) -> int:
        """Return how many rows of `row_tokens` targets one pass over the training part gives."""
        return (len(self.train_tokens) - 1) // row_tokens

    def epoch_rows(self, epoch: int, *, row_tokens: int, seed: int) -> Tokens:
        """Return one epoch's rows `[R, S + 1]`.

        Documents are shuffled, joined and cut into rows, and the rows are shuffled again. The
        order depends on `seed` and `epoch` alone, so a resumed training needs no random state.
        """
        random = np.random.default_rng((seed, epoch))
        documents = np.split(self.train_tokens, self.train_starts[1:])
        order_D = random.permutation(len(documents))
        stream_T = np.concatenate([documents[index] for index in order_D])
        windows = np.lib.stride_tricks.sliding_window_view(stream_T, row_tokens + 1)[::row_tokens]
        order_R = random.permutation(self.rows_per_epoch(row_tokens))
        rows: Tokens = windows[order_R]
        return rows
