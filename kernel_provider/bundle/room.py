"""Room on disks, looked at before anything is written. Standard library only."""

import shutil
from pathlib import Path

from kernel_provider.bundle.errors import NoRoomError


def need_room(what: str, folder: Path, needed: float) -> None:
    """Raise NoRoomError if ``what`` takes more bytes than the disk of ``folder`` has free.

    A disk that can't be seen from here is left to whoever writes to it.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return
    if free < needed:
        raise NoRoomError(
            what=what, needed=round(needed / 1e6), folder=there, free=round(free / 1e6)
        )
