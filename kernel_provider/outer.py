"""The outer sockets of one kernel: where its clients connect, whatever sandbox is behind.

Bound once, they outlive the sandboxes: clients stay, or wait in the backlog for the
next. They go to a warden, a process of this machine, and never into a sandbox.
"""

import os
import shutil
import socket
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from kernel_provider.warden.rendezvous import BACKLOG, CHANNELS

NUMBERS: Final = range(1, len(CHANNELS) + 1)


class Outer:
    """Five bound sockets, in the order of the channels.

    ``folder`` holds those that Jupyter finds by their paths, and is theirs alone; it is
    empty where a client said itself where they are to be: at ``paths``, in the same
    order, unless they are ports.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket] = (),
        *,
        folder: str = "",
        paths: Sequence[str] = (),
    ) -> None:
        self.listeners = list(listeners)
        self.folder = folder
        self._paths = tuple(paths)
        weakref.finalize(self, _close, self.listeners, folder, self._paths, os.getpid())

    @classmethod
    def below(cls, folder: str) -> "Outer":
        """Bind them in a new folder; all of them, or nothing is left. Raises OSError."""
        made = cls(folder=folder)
        Path(folder).mkdir(mode=0o700)
        made._bind()
        return made

    @property
    def ip(self) -> str:
        """What Jupyter calls ``ip`` for ipc: the sockets are ``ip-1`` to ``ip-5``."""
        return f"{self.folder}/c"

    def _bind(self) -> None:
        try:
            for number in NUMBERS:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.listeners.append(listener)
                listener.bind(f"{self.folder}/.c-{number}")
                listener.listen(BACKLOG)
                os.link(f"{self.folder}/.c-{number}", f"{self.ip}-{number}")
        except BaseException:
            self.close()
            raise

    def restore_paths(self) -> None:
        """Put the sockets' names back, which Jupyter removes on each restart. Raises OSError."""
        for number in NUMBERS:
            with suppress(FileExistsError):
                os.link(f"{self.folder}/.c-{number}", f"{self.ip}-{number}")

    def take_over(self) -> None:
        """Bind anew what another process bound: clients find their way by the paths."""
        for path in Path(self.folder).glob("*c-*"):
            path.unlink()
        self._bind()

    def close(self) -> None:
        """Close what was bound here, and remove its paths. Twice is fine."""
        _close(self.listeners, self.folder, self._paths, os.getpid())


def _close(listeners: list[socket.socket], folder: str, paths: Sequence[str], maker: int) -> None:
    """Close sockets and remove their paths, unless they are another process's.

    It happens when a session ends, or is forgotten: Jupyter drops a kernel whose restart
    has failed without a word. A forked child that forgets it harms nobody.
    """
    if not listeners or os.getpid() != maker:
        return
    for path, _ in zip(paths, listeners, strict=False):  # those that were bound
        Path(path).unlink(missing_ok=True)
    for listener in listeners:
        listener.close()
    listeners.clear()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
