# ruff: noqa: INP001  copied into a build stage as single files
"""Cut symbol tables and debug data off the ends of shared libraries.

    strip_symbols.py FOLDER BEGUN

What ``strip --strip-unneeded`` does, for a build stage that has no binutils: sections
that are not loaded into memory, and that lie behind all that is, go; the others stay
byte for byte. A library that is laid out in another way is left as it is, and so is one
that is older than the file BEGUN: it belongs to a layer below. NVIDIA's libraries stay as
they are: they carry programs for GPUs, and what little there is to gain was tried on none.
https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
MAGIC_64_LITTLE = b"\x7fELF\x02\x01"
PT_NOTHING, SHT_NULL, SHT_NOBITS, SHF_ALLOC = 0, 0, 8, 2
SHOFF, SHENTSIZE, SHNUM, SHSTRNDX = 6, 11, 12, 13


@dataclass(frozen=True, kw_only=True)
class Section:
    """One entry of the section header table."""

    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int

    def packed(self) -> bytes:
        """The entry as it stands in a file."""
        return SECTION.pack(
            self.name, self.type, self.flags, self.addr, self.offset, self.size,
            self.link, self.info, self.align, self.entsize,
        )  # fmt: skip


def stripped(data: bytes) -> bytes | None:
    """``data`` of a shared library without its tail; None if there is nothing to gain."""
    if not data.startswith(MAGIC_64_LITTLE) or len(data) < HEADER.size:
        return None
    header = list(HEADER.unpack_from(data))
    sections = read_sections(data, header)
    if not sections or header[SHSTRNDX] >= len(sections):
        return None
    names = sections[header[SHSTRNDX]]
    end = end_of_loaded(data, header, sections)
    end += -end % 8
    tail = [s for s in sections if s.type not in (SHT_NULL, SHT_NOBITS) and s.offset >= end]
    if names not in tail or sum(s.size for s in tail if s is not names) < 1 << 16:
        return None
    text = data[names.offset : names.offset + names.size]
    text += b"\0" * (-len(text) % 8)
    header[SHOFF] = end + len(text)
    table = b"".join(
        (
            replace(s, offset=end).packed()
            if s is names
            else bytes(SECTION.size)
            if s in tail
            else s.packed()
        )
        for s in sections
    )
    body = data[HEADER.size : end].ljust(end - HEADER.size, b"\0")
    return HEADER.pack(*header) + body + text + table


def read_sections(data: bytes, header: list[int]) -> list[Section]:
    """The section header table; empty if the file has none that can be read."""
    start, count = header[SHOFF], header[SHNUM]
    if header[SHENTSIZE] != SECTION.size or start + count * SECTION.size > len(data):
        return []
    fields = Section.__dataclass_fields__
    rows = SECTION.iter_unpack(data[start : start + count * SECTION.size])
    return [Section(**dict(zip(fields, row, strict=True))) for row in rows]


def end_of_loaded(data: bytes, header: list[int], sections: list[Section]) -> int:
    """The first byte behind all that a program header or a loaded section covers."""
    start, size, count = header[5], header[9], header[10]
    ends = [HEADER.size, start + size * count]
    for index in range(count):
        _, _, offset, _, _, length, _, _ = PROGRAM.unpack_from(data, start + size * index)
        ends.append(offset + length)
    loaded = [s for s in sections if s.flags & SHF_ALLOC and s.type != SHT_NOBITS]
    return max([*ends, *(s.offset + s.size for s in loaded)])


def libraries(folder: Path, begun: int) -> Iterator[Path]:
    """Those that are no older (ns) and not NVIDIA's."""
    for path in sorted(folder.rglob("*.so*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_mtime_ns < begun:
            continue
        if "nvidia" not in path.relative_to(folder).parts:
            yield path


def main() -> None:
    """Strip all new libraries under the folder that the command line names."""
    saved = 0
    begun = Path(sys.argv[2]).stat().st_mtime_ns
    for path in libraries(Path(sys.argv[1]), begun):
        data = path.read_bytes()
        less = stripped(data)
        if less is not None:
            mode = path.stat().st_mode
            beside = path.with_name(path.name + ".stripped")
            beside.write_bytes(less)
            beside.chmod(mode)
            beside.replace(path)
            saved += len(data) - len(less)
    print(f"removed {saved / 1e6:7.1f} MB  symbol tables of shared libraries")  # noqa: T201


if __name__ == "__main__":
    main()
