"""The shelf: parked sandboxes that anybody of this user may claim, each once.

An entry is a file in the private runtime folder, named after what the sandbox was made
for and after its warden's folder. Taking one is removing its file: of many processes
that know nothing of each other, one succeeds. No entry is proof that its sandbox lives;
a taker finds out by connecting.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

PREFIX: Final = "p"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A parked sandbox.

    ``folder`` is its warden's, ``digest`` names what it was made for, ``memory`` is its
    limit in bytes, ``since`` and ``until`` are seconds of the monotonic clock, which all
    processes share, and ``keeper`` is the pid of the process that it ends with, 0 for one
    that stays until its time is over.
    """

    folder: str
    digest: str
    kernel: str
    container: str
    pid: int
    memory: int
    since: float
    until: float
    keeper: int


def put(entry: Entry) -> None:
    """Lay a parked sandbox on the shelf; raise OSError where that can't be."""
    path = _path(entry.folder, entry.digest)
    scratch = f"{entry.folder}/entry"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(asdict(entry), file)
    os.rename(scratch, path)


def is_empty(root: str) -> bool:
    """Whether nothing lies there, whatever it was made for."""
    return not _names(root)


def take(root: str, digest: str) -> str | None:
    """Take one that was made for ``digest``; give its warden's folder, None for none.

    The one that has waited longest goes first. Nobody else gets it from now on.
    """
    names = [name for name in _names(root) if name.split(".")[1] == digest]
    for name in sorted(names, key=lambda name: _age(f"{root}/{name}")):
        if _remove(f"{root}/{name}"):
            return f"{root}/{name.split('.')[2]}"
    return None


def withdraw(folder: str, digest: str) -> bool:
    """Take a certain one off the shelf; false where somebody has."""
    return _remove(_path(folder, digest))


def entries(root: str) -> tuple[Entry, ...]:
    """All that lie there, whatever they were made for."""
    found = []
    for name in _names(root):
        with suppress(OSError, ValueError, TypeError), open(f"{root}/{name}", "rb") as file:
            found.append(Entry(**json.load(file)))
    return tuple(sorted(found, key=lambda entry: entry.since))


def sweep(root: str) -> None:
    """Remove entries whose warden's folder is gone: those of wardens that were killed."""
    for name in _names(root):
        if not os.path.isdir(f"{root}/{name.split('.')[2]}"):
            _remove(f"{root}/{name}")


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _path(folder: str, digest: str) -> str:
    root, name = os.path.split(folder)
    return f"{root}/{PREFIX}.{digest}.{name}"


def _names(root: str) -> list[str]:
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(f"{PREFIX}.") and name.count(".") == 2]


def _age(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
