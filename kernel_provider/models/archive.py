"""Models in one file, for a machine that none can be downloaded to.

A plain tar archive: ``entries/`` with what each model is, then ``blobs/`` with each
content once. It is read front to back, and whoever wrote it: a name that is not expected,
a digest that is not its content's, anything but plain files ends the import, and nothing
was added then.
"""

import errno
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NoReturn

from kernel_provider.models.add import Counter
from kernel_provider.models.entry import Entry, parse_entry
from kernel_provider.models.errors import (
    ArchiveError,
    ArchiveMissingError,
    ArchiveWriteError,
    ModelAlteredError,
    ModelRefusedError,
)
from kernel_provider.models.store import CHUNK, Registry, seal
from kernel_provider.models.weights import is_pickle
from kernel_provider.steps import Note

ENTRY_LIMIT: Final = 4 << 20
_BLOB: Final = re.compile(r"blobs/([0-9a-f]{64})")


class _Reader:
    """A file that is read once, and digested and counted meanwhile."""

    def __init__(self, file: IO[bytes], counter: Counter) -> None:
        self._file = file
        self._counter = counter
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, for tarfile and for copying."""
        data = self._file.read(size)
        self.digest.update(data)
        self._counter(len(data))
        return data


def export(registry: Registry, entries: Sequence[Entry], file: Path, note: Note) -> None:
    """Write models to ``file``; what was there is replaced, once the new one is whole.

    Raises ModelAlteredError for a content that is not what was added, ArchiveWriteError.
    """
    blobs = {blob.sha256: (entry, blob) for entry in entries for blob in entry.files}
    counter = Counter(note, sum(blob.size for _, blob in blobs.values()))
    if file.is_dir():  # some of those have no name that a part's could be made from
        raise ArchiveWriteError(file=str(file), reason="it is a folder")
    half = file.with_name(f".{file.name}.part")
    try:
        with tarfile.open(half, "w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                text = entry.to_json().encode()
                tar.addfile(_member(f"entries/{entry.file_name}", len(text)), io.BytesIO(text))
            for digest, (entry, blob) in blobs.items():
                path = registry.snapshot(entry) / blob.path
                with path.open("rb") as content:
                    reader = _Reader(content, counter)
                    tar.addfile(_member(f"blobs/{digest}", blob.size), reader)
                if reader.digest.hexdigest() != digest:
                    reason = "has another content than was added"
                    raise ModelAlteredError(model=entry.label, file=str(path), reason=reason)
        half.rename(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveWriteError(file=str(file), reason=reason) from error
    finally:
        half.unlink(missing_ok=True)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o444
    return member


def bring_in(
    registry: Registry, file: Path, note: Note, *, replace: bool = False
) -> tuple[Entry, ...]:
    """Add the models of an archive, once all of it was checked; what is there stays.

    Gives all that the archive has. Raises ArchiveError, ArchiveMissingError, and
    ModelRefusedError where one of that name and revision is there with another content and
    is not to be replaced.
    """
    with registry.changing() as work:
        arriving = _Arriving(file, work)
        with _reading(file):
            counter = Counter(note, file.stat().st_size)
            with tarfile.open(str(file), "r|") as tar:
                for member in tar:
                    arriving.take(tar, member, counter)
        arriving.check()
        there = {entry.label: entry for entry in registry.list()}
        for entry in arriving.entries:
            if entry.label in there and there[entry.label].view != entry.view and not replace:
                reason = "another one of that name and revision is there"
                remedy = "add --replace to put the archive's in its place"
                raise ModelRefusedError(model=entry.label, reason=reason, remedy=remedy)
        for entry in arriving.entries:
            registry.publish(work, entry, arriving.staged)
    return tuple(arriving.entries)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Tell what is wrong with an archive as that, and not as the registry's fault."""
    try:
        yield
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ArchiveError(file=str(file), reason=f"{error}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT} or error.filename not in {None, str(file)}:
            raise
        reason = error.strerror or str(error)
        raise ArchiveMissingError(file=str(file), reason=reason) from error


class _Arriving:
    """What has come out of an archive so far; nothing is in the registry yet."""

    def __init__(self, file: Path, work: Path) -> None:
        self.entries: list[Entry] = []
        self.staged: dict[str, Path] = {}
        self._file = file
        self._work = work
        self._wanted: dict[str, int] = {}

    def take(self, tar: tarfile.TarFile, member: tarfile.TarInfo, counter: Counter) -> None:
        """Take one member; raises ArchiveError for any that export does not write."""
        content = tar.extractfile(member) if member.type == tarfile.REGTYPE else None
        if content is None or member.issparse():
            self._refuse(f"{member.name!r} is no plain file")
        elif blob := _BLOB.fullmatch(member.name):
            self._take_blob(blob[1], member.size, _Reader(content, counter))
        elif member.name.startswith("entries/") and member.size <= ENTRY_LIMIT:
            self._take_entry(member.name, content.read())
        else:
            self._refuse(f"{member.name!r} is no part of a model")

    def _take_entry(self, name: str, data: bytes) -> None:
        try:
            entry = parse_entry(data.decode())
        except ValueError as error:
            self._refuse(f"{name}: {error}")
        names = {f"entries/{known.file_name}" for known in self.entries}
        if name != f"entries/{entry.file_name}" or name in names or self.staged:
            self._refuse(f"{name!r} is not where it belongs")
        self.entries.append(entry)
        self._wanted |= {file.sha256: file.size for file in entry.files}

    def _take_blob(self, digest: str, size: int, reader: _Reader) -> None:
        if self._wanted.get(digest) != size or digest in self.staged:
            self._refuse(f"blobs/{digest} is no part of its models")
        target = self._work / f"file-{len(self.staged)}"
        with target.open("xb") as file:
            while chunk := reader.read(CHUNK):
                file.write(chunk)
        seal(target)
        if reader.digest.hexdigest() != digest:
            self._refuse(f"blobs/{digest} has another content than its name says")
        self.staged[digest] = target

    def check(self) -> None:
        """See that it was all there, and that none of it would run code."""
        if not self.entries:
            self._refuse("there are no models in it")
        for entry in self.entries:
            for file in entry.files:
                path = self.staged.get(file.sha256)
                if path is None or path.stat().st_size != file.size:
                    self._refuse(f"{file.path} of {entry.label} is missing")
                if is_pickle(file.path, path):
                    self._refuse(f"{file.path} of {entry.label} is a pickle")

    def _refuse(self, reason: str) -> NoReturn:
        raise ArchiveError(file=str(self._file), reason=reason)
