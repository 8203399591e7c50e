"""The private folder of a user's sockets, and the names of folders in it."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_provider.errors import RuntimeFolderError, of_runtime_folder
from kernel_provider.warden import cgroup

RUNTIME_VARIABLE: Final = "EXECUTOR_ML_RUNTIME_DIR"
SOCKET_PATH_LIMIT: Final = 107
LONGEST: Final = "/s-4194304-9999999999-ffffff/.c-5"
"""The end of the longest path of a socket: by the highest pid and three years of uptime,
so that a folder that will do for one process does for all."""


def runtime_root(environ: Mapping[str, str]) -> str:
    """Make and check the private folder that all sockets of this user live in.

    Raises RuntimeFolderError where it belongs to somebody else, is open to others, is on
    a full disk, or its path is too long for a socket.
    """
    if environ.get(RUNTIME_VARIABLE):
        root = environ[RUNTIME_VARIABLE]
    elif environ.get("XDG_RUNTIME_DIR"):
        root = f"{environ['XDG_RUNTIME_DIR']}/executor-ml"
    else:
        root = f"/tmp/executor-ml-{os.getuid()}"  # noqa: S108  checked below
    size, most = len(os.fsencode(root)), SOCKET_PATH_LIMIT - len(LONGEST)
    if size > most:
        reason = f"its path has {size} bytes, and {most} are possible"
        raise RuntimeFolderError(path=root, reason=reason)
    with usable(root):
        Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = Path(root).lstat()
    if facts.st_uid != os.getuid():
        raise RuntimeFolderError(path=root, reason="it belongs to another user")
    if facts.st_mode & 0o077 or not Path(root).is_dir() or Path(root).is_symlink():
        raise RuntimeFolderError(path=root, reason="it is open to others, or not a folder")
    return root


@contextmanager
def usable(root: str) -> Iterator[None]:
    """What goes wrong below the folder is told as the folder's: RuntimeFolderError."""
    try:
        yield
    except OSError as error:
        raise of_runtime_folder(root, error) from error


def folder_name(kind: str) -> str:
    """Name a new folder by its kind and its maker: sweeping goes by both."""
    pid = os.getpid()
    return f"{kind}-{pid}-{cgroup.start_time(pid)}-{secrets.token_hex(3)}"
