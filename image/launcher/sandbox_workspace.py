"""The notebook's folder in a sandbox: its copy unpacked, or its absence told where it hurts.

A claim may bring the copy as a tar in sealed memory. It is unpacked here, in the kernel's
process, before the first message is served: by the sandbox's own uid, into its own
``/tmp``, within its own limits.
"""

from __future__ import annotations

import os
import sys
from typing import Any

NOT_UNPACKED = 74
"""Exit code that tells the warden what went wrong."""

ELSEWHERE = ("/home/", "/root/", "/Users/", "/mnt/", "/media/", "/srv/", "/content/", "/kaggle/")
"""Where people's files lie on machines that are no sandbox; and ``/data`` without a mount."""

NOT_HERE = (
    "the sandbox does not see the notebook's folder. A copy of it comes with the setting "
    "workspace: copy (executor-ml install --workspace copy, or run --workspace copy); "
    "for large data there is the setting mounts."
)
NOT_COPIED = (
    "the sandbox has a copy of the notebook's own folder, and nothing from outside of it; "
    "for data that lies elsewhere there is the setting mounts."
)


def take(descriptor: int, folder: str) -> None:
    """Unpack the copy; where it does not fit, say so in the log, and end."""
    try:
        unpack(descriptor, folder)
    except (OSError, ValueError, EOFError) as error:
        log = getattr(sys.stderr, "_original_stdstream_copy", 2)
        os.write(log, f"{getattr(error, 'strerror', None) or error}\n".encode(errors="replace"))
        os._exit(NOT_UNPACKED)


def unpack(descriptor: int, folder: str) -> None:
    """Unpack the tar behind ``descriptor`` into ``folder``, and close it.

    Links are made when all else is there, so that nothing is written through one. Raises
    OSError, ValueError or EOFError.
    """
    import tarfile  # noqa: PLC0415  not on the path of a start without a copy

    with open(descriptor, "rb") as file:
        file.seek(0)  # the place in the file is everybody's who held it
        with tarfile.open(fileobj=file, mode="r:") as tar:
            links = []
            for member in tar:
                if member.issym():
                    links.append(member)
                else:
                    _make(tar, member, _inside(folder, member.name))
            for member in links:
                os.symlink(member.linkname, _inside(folder, member.name))


def _inside(folder: str, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        msg = f"{name} leads out of the folder"
        raise ValueError(msg)
    return f"{folder}/{name}"


def _make(tar: Any, member: Any, path: str) -> None:
    """Make one folder or file; anything else is no part of a copy."""
    if member.isdir():
        os.makedirs(path, exist_ok=True)
    elif member.isreg():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(path, "xb", opener=lambda p, _: os.open(p, flags, member.mode & 0o777)) as file:
            source = tar.extractfile(member)
            while data := source.read(1 << 20):
                file.write(data)
        os.utime(path, (member.mtime, member.mtime))
    else:
        msg = f"{member.name} is neither a file nor a folder nor a link"
        raise ValueError(msg)


def hint(error: BaseException | None, *, copied: bool) -> str:
    """One line for a person who misses a file; empty where it would be of no help."""
    if not isinstance(error, FileNotFoundError) or _is_program(error):
        return ""
    name = error.filename
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    if not path:
        return ""
    home = os.environ.get("HOME", "/tmp/home") + "/"  # noqa: S108  where ~ leads, which is empty
    outside = path.startswith((*ELSEWHERE, home, "~", "../")) or (
        path.startswith("/data/") and not os.path.isdir("/data")
    )
    if copied:
        return NOT_COPIED if outside else ""
    return NOT_HERE if outside or not path.startswith("/") else ""


def _is_program(error: BaseException) -> bool:
    """Whether a program was looked for, and not a file."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name, trace = trace.tb_frame.f_code.co_name, trace.tb_next
    return name == "_execute_child"
