"""Who waits for the end of a cell in the place of a client that left.

Whoever reloads a page in a browser leaves, and the kernel's answer to what still runs goes
to nobody. So the kernel is asked something small, on a connection of the warden's own: it
answers that when it has done what came before.
"""

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kernel_provider.warden.loop import READ
from kernel_provider.warden.message import question
from kernel_provider.warden.rendezvous import SHELL
from kernel_provider.warden.zmtp import Follower, Violation, greeting, ready

if TYPE_CHECKING:
    from kernel_provider.warden.pair import Pair
    from kernel_provider.warden.relay import Relay

AGAIN: Final = 1.0
"""Seconds until a kernel that hung up is asked again."""


class Successor:
    """A client that asks one question; ``pair`` is its connection, ``name`` the question's id.

    It hears nothing but that the kernel is there: the answer is seen on its way. ``close``
    it then; until that it asks again where the kernel hangs up.
    """

    def __init__(self, relay: "Relay", key: str) -> None:
        self._relay = relay
        self._key = key
        self._over = False
        self.name = os.urandom(16).hex()
        self.pair: Pair
        self._connect()

    def close(self) -> None:
        """Ask no more. Twice is fine."""
        self._over = True
        self._hang_up()

    def _connect(self) -> None:
        if self._over:
            return
        self._socket, far = socket.socketpair()
        for side in (self._socket, far):
            side.setblocking(False)  # noqa: FBT003
        self._follower = Follower(self._relay.limits)
        self._steps = [ready(b"DEALER"), question("kernel_info_request", self.name, key=self._key)]
        self._relay.loop.watch(self._socket.fileno(), READ, self._hear)
        self._socket.send(greeting())
        self.pair = self._relay.join(SHELL, far)

    def _hear(self, _events: int) -> None:
        """Go on with the handshake; then ask."""
        try:
            data = self._socket.recv(65536)
            self._follower.feed(memoryview(data))
        except BlockingIOError:
            return
        except (OSError, Violation):
            data = b""
        if not data:
            self._hang_up()
            self._relay.loop.after(AGAIN, self._connect)
            return
        self._go_on()

    def _go_on(self) -> None:
        """Say READY to who has greeted, and ask who is ready."""
        wanted = self._follower.greeted + self._follower.ready
        with suppress(OSError):  # it has hung up, which is heard
            while 2 - len(self._steps) < wanted:
                self._socket.send(self._steps.pop(0))

    def _hang_up(self) -> None:
        if self._socket.fileno() >= 0:
            self._relay.loop.forget(self._socket.fileno())
            self._socket.close()
