"""Pictures that move, and the one in the README."""

import re
import struct
import zlib
from pathlib import Path

import pytest
from apng import SIGNATURE, Frame, join, look
from pages import ROOT, read


def chunk(kind: bytes, body: bytes) -> bytes:
    """As the format has it."""
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def dot(shade: int, *, width: int = 1) -> bytes:
    """A picture of one row, in two pieces as larger ones have them."""
    rows = zlib.compress(bytes([0] + [shade] * width))
    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    halves = chunk(b"IDAT", rows[:4]) + chunk(b"IDAT", rows[4:])
    return SIGNATURE + chunk(b"IHDR", header) + halves + chunk(b"IEND", b"")


def frames(*shades: int) -> list[Frame]:
    """A second and a half for each."""
    return [Frame(picture=dot(shade), seconds=1.5) for shade in shades]


def test_what_is_joined_is_found_again() -> None:
    """Each picture's own rows, in their order, and the still one for who can't."""
    made = join(frames(1, 2, 3), still=dot(9))
    facts = look(made)
    assert (facts.width, facts.height, facts.plays) == (1, 1, 0)
    assert facts.seconds == (1.5, 1.5, 1.5)
    rows = [zlib.compress(bytes([0, shade])) for shade in (9, 1, 2, 3)]
    places = [made.index(row) for row in rows]
    assert places == sorted(places)
    counted = re.finditer(b"(?:fcTL|fdAT)(.{4})", made, re.DOTALL)
    numbers = [int.from_bytes(found[1], "big") for found in counted]
    assert numbers == list(range(6)), "one count for both kinds"


def test_pictures_of_two_sizes_are_refused() -> None:
    """A browser would show nothing."""
    with pytest.raises(ValueError, match="differ in size"):
        join([*frames(1), Frame(picture=dot(2, width=2), seconds=1)], still=dot(1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dot(1), "no acTL"),
        (b"GIF89a", "no PNG"),
        (join(frames(1, 2), still=dot(1))[:-30], "damaged"),
        (
            join(frames(1, 2), still=dot(1)).replace(
                b"\x00\x00\x00\x02\x00", b"\x00\x00\x00\x03\x00"
            ),
            "damaged",
        ),
    ],
)
def test_what_does_not_move_is_told(data: bytes, words: str) -> None:
    """One picture, another kind of file, half a file, a changed byte."""
    with pytest.raises((ValueError, struct.error), match=words):
        look(data)


def test_the_readme_has_one_that_is_readable() -> None:
    """A page on the web is some 850 pixels wide: not much less, and not a film to wait for."""
    (name,) = re.findall(r"^!\[[^]]+\]\((\S+)\)$", read("README.md"), re.MULTILINE)
    file = Path(ROOT, name)
    facts = look(file.read_bytes())
    assert file.stat().st_size < 1_500_000
    assert 800 <= facts.width <= 1400
    assert facts.height < facts.width
    assert 6 <= len(facts.seconds) <= 12
    assert all(seconds >= 1.5 for seconds in facts.seconds), "time to read"
    assert sum(facts.seconds) < 45
    assert facts.plays == 0
