"""A PNG that a sandbox made: taken for one only if all of it is what it should be."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
BYTES: Final = 4
"""Of a pixel: red, green, blue and how opaque it is."""


def checked(data: bytes, *, width: int, height: int) -> bytes:
    """The picture again, with its pixels and nothing else that a PNG can hold.

    Raises ValueError for anything but pixels of 8 bits in exactly this size; no more than
    their bytes are ever unpacked. https://www.w3.org/TR/png-3/
    """
    if not data.startswith(SIGNATURE):
        msg = "it has not the beginning of a PNG"
        raise ValueError(msg)
    chunks = list(_chunks(data))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    if chunks[:1] != [(b"IHDR", header)]:
        msg = f"it is not {width} by {height} pixels of {BYTES} bytes"
        raise ValueError(msg)
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    _check_pixels(packed, row=1 + BYTES * width, rows=height)
    parts = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        end = at + 12 + length
        if data[at:end] != _chunk(kind, content):
            msg = "a part of it is damaged"
            raise ValueError(msg)
        yield kind, content
        at = end


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return len(content).to_bytes(4) + kind + content + crc.to_bytes(4)


def _check_pixels(packed: bytes, *, row: int, rows: int) -> None:
    """Each row is the number of one of five filters, and its pixels."""
    unpacking = zlib.decompressobj()
    try:
        pixels = unpacking.decompress(packed, row * rows + 1)
    except zlib.error as error:
        msg = f"its pixels cannot be unpacked: {error}"
        raise ValueError(msg) from error
    filters = set(pixels[::row])
    if len(pixels) != row * rows or not unpacking.eof or filters - set(range(5)):
        msg = "its pixels are not as many as its size says"
        raise ValueError(msg)
