"""The file itself: a plain tar, so that ``tar`` can open it and nothing is read twice.

Members are written as they come, without a second copy on the disk; the manifest with
their digests is therefore the last but one. Standard library only.
"""

import hashlib
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Final, Self

from kernel_provider.bundle.errors import (
    BundleDamagedError,
    BundleFormatError,
    NoBundleError,
)
from kernel_provider.bundle.model import (
    FORMAT,
    INSTALLER,
    MANIFEST,
    SEAL,
    Manifest,
    Member,
    read_format,
    read_manifest,
)

CHUNK: Final = 1 << 20


class Sink:
    """One member while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add to it."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Digest of what was written so far."""
        return self._digest.hexdigest()


class Writer:
    """Writes members to a file that can seek, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []

    @property
    def members(self) -> tuple[Member, ...]:
        """All that are complete."""
        return tuple(self._members)

    @contextmanager
    def member(self, name: str) -> Iterator[Sink]:
        """A member of a size that is known only when the body ends."""
        start = self._file.tell()
        self._file.write(_header(name, 0))
        sink = Sink(self._file)
        yield sink
        self._file.write(bytes(-sink.size % tarfile.BLOCKSIZE))
        end = self._file.tell()
        self._file.seek(start)
        self._file.write(_header(name, sink.size))
        self._file.seek(end)
        self._members.append(Member(name=name, size=sink.size, sha256=sink.sha256))

    def add(self, name: str, content: bytes) -> None:
        """A member that is there already."""
        with self.member(name) as sink:
            sink.write(content)

    def close(self, manifest: Manifest) -> None:
        """Write the manifest, its seal and the end; the file itself stays open."""
        content = manifest.to_json().encode()
        self.add(MANIFEST, content)
        self.add(SEAL, _seal(content))
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    """As long for every size."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = int(time.time())
    return info.tobuf(tarfile.GNU_FORMAT)


def _seal(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


class Reader:
    """A bundle that is whole as far as its table of contents tells; a context manager.

    What a member holds is believed only after ``verify``, which ``read`` does by itself.
    """

    def __init__(self, path: Path) -> None:
        """Open it and read its manifest.

        Raises:
            NoBundleError, BundleDamagedError, BundleFormatError: as it is.
        """
        self.path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115  closed with the reader
        except OSError as error:
            raise NoBundleError(path=path, reason=error.strerror or error) from error
        except tarfile.TarError as error:
            raise NoBundleError(path=path, reason="it is no tar file, or empty") from error
        try:
            self._index = self._contents()
            self.manifest = self._read_manifest()
            self._compare()
        except BaseException:
            self._tar.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()

    def open(self, name: str) -> IO[bytes]:
        """A member's content, as a file."""
        file = self._tar.extractfile(self._index[name])
        assert file is not None  # noqa: S101  only regular files are in the index
        return file

    def verify(self, name: str, say: Callable[[int], None] = lambda _: None) -> None:
        """Compare a member with its digest, telling how many bytes were read.

        Raises:
            BundleDamagedError: it is not what was packed; names it.
        """
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                say(file.tell())
        if digest.hexdigest() != self.manifest.member(name).sha256:
            raise self._damaged(name, reason="was altered")

    def read(self, name: str) -> bytes:
        """A member's content, verified."""
        self.verify(name)
        with self.open(name) as file:
            return file.read()

    def extract(self, prefix: str, folder: Path) -> list[Path]:
        """Write the verified members below ``prefix`` into ``folder``, by their last names."""
        made = []
        for name in sorted(self._index):
            if name.startswith(prefix):
                path = folder / name.rpartition("/")[2]
                path.write_bytes(self.read(name))
                made.append(path)
        return made

    def _damaged(self, name: str, *, reason: str) -> BundleDamagedError:
        return BundleDamagedError(path=self.path, member=name, reason=reason)

    def _contents(self) -> Mapping[str, tarfile.TarInfo]:
        """Every member by its name, and all of it inside the file."""
        length = self.path.stat().st_size
        index: dict[str, tarfile.TarInfo] = {}
        last = ""
        while True:
            try:
                info = self._tar.next()
            except tarfile.TarError:
                info = None
            if info is None:
                break
            last = info.name
            if not info.isreg() or last in index:
                raise NoBundleError(path=self.path, reason=f"{last} is nothing that it may hold")
            if info.offset_data + info.size > length:
                raise self._damaged(last, reason="is cut short")
            index[last] = info
        if not {MANIFEST, SEAL} <= set(index):
            if next(iter(index), "") != INSTALLER:
                raise NoBundleError(path=self.path, reason="it has no manifest")
            raise self._damaged(last, reason="is the last that can be read")
        return index

    def _read_manifest(self) -> Manifest:
        with self.open(MANIFEST) as file, self.open(SEAL) as seal:
            content = file.read()
            sealed = seal.read() == _seal(content)
        if not sealed:
            raise self._damaged(MANIFEST, reason="was altered")
        try:
            found = read_format(content.decode())
            if found != FORMAT:
                raise BundleFormatError(path=self.path, found=found, expected=FORMAT)
            return read_manifest(content.decode())
        except (ValueError, KeyError, TypeError) as error:
            raise NoBundleError(path=self.path, reason=f"its manifest is none: {error}") from error

    def _compare(self) -> None:
        """See that there is what the manifest names, and nothing else."""
        named = {member.name: member.size for member in self.manifest.members}
        there = {name: info.size for name, info in self._index.items()}
        del there[MANIFEST], there[SEAL]
        for name in sorted(named.keys() | there.keys()):
            if name not in there:
                raise self._damaged(name, reason="is missing")
            if name not in named:
                raise self._damaged(name, reason="was added to it")
            if named[name] != there[name]:
                raise self._damaged(name, reason="has another size")
        for name in self.manifest.promised():
            if name not in named:
                raise self._damaged(name, reason="is missing")
