"""Make a screenshot's PNG smaller: at most 256 colours, which pages and charts hardly exceed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = 256


def shrink_png(path: Path) -> None:
    """Rewrite an 8-bit RGB picture, not interlaced, with a palette of its most used colours."""
    pixels = _decoded(path.read_bytes())
    packed = (pixels.astype(np.uint32) * np.array([1 << 16, 1 << 8, 1], np.uint32)).sum(2)
    colours, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    kept = colours[np.argsort(-counts, kind="stable")[:_COLOURS]]
    places = _nearest(_split(colours), _split(kept))[inverse.reshape(packed.shape)]
    rows = np.zeros((places.shape[0], places.shape[1] + 1), np.uint8)
    rows[:, 1:] = places
    header = struct.pack(">IIBBBBB", places.shape[1], places.shape[0], 8, 3, 0, 0, 0)
    path.write_bytes(
        _SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"PLTE", _split(kept).astype(np.uint8).tobytes())
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _decoded(png: bytes) -> np.ndarray:
    """Return the pixels of a PNG: ``[height, width, 3]``, uint8."""
    position, data = len(_SIGNATURE), b""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    if (depth, kind) != (8, 2):
        raise ValueError(f"the PNG has depth {depth} and colour type {kind}; 8 and 2 are read")
    while position < len(png):
        length, name = struct.unpack(">I4s", png[position : position + 8])
        if name == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += length + 12
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 3 * width + 1)
    pixels = np.zeros((height + 1, width, 3), np.uint8)
    for y, row in enumerate(rows):
        line = row[1:].reshape(width, 3)
        pixels[y + 1] = _unfiltered(int(row[0]), line, pixels[y])
    return pixels[1:]


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return a line of pixels without its filter (PNG specification, section 9)."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0, dtype=np.uint8)
    if kind == 2:
        return line + above
    found = []
    for given, over in zip(line.T.tolist(), above.T.tolist(), strict=True):
        left = corner = 0
        channel = []
        for value, up in zip(given, over, strict=True):
            guess = (left + up) // 2 if kind == 3 else _paeth(left, up, corner)
            left, corner = (value + guess) & 255, up
            channel.append(left)
        found.append(channel)
    return np.array(found, np.uint8).T


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def _nearest(colours: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the place of the nearest kept colour for each colour."""
    return np.array([int(np.argmin(((kept - colour) ** 2).sum(1))) for colour in colours], np.uint8)


def _split(packed: np.ndarray) -> np.ndarray:
    """Return red, green and blue of packed colours: ``[count, 3]``."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).astype(np.int64)


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)
