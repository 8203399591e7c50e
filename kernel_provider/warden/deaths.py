"""Kernels that died of late: a small file in the private runtime folder.

Wardens write it and ``executor-ml ps`` reads it. It holds so many deaths of so long a
time, and nothing that was not told to the kernel's owner as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from typing import Final

FILE: Final = "deaths"
MOST: Final = 32
KEPT: Final = 24 * 3600.0
"""Seconds."""
PATIENCE: Final = 0.2
"""Seconds for others who are writing: an end waits for nobody."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A kernel that died unasked; sizes are bytes, ``at`` is seconds of the epoch.

    ``kernel`` names its kernelspec and ``policy`` the digest of its settings; ``owner``
    is the process that had it.
    """

    container: str
    uid: int
    kernel: str
    policy: str
    owner: int
    name: str
    reason: str
    remedy: str
    exit_code: int
    memory_peak: int
    memory_limit: int
    pids_limit: int
    at: float


_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    **{field.name: str if field.type == "str" else int for field in fields(Record)},
    "at": (int, float),
}


def note(root: str, record: Record) -> None:
    """Add one, and drop those that are old or too many. Raises OSError."""
    descriptor = os.open(f"{root}/{FILE}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        _lock(file.fileno())
        kept = [*_parse(file.read(), record.at), record][-MOST:]
        file.seek(0)
        file.truncate()
        file.writelines(json.dumps(asdict(one)) + "\n" for one in kept)


def recent(root: str) -> tuple[Record, ...]:
    """Those of the last day, the latest last; what can't be read is none."""
    try:
        with open(f"{root}/{FILE}", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return ()
    return tuple(_parse(text, time.time())[-MOST:])


def _parse(text: str, now: float) -> list[Record]:
    found = []
    for line in text.splitlines():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):  # another version's, or cut off by a full disk
            continue
        values = asdict(record)
        if all(isinstance(values[name], kind) for name, kind in _TYPES.items()):
            found.append(record)
    return [record for record in found if abs(now - record.at) < KEPT]


def _lock(descriptor: int) -> None:
    """Be the only writer; raises OSError where another one takes too long."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
