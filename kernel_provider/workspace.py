"""The notebook's folder as a copy for a sandbox: a tar in sealed memory.

The folder itself is never mounted, and the engine carries no file of it (D8). The copy is
made here, with this process's own rights, and goes with the claim, as one descriptor more,
from hand to hand: session, warden, guardian, kernel. Each closes its own, and the kernel
unpacks it before it serves. A descriptor, because bytes over the connections would pile
up in the two watchers, who have 15 MB each. It is sound, because the copy

- is sealed before it leaves: nobody can write, grow, shrink or map it writable, and the
  seals stay; what leaves is open for reading only, and by ``/proc/self/fd`` no other uid
  can open it again or hang anything on it;
- is memory without a name: unlike a socket or a folder's descriptor, it leads nowhere;
- counts as this process's memory until the last hand has closed it; what is unpacked
  counts as the sandbox's, whose limits hold.
"""

import fcntl
import heapq
import os
import stat
import tarfile
import weakref
from contextlib import suppress
from typing import BinaryIO, Final, NoReturn

from kernel_provider.errors import WorkspaceError
from kernel_provider.values import MIB

ENTRIES: Final = 10_000
"""Files and folders that a copy may have; a sandbox's ``/tmp`` holds 16,384."""

DEPTH: Final = 32
"""Folders within folders."""

PAGE: Final = 4096
"""In a sandbox's ``/tmp`` a file takes whole pages, and so they are counted."""

SKIPPED: Final = ("__pycache__", "node_modules")
"""Left out without a word, as are hidden files and folders, and virtual environments."""

ENVIRONMENT: Final = "pyvenv.cfg"
"""A folder with this file in it is a virtual environment."""

LONGEST: Final = 200
"""Characters of a path in an error."""

