"""What host attention works on: which row sees which pages, and where a layer's pages lie.

Shape suffixes: B rows, E entries (a page as one row sees it), P pages, H key/value heads, T tokens
of a page, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""``headrace_dtype`` of ``native/headrace_attention.h``."""

_WORD_BITS = 64


@dataclass(frozen=True, eq=False)
class RowEntries:
    """Which row sees which pages: prepared once, used for all layers and steps until it changes.

    Made by ``of``. The arrays must not be changed.

    Attributes:
        rows: B.
        row_entry: int64 ``[B + 1]``; first entry of each row, entries being sorted by row.
        page: int64 ``[E]``; number of each entry's page.
        token: int64 ``[E + 1]``; tokens in all entries before this one.
        visible: bool ``[E, T]``, or None; whether the row sees the token at a place of the page.
    """

    rows: int
    row_entry: NDArray[np.int64]
    page: NDArray[np.int64]
    token: NDArray[np.int64]
    visible: NDArray[np.bool_] | None
    _masks: tuple[NDArray[np.int64], NDArray[np.uint64]] | None

    @classmethod
    def of(
        cls,
        rows: int,
        entry_row: ArrayLike,
        entry_page: ArrayLike,
        entry_tokens: ArrayLike,
        visible: NDArray[np.bool_] | None = None,
    ) -> RowEntries:
        """Return entries, sorted by row.

        Args:
            rows: B; rows that no entry names see nothing.
            entry_row: ``[E]``; the row of each entry.
            entry_page: ``[E]``; number of its page. Several rows may see one page.
            entry_tokens: ``[E]``; valid tokens of the page, from its first place on. What lies
                beyond is never read.
            visible: bool ``[E, T]``; False where the row does not see a token, or None where it
                sees all valid ones. Tokens that are not seen are not read.

        Raises:
            ValueError: an array's shape or content is not allowed.
        """
        row = _indices("entry_row", entry_row)
        page = _indices("entry_page", entry_page)
        tokens = _indices("entry_tokens", entry_tokens)
        for name, array in (("entry_page", page), ("entry_tokens", tokens)):
            if array.shape != row.shape:
                raise ValueError(
                    f"{name} has shape {list(array.shape)}; entry_row has {list(row.shape)}"
                )
        if row.size and int(row.max()) >= rows:
            raise ValueError(f"entry_row names row {int(row.max())}; there are {rows} rows")
        order = np.argsort(row, kind="stable")
        counts = np.bincount(row, minlength=rows)
        if visible is not None:
            visible = _visibility(visible, tokens)[order]
        return cls(
            rows=rows,
            row_entry=_sums(counts),
            page=np.ascontiguousarray(page[order]),
            token=_sums(tokens[order]),
            visible=visible,
            _masks=None if visible is None else _mask_words(visible),
        )

    @cached_property
    def tokens(self) -> int:
        """Valid tokens, over all rows."""
        return int(self.token[-1])

    @cached_property
    def pages_needed(self) -> int:
        """One more than the largest page number."""
        return int(self.page.max()) + 1 if self.page.size else 0

    @cached_property
    def page_tokens_needed(self) -> int:
        """Most valid tokens of a page."""
        return int(np.diff(self.token).max(initial=0))

    @cached_property
    def addresses(self) -> tuple[int | None, ...]:
        """Where the arrays lie, in the library's order."""
        mask, words = self._masks or (None, None)
        arrays = (self.row_entry, self.page, self.token, mask, words)
        return tuple(None if array is None else array.ctypes.data for array in arrays)


@dataclass(frozen=True, eq=False)
class LayerPages:
    """The keys and values of one layer: all extents of its pools. Made by ``of``.

    The tensors stay the caller's. Their content may change between calls; their memory may not.

    Attributes:
        keys: by extent, ``[P, H, T, D]``.
        values: likewise.
        first: int64 ``[extents + 1]``; number of each extent's first page, then of all pages.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    first: NDArray[np.int64]
    _key_starts: NDArray[np.int64]
    _value_starts: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> LayerPages:
        """Return the pages of a layer.

        Args:
            keys: ``[P, H, T, D]`` for each extent, on the CPU and contiguous; float32, float16 or
                bfloat16. P may differ from extent to extent.
            values: likewise, with the same shapes.

        Raises:
            ValueError: there is no extent, or a tensor's shape, dtype, device or layout is not
                allowed.
        """
        if not keys or len(keys) != len(values):
            raise ValueError(
                f"keys has {len(keys)} extents, values has {len(values)}; as many are needed of "
                "both, and one at least"
            )
        like = keys[0]
        if like.dim() != 4 or min(like.shape[1:], default=0) < 1:
            raise ValueError(f"keys[0] has shape {list(like.shape)}; expected [P, H, T, D]")
        if like.dtype not in DTYPES:
            raise ValueError(f"keys[0] is {like.dtype}; expected one of {list(DTYPES)}")
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            shape = [key.shape[0] if key.dim() else 0, *like.shape[1:]]
            check_tensor(f"keys[{index}]", key, shape, like.dtype)
            check_tensor(f"values[{index}]", value, shape, like.dtype)
        return cls(
            keys=tuple(keys),
            values=tuple(values),
            first=_sums(np.array([key.shape[0] for key in keys])),
            _key_starts=_starts(keys),
            _value_starts=_starts(values),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of keys, values and queries."""
        return self.keys[0].dtype

    @property
    def heads(self) -> int:
        """H."""
        return self.keys[0].shape[1]

    @property
    def page_tokens(self) -> int:
        """T."""
        return self.keys[0].shape[2]

    @property
    def width(self) -> int:
        """D."""
        return self.keys[0].shape[3]

    @cached_property
    def count(self) -> int:
        """Pages of all extents."""
        return int(self.first[-1])

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where the arrays lie, in the library's order."""
        arrays = (self._key_starts, self._value_starts, self.first)
        return tuple(array.ctypes.data for array in arrays)


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise ValueError unless a tensor is contiguous, on the CPU, and as expected."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; expected {dtype}")
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; expected cpu")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {list(tensor.stride())}; expected contiguous memory")


def _indices(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} has shape {list(array.shape)} and dtype {array.dtype}; expected integers [E]"
        )
    array = array.astype(np.int64)
    if array.size and int(array.min()) < 0:
        raise ValueError(f"{name} has {int(array.min())}; expected numbers of at least 0")
    return array


def _visibility(visible: NDArray[np.bool_], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which valid places are visible."""
    if visible.dtype != np.bool_ or visible.ndim != 2 or visible.shape[0] != tokens.size:
        raise ValueError(
            f"visible has shape {list(visible.shape)} and dtype {visible.dtype}; expected bool "
            f"[{tokens.size}, T]"
        )
    most = int(tokens.max(initial=0))
    if visible.shape[1] < most:
        raise ValueError(
            f"visible has {visible.shape[1]} places of each page; entry_tokens has {most}"
        )
    return visible & (np.arange(visible.shape[1]) < tokens[:, None])


def _mask_words(visible: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return each entry's first word, and the words, whose bits are the places of its page."""
    entries, places = visible.shape
    words_each = -(-places // _WORD_BITS)
    padded = np.zeros((entries, words_each * _WORD_BITS), dtype=np.bool_)
    padded[:, :places] = visible
    words = np.packbits(padded, axis=1, bitorder="little").reshape(-1).view("<u8")
    first = np.arange(entries, dtype=np.int64) * words_each
    return first, np.ascontiguousarray(words, dtype=np.uint64)


def _sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 and the sums of the first, of the first two, and so on."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _starts(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
