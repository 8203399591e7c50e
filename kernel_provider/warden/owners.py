"""Connections of owners: the claim, other wishes, and the lifeline.

Whoever holds a connection keeps the sandbox alive. It is watched twice, by the
connection's end and by the process itself (pidfd), because a forked child that
inherited the connection would keep it open (D3).
"""

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kernel_provider.warden.acceptor import Acceptor
from kernel_provider.warden.loop import READ, Loop
from kernel_provider.warden.rendezvous import CHANNELS, peer

if TYPE_CHECKING:
    from kernel_provider.warden.wishes import Wish

LINE: Final = 1 << 20
"""Bytes of one wish at most; owners are our own user, and mistakes happen."""


class Owner:
    """One connection; says lines, hears lines, and may bring descriptors once.

    Those are the outer sockets and, if there is one, the copy of the notebook's folder.
    It ``holds`` the sandbox once its claim, or its key, was accepted.
    """

    def __init__(self, owners: "Owners", connection: socket.socket) -> None:
        self.connection = connection
        self.descriptors: list[int] = []
        self._owners = owners
        self._buffer = b""
        self.holds = False
        self._pidfd = -1
        self.pid, _ = peer(connection)
        owners.loop.watch(connection.fileno(), READ, self._hear)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # its claim, if it sent one, is heard first
            owners.loop.after(0, self._bury)
        except OSError:  # a process of another pid namespace has no number here
            pass
        if self._pidfd >= 0:
            owners.loop.watch(self._pidfd, READ, lambda _: self.close())

    def say(self, event: Mapping[str, Any]) -> None:
        """Send one line; an owner that is gone or does not read is dropped."""
        line = json.dumps(event).encode() + b"\n"
        try:
            heard = self.connection.send(line) == len(line)
        except OSError:
            heard = False
        if not heard:
            self.close()

    def close(self) -> None:
        """Let go of this owner. Twice is fine."""
        if self.connection.fileno() < 0:
            return
        self._owners.loop.forget(self.connection.fileno())
        self.connection.close()
        if self._pidfd >= 0:
            self._owners.loop.forget(self._pidfd)
            os.close(self._pidfd)
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        self._owners.drop(self)

    def _bury(self) -> None:
        self._hear(0)
        self.close()

    def _hear(self, _events: int) -> None:
        from kernel_provider.warden.wishes import parse_wish  # noqa: PLC0415  nobody waits now

        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, 65536, len(CHANNELS) + 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self.descriptors += descriptors
        self._buffer += data
        if not data or len(self._buffer) > LINE:
            self.close()
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                wish = parse_wish(line)
            except ValueError:  # a mistake costs the one who makes it
                self.close()
                return
            self._owners.on_wish(self, wish)


class Owners:
    """All owners; ``on_none`` is called when the last that holds the sandbox goes."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        on_wish: "Callable[[Owner, Wish], None]",
        on_none: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.on_wish = on_wish
        self._on_none = on_none
        self._all: list[Owner] = []
        Acceptor(loop, listener, self._welcome)

    def _welcome(self, connection: socket.socket) -> None:
        if peer(connection)[1] != os.getuid():
            connection.close()
            return
        self._all.append(Owner(self, connection))

    def murmur(self, event: Mapping[str, Any]) -> None:
        """Tell all of them from another thread: whoever does not hear it stays."""
        line = json.dumps(event).encode() + b"\n"
        for owner in tuple(self._all):
            with suppress(OSError):
                owner.connection.send(line)

    def drop(self, owner: Owner) -> None:
        """Forget an owner that closed."""
        if owner in self._all:
            self._all.remove(owner)
            if owner.holds and not any(other.holds for other in self._all):
                self._on_none()

    def say(self, event: Mapping[str, Any]) -> None:
        """Tell all of them."""
        for owner in tuple(self._all):
            owner.say(event)
