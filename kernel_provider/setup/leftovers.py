"""Mounts that a killed engine leaves on its folders, found and taken off.

An engine binds its data folder onto itself and takes that off only when it ends in
peace; until then the folder cannot be removed. Standard library only.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

MNT_DETACH: Final = 2


def engine_mounts(mountinfo: str, folder: str) -> list[str]:
    """Mount points of an engine on or below ``folder``, the innermost first.

    ``mountinfo`` is the text of /proc/self/mountinfo (proc(5)). On ``folder`` itself only
    a bind of that very folder counts: a disk that somebody mounted there stays.
    """
    found = []
    known: dict[str, tuple[str, str, str]] = {}
    for line in mountinfo.splitlines():
        number, parent, device, root, point = (_unescaped(word) for word in line.split()[:5])
        known[number] = device, root, point
        below = point.startswith(f"{folder}/")
        if below or (point == folder and _is_itself(known[number], known.get(parent))):
            found.append(point)
    return found[::-1]


def _is_itself(mount: tuple[str, str, str], parent: tuple[str, str, str] | None) -> bool:
    """Whether a mount shows what lies below it anyway: same device, same folder there."""
    if parent is None or mount[0] != parent[0]:
        return False
    place = os.path.relpath(mount[2], parent[2])
    return os.path.normpath(os.path.join(parent[1], place)) == mount[1]  # noqa: PTH118  text


def take_off(folder: Path) -> None:
    """Unmount them; what the system refuses stays, and the next engine will tell."""
    resolved = os.path.realpath(folder)
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    libc = ctypes.CDLL(None, use_errno=True)
    for point in engine_mounts(mountinfo, resolved):
        libc.umount2(os.fsencode(point), MNT_DETACH)


def _unescaped(word: str) -> str:
    """Blanks, tabs, line ends and backslashes are octal there."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        word = word.replace(f"\\{code}", character)
    return word
