"""Pictures as PNG, each with the hash of the SVG that it was drawn from.

The pixels depend on the rasteriser's version; the hash does not, so it tells whether a picture has
been drawn since its SVG changed. The letters are Roboto's, from a package of its own, so that a
machine without fonts draws them too, and the same.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORD = b"SVG SHA-256"
_ZOOM = 1.5


def draw_png(svg: str) -> bytes:
    """Return a picture as PNG.

    Raises:
        RuntimeError: the packages that draw it are not installed; the message names them.
    """
    try:
        import resvg_py
        from font_roboto import font_files
    except ImportError as error:
        raise RuntimeError(
            f"{error.name} draws the PNG and is not installed: pip install resvg-py font-roboto"
        ) from None
    drawn: bytes = resvg_py.svg_to_bytes(
        svg_string=svg,
        zoom=_ZOOM,
        skip_system_fonts=True,
        font_files=[font_files["Roboto"], font_files["RobotoBold"]],
        font_family="Roboto",
        sans_serif_family="Roboto",
    )
    head, first, *rest = _chunks(drawn)
    note = _chunk(b"tEXt", _KEYWORD + b"\0" + hash_of(svg).encode("ascii"))
    return b"".join([_SIGNATURE, head[1], note, first[1], *(chunk for _, chunk in rest)])


def hash_of(svg: str) -> str:
    """Return the hash of an SVG, as its PNG has it."""
    return hashlib.sha256(svg.encode("utf-8")).hexdigest()


def drawn_from(png: bytes) -> str:
    """Return the hash of the SVG that a PNG was drawn from; empty if it does not tell."""
    for name, chunk in _chunks(png):
        keyword, _, words = chunk[8:-4].partition(b"\0")
        if name == b"tEXt" and keyword == _KEYWORD:
            return words.decode("latin-1")
    return ""


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each chunk, and all of it; of what is no PNG nothing."""
    at = len(_SIGNATURE) if png.startswith(_SIGNATURE) else len(png)
    while at + 12 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        yield name, png[at : at + length + 12]
        at += length + 12


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
