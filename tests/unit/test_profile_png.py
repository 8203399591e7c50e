"""What is taken for a PNG, and what of it is kept."""

import struct
import zlib

import pytest

from kernel_provider.profile.png import SIGNATURE, checked

WIDTH, HEIGHT = 3, 2
ROW = 1 + 4 * WIDTH


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG, as https://www.w3.org/TR/png-3/ has it."""
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def header(
    width: int = WIDTH, height: int = HEIGHT, *, bits: int = 8, interlaced: int = 0
) -> bytes:
    """The first part of a picture with red, green, blue and alpha."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 6, 0, 0, interlaced))


def pixels(*, rows: int = HEIGHT, kind: int = 0) -> bytes:
    """So many rows, packed."""
    return zlib.compress((bytes([kind]) + b"\x7f" * (ROW - 1)) * rows)


def picture(*parts: bytes) -> bytes:
    """A file of these parts, and the last one."""
    return SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")


GOOD = picture(header(), chunk(b"IDAT", pixels()))


def test_pixels_are_kept_and_nothing_else() -> None:
    """In one part or several; texts, profiles of colour and whatever else goes."""
    packed = pixels()
    parts = (chunk(b"IDAT", packed[:5]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", packed[5:]))
    assert checked(picture(header(), chunk(b"iCCP", b"x"), *parts), width=3, height=2) == GOOD
    assert checked(GOOD, width=3, height=2) == GOOD


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "beginning"),
        (b"<svg></svg>", "beginning"),
        (SIGNATURE, "it is not 3 by 2"),
        (GOOD[:-1], "damaged"),
        (GOOD[:40], "damaged"),
        (GOOD + b"\0", "damaged"),
        (GOOD.replace(b"IDAT", b"IDAX"), "damaged"),
        (SIGNATURE + b"\xff\xff\xff\xffIHDR", "damaged"),
        (picture(header(4), chunk(b"IDAT", pixels())), "it is not 3 by 2"),
        (picture(header(bits=16), chunk(b"IDAT", pixels())), "it is not 3 by 2"),
        (picture(header(interlaced=1), chunk(b"IDAT", pixels())), "it is not 3 by 2"),
        (picture(header()), "not as many"),
        (picture(header(), chunk(b"IDAT", b"no")), "cannot be unpacked"),
        (picture(header(), chunk(b"IDAT", pixels()[:-4])), "not as many"),
        (picture(header(), chunk(b"IDAT", pixels(rows=1))), "not as many"),
        (picture(header(), chunk(b"IDAT", pixels(rows=3))), "not as many"),
        (picture(header(), chunk(b"IDAT", pixels(kind=5))), "not as many"),
        (picture(header(), chunk(b"IDAT", zlib.compress(bytes(50 << 20)))), "not as many"),
    ],
)
def test_anything_else_is_refused(data: bytes, why: str) -> None:
    """Another size, a damaged part, too few pixels, or so many that they would fill memory."""
    with pytest.raises(ValueError, match=why):
        checked(data, width=3, height=2)