NAMED: Final = 20
"""Names that a log's line has at most."""

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Workspace:
    """A sealed copy, closed by ``close``, or when nobody holds this object any more.

    ``folder`` tells what it is a copy of, ``size`` its bytes as a sandbox counts them.
    ``left_out`` names what a person could miss: links that lead out of the folder, and
    what is no file or cannot be read.
    """

    def __init__(self, descriptor: int, folder: str, packer: "_Packer") -> None:
        self.folder = _printable(folder)
        self.files = len(packer.sizes)
        self.size = packer.size
        self.left_out = tuple(_printable(name) for name in sorted(packer.left_out))
        self._descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)

    def fileno(self) -> int:
        """The descriptor, which stays this object's."""
        return self._descriptor

    def __str__(self) -> str:
        text = f"{self.files} files ({_shown(self.size)}) of {self.folder}"
        if not self.left_out:
            return text
        more = len(self.left_out) - NAMED
        names = ", ".join(self.left_out[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{text}; left out: {names}"


def copy_folder(folder: str, *, limit: int) -> Workspace:
    """Copy ``folder``, or the working directory for ""; blocks, up to seconds.

    ``limit`` is in bytes. Raises WorkspaceError where there is more than that, too many
    files, or no folder that can be read.
    """
    try:
        folder = os.path.abspath(folder)  # noqa: PTH100  links in it stay as they were given
        memory = os.memfd_create("workspace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(memory, "wb") as file:
            packer = _pack(folder, limit, file)
            file.flush()
            os.fchmod(memory, 0o400)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        return Workspace(reader, folder, packer)
    except OSError as error:
        raise WorkspaceError(
            folder=_printable(folder) or ".",
            reason=_printable(error.strerror or str(error)),
            remedy="start the kernel in a folder that you can read, or set workspace to none",
        ) from error


def _pack(folder: str, limit: int, file: BinaryIO) -> "_Packer":
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            packer = _Packer(tar, folder, limit)
            packer.add_all(top, "")
    finally:
        os.close(top)
    if packer.size > limit:
        largest = heapq.nlargest(3, packer.sizes)
        told = ", ".join(f"{_printable(name)} ({_shown(size)})" for size, name in largest)
        raise WorkspaceError(
            folder=_printable(folder),
            reason=f"its {len(packer.sizes)} files take {_shown(packer.size)}, and workspace_size "
            f"is {_shown(limit)}; the largest: {told}",
            remedy="move large files to another folder and add that to mounts, or raise "
            "workspace_size, which is part of tmp_size and memory",
        )
    return packer


class _Packer:
    """Goes through a folder by descriptors: what is swapped for a link meanwhile stays out."""

    def __init__(self, tar: tarfile.TarFile, folder: str, limit: int) -> None:
        self.sizes: list[tuple[int, str]] = []
        self.size = 0
        self.left_out: list[str] = []
        self._tar = tar
        self._folder = folder
        self._limit = limit
        self._entries = 0

    def add_all(self, descriptor: int, path: str) -> None:
        """Add what is in the folder behind ``descriptor``; ``path`` ends with a slash."""
        if path.count("/") > DEPTH:
            self._refuse(f"its folders are nested more than {DEPTH} deep")
        with os.scandir(descriptor) as entries:
            found = [entry for entry in entries if self._is_wanted(entry.name)]
        for entry in found:
            if entry.is_symlink():
                self._add_link(descriptor, entry.name, path + entry.name)
            elif entry.is_dir() or entry.is_file():
                self._add(descriptor, entry.name, path + entry.name)
            else:
                self.left_out.append(path + entry.name)

    def _is_wanted(self, name: str) -> bool:
        if name.startswith(".") or name in SKIPPED:
            return False
        self._entries += 1
        if self._entries > ENTRIES:
            self._refuse(f"it has more than {ENTRIES} files and folders")
        return True

    def _refuse(self, reason: str) -> NoReturn:
        raise WorkspaceError(
            folder=_printable(self._folder),
            reason=reason,
            remedy="give the notebook a folder of its own, and add data to mounts",
        )

    def _add_link(self, folder: int, name: str, path: str) -> None:
        try:
            target = os.readlink(name, dir_fd=folder)
        except OSError:  # it is something else by now
            target = "/"
        end = os.path.normpath(f"{path}/../{target}")
        if target.startswith("/") or end == ".." or end.startswith("../"):
            self.left_out.append(path)
            return
        info = tarfile.TarInfo(path)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(info)

    def _add(self, folder: int, name: str, path: str) -> None:
        try:
            descriptor = os.open(name, _OPEN, dir_fd=folder)
        except OSError:  # it may not be read, or is not there any more
            self.left_out.append(path)
            return
        try:
            facts = os.fstat(descriptor)
            info = tarfile.TarInfo(path)
            info.mode, info.mtime = facts.st_mode & 0o755 | 0o600, int(facts.st_mtime)
            if stat.S_ISDIR(facts.st_mode):
                self._add_folder(info, descriptor)
            elif stat.S_ISREG(facts.st_mode):
                info.size = facts.st_size
                self._add_file(info, descriptor)
            else:
                self.left_out.append(path)
        finally:
            os.close(descriptor)

    def _add_folder(self, info: tarfile.TarInfo, descriptor: int) -> None:
        with suppress(OSError):
            os.stat(ENVIRONMENT, dir_fd=descriptor)
            return
        info.type = tarfile.DIRTYPE
        self._tar.addfile(info)
        self.add_all(descriptor, f"{info.name}/")

    def _add_file(self, info: tarfile.TarInfo, descriptor: int) -> None:
        """Add exactly the bytes that the file has now; beyond the limit, count it only."""
        self.sizes.append((info.size, info.name))
        self.size += -(-info.size // PAGE) * PAGE
        if self.size > self._limit:
            return
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            try:
                self._tar.addfile(info, file)
            except OSError as error:
                raise OSError(error.errno, f"{info.name}: {error.strerror or error}") from error


def _printable(text: str) -> str:
    """A name as an error may show it; some of Jupyter's logs double per cent signs."""
    plain = "".join(c if c.isprintable() and c != "%" else "?" for c in text)
    return plain if len(plain) <= LONGEST else f"...{plain[-LONGEST:]}"


def _shown(size: int) -> str:
    return f"{size / MIB:.1f} MB" if size >= MIB // 10 else f"{size} bytes"
