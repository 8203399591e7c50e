"""What a cell hears that meets a limit of the sandbox: which one, and what to do about it.

Python and its libraries pass on what the system told them: a worker is gone, a thread
can't start, a device is full. The control group counts what was killed or refused, so the
traceback, or the cell itself where nothing was raised, ends with the name of the limit.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUP = "/sys/fs/cgroup"

ROOMS = {"/tmp": "tmp_size", "/dev/shm": "shm_size"}  # noqa: S108  the sandbox's own
"""The only places to write, and the settings that say how large they are."""

DEEP = 10
"""How many exceptions of a chain are looked at."""

MIB = 1024 * 1024


class Group:
    """The sandbox's control group, of version 1 or 2, as it is seen from inside."""

    def __init__(self, root: str = CGROUP) -> None:
        if os.path.isdir(f"{root}/memory"):
            self._memory = f"{root}/memory/memory.limit_in_bytes"
            self._kills = f"{root}/memory/memory.oom_control"
            pids = f"{root}/pids"
        else:
            self._memory = f"{root}/memory.max"
            self._kills = f"{root}/memory.events"
            pids = root
        self._pids = f"{pids}/pids.max"
        self._refusals = f"{pids}/pids.events"

    def memory(self) -> str:
        """The limit, as it stands before "of memory"."""
        text = _read(self._memory)
        return f"{int(text) / MIB:g} MB" if text.isdecimal() else "limit"

    def pids(self) -> str:
        """The limit, as it stands before "processes"."""
        return _read(self._pids) or "so many"

    def counts(self) -> tuple[int, int]:
        """How many processes were killed for memory so far, and how many refused."""
        return _field(_read(self._kills), "oom_kill"), _field(_read(self._refusals), "max")


class Limits:
    """Watches the counters from cell to cell; tells of each event once."""

    def __init__(self, kernel: str = "", *, group: Group | None = None) -> None:
        """Count from now on; ``kernel`` names the kernelspec that has the settings."""
        self._group = group or Group()
        self._where = f"kernelspec {kernel}" if kernel else "the kernelspec"
        self._counts = self._group.counts()

    def hint(self, error: BaseException | None) -> str:
        """What the limits have to say to an exception; empty where that is nothing."""
        told = self._events()
        if any(_lacks_room(one) for one in _chain(error)):
            told.append(self._room([place for one in _chain(error) for place in _places(one)]))
        if not told and any(_lacks_memory(one) for one in _chain(error)):
            told.append(
                f"MemoryLimitExceeded: the sandbox has {self._group.memory()} of memory. "
                f'Load less at once, or raise "memory" in {self._where}.'
            )
        return " ".join(told)

    def note(self, _result: Any = None) -> None:
        """After a cell: tell in it what no exception of its own has told."""
        for line in self._events():
            sys.stderr.write(f"Note: {line}\n")

    def _events(self) -> list[str]:
        """What was counted since this was last asked."""
        (killed, refused), self._counts = self._counts, self._group.counts()
        told = []
        if self._counts[0] > killed:
            told.append(
                "MemoryLimitExceeded: a process that the kernel had started was killed, since "
                f"the sandbox used more than its {self._group.memory()} of memory. The kernel "
                f'lives on. Take fewer workers, load less at once, or raise "memory" in '
                f"{self._where}."
            )
        if self._counts[1] > refused:
            told.append(
                f"PidsLimitExceeded: the sandbox has room for {self._group.pids()} processes "
                "and threads, and one more was refused. Take fewer workers or threads, or "
                f'raise "pids" in {self._where}.'
            )
        return told

    def _room(self, named: list[str]) -> str:
        """Which place is full: one that was named, else what is found to be so."""
        places = named[:1] or [place for place in ROOMS if _is_full(place)] or list(ROOMS)
        if len(places) == 1:
            (place,) = places
            if _files_left(place) == 0:
                return (
                    f"DiskLimitExceeded: {place} is full: it has room for "
                    f"{os.statvfs(place).f_files} files. Remove what is not needed."
                )
            what = f"{place} is full: it has room for {_size(place)}"
            setting = f'"{ROOMS[place]}"'
        else:
            rooms = " and ".join(f"{place} for {_size(place)}" for place in places)
            what = f"there is no more room: {rooms}"
            setting = " or ".join(f'"{ROOMS[place]}"' for place in places)
        return (
            f"DiskLimitExceeded: {what}. Remove what is not needed, or raise {setting} in "
            f'{self._where}; it is part of "memory".'
        )


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it came from, and so on."""
    for _ in range(DEEP):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _lacks_memory(error: BaseException) -> bool:
    """Whether more was asked for at once than the system would ever give."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def _lacks_room(error: BaseException) -> bool:
    """Whether a write failed for want of room; native code says so in words only.

    A worker that writes to shared memory without room is killed by SIGBUS, and PyTorch
    tells that as the signal's name.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  a notebook's own class may raise anything here
        return False
    return os.strerror(errno.ENOSPC) in text or "Bus error" in text


def _places(error: BaseException) -> list[str]:
    """The place that an exception names by its file, if it names one."""
    name = getattr(error, "filename", None)
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    return [place for place in ROOMS if os.path.abspath(path).startswith(f"{place}/") and path]


def _is_full(place: str) -> bool:
    try:
        facts = os.statvfs(place)
    except OSError:
        return False
    return facts.f_bavail == 0 or facts.f_favail == 0


def _files_left(place: str) -> int:
    try:
        return os.statvfs(place).f_favail
    except OSError:
        return -1


def _size(place: str) -> str:
    try:
        facts = os.statvfs(place)
    except OSError:
        return "nothing"
    return f"{facts.f_blocks * facts.f_frsize / MIB:g} MB"
