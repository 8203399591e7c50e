"""Animated PNGs of screenshots, put together and looked at, without a library for pictures.

A frame is a PNG's own compressed rows under another name, so nothing is drawn anew:
https://www.w3.org/TR/png-3/#apng-frame-based-animation
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A screenshot, as a PNG file has it, and how long it is shown, in seconds."""

    picture: bytes
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an animation is; sizes are pixels, ``seconds`` has one for each frame.

    ``plays`` is how often it is shown; 0 is without end.
    """

    width: int
    height: int
    seconds: tuple[float, ...]
    plays: int


def join(frames: Sequence[Frame], *, still: bytes) -> bytes:
    """One picture that goes through the frames without end.

    ``still`` is what those show who can't. Raises ValueError where a picture is not like
    the others: of another size, or with other colours.
    """
    header = _part(still, b"IHDR")
    width, height = struct.unpack(">II", header[:8])
    numbers = count()
    made = [SIGNATURE, _chunk(b"IHDR", header), _chunk(b"acTL", struct.pack(">II", len(frames), 0))]
    made.append(_chunk(b"IDAT", _part(still, b"IDAT")))
    for frame in frames:
        if _part(frame.picture, b"IHDR") != header:
            msg = "the pictures differ in size or colours"
            raise ValueError(msg)
        place = struct.pack(">IIIII", next(numbers), width, height, 0, 0)
        shown = struct.pack(">HHBB", round(frame.seconds * 1000), 1000, 0, 0)
        made.append(_chunk(b"fcTL", place + shown))
        rows = struct.pack(">I", next(numbers)) + _part(frame.picture, b"IDAT")
        made.append(_chunk(b"fdAT", rows))
    return b"".join([*made, _chunk(b"IEND", b"")])


def look(data: bytes) -> Facts:
    """What there is to see. Raises ValueError where it is damaged, or moves nothing."""
    width, height = struct.unpack(">II", _part(data, b"IHDR")[:8])
    frames, plays = struct.unpack(">II", _part(data, b"acTL"))
    shown = [struct.unpack(">HH", body[20:24]) for kind, body in _chunks(data) if kind == b"fcTL"]
    if len(shown) != frames:
        msg = f"{len(shown)} frames instead of {frames}"
        raise ValueError(msg)
    seconds = tuple(number / (unit or 100) for number, unit in shown)
    return Facts(width=width, height=height, seconds=seconds, plays=plays)


def _part(data: bytes, wanted: bytes) -> bytes:
    """All of one kind, one after the other."""
    found = [body for kind, body in _chunks(data) if kind == wanted]
    if not found:
        msg = f"no {wanted.decode()} in it"
        raise ValueError(msg)
    return b"".join(found)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(SIGNATURE):
        msg = "this is no PNG"
        raise ValueError(msg)
    at = len(SIGNATURE)
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if _chunk(kind, body) != data[at : at + 12 + size]:
            msg = f"{kind!r} is damaged"
            raise ValueError(msg)
        yield kind, body
        at += 12 + size


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
