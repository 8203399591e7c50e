"""Taking connections from a listener, also on a machine that has run out of descriptors."""

import socket
from collections.abc import Callable
from typing import Final

from kernel_provider.warden.loop import READ, Loop, Timer

AGAIN: Final = 0.1
"""Seconds until a connection that could not be taken is tried again."""


class Acceptor:
    """Hands each new connection, not blocking, to ``take``, from now on until shut.

    The listener stays its maker's to close, after ``shut``.
    """

    def __init__(
        self, loop: Loop, listener: socket.socket, take: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._take = take
        self._again: Timer | None = None
        listener.setblocking(False)  # noqa: FBT003
        self.open()

    def open(self) -> None:
        """Take connections again. Twice is fine."""
        self._loop.watch(self._listener.fileno(), READ, self._accept)

    def shut(self) -> None:
        """Leave whoever comes in the backlog. Twice is fine."""
        if self._again is not None:
            self._again.cancel()
        self._loop.forget(self._listener.fileno())

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is free: the listener stays ready, so look away
            self.shut()
            self._again = self._loop.after(AGAIN, self.open)
            return
        connection.setblocking(False)  # noqa: FBT003
        self._take(connection)
