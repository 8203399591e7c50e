"""The last words of a kernel: an error output in the cell that was running.

The kernel is dead, and its clients still listen. The warden holds the key and knows
the running request, so it signs what an ordinary kernel would have sent: JupyterLab
shows it in the cell and nbclient saves it. A client that was cut off in the middle of
a message connects anew, and hears them from a publisher that stands in.

Clients of people watch the kernel themselves, and tell its death in their own way. Tools
that run code off the record wait for a reply alone, for as long as they were told to:
they get one, and the word that the cell is over.
"""

import socket
from collections.abc import Callable
from typing import Any, Final

from kernel_provider.warden import zmtp
from kernel_provider.warden.acceptor import Acceptor
from kernel_provider.warden.death import Cause
from kernel_provider.warden.loop import READ, Loop
from kernel_provider.warden.message import signed
from kernel_provider.warden.pair import Pair, Request
from kernel_provider.warden.relay import Relay
from kernel_provider.warden.rendezvous import IOPUB, SHELL

PATIENCE: Final = 0.6
"""Seconds for clients that were cut off to come back; libzmq tries after 0.1."""
FLUSH: Final = 0.05
"""Seconds that a client gets to read what it was sent."""


def compose(cause: Cause, request: Request, key: str) -> bytes:
    """An iopub ``error`` message on the wire, signed, answering ``request``."""
    words = signed("error", _content(cause), parent=request.header, key=key)
    if request.off_record:
        words += signed("status", {"execution_state": "idle"}, parent=request.header, key=key)
    return words


def answer(relay: Relay, cause: Cause, key: str) -> None:
    """Reply to whoever waits for the end of code that runs off the record."""
    content = {"status": "error", **_content(cause)}
    for pair in relay.pairs:
        if pair.channel == SHELL and pair.waiting and pair.waiting[0].off_record:
            parent = pair.waiting[0].header
            _insert(pair, signed("execute_reply", content, parent=parent, key=key, reply=True))


def _insert(pair: Pair, words: bytes) -> bool:
    """Say something between two messages, after the end of what was cut off.

    False for a client that was cut off in the middle of one.
    """
    down = pair.down
    if not down.between:
        return False
    words = (down.gate.rest() if down.gate is not None else b"") + words
    try:
        return bool(down.sink.send(words) == len(words))
    except OSError:
        return False


def _content(cause: Cause) -> dict[str, Any]:
    text = f"{cause.reason} {cause.remedy}"
    return {
        "ename": cause.name,
        "evalue": text,
        "traceback": [f"\x1b[0;31m{cause.name}\x1b[0m: {text}"],
    }


class LastWords:
    """Brings one message to every iopub client, then calls ``done``."""

    def __init__(self, loop: Loop, relay: Relay, words: bytes, done: Callable[[], None]) -> None:
        self._loop = loop
        self.words = words
        self._done: Callable[[], None] | None = done
        self._acceptor: Acceptor | None = None
        self._standing_in: set[_StandIn] = set()
        self._awaited = 0
        for pair in tuple(relay.pairs):
            if pair.channel == IOPUB and pair.subscribed and not _insert(pair, words):
                self._awaited += 1
                pair.close()
        if not self._awaited:
            self._finish()
            return
        self._acceptor = Acceptor(loop, relay.outer(IOPUB), self._stand_in)
        loop.after(PATIENCE, self._finish)

    def _stand_in(self, client: socket.socket) -> None:
        stand_in = _StandIn(self, client)
        self._standing_in.add(stand_in)
        self._loop.watch(client.fileno(), READ, stand_in.hear)
        stand_in.say(zmtp.greeting())

    def heard(self, stand_in: "_StandIn") -> None:
        """One client more has the words, or will never have them."""
        self._loop.forget(stand_in.client.fileno())
        self._awaited -= 1
        if self._awaited <= 0:
            self._loop.after(FLUSH, self._finish)

    def _finish(self) -> None:
        if self._done is None:
            return
        done, self._done = self._done, None
        if self._acceptor is not None:
            self._acceptor.shut()
        for stand_in in self._standing_in:
            self._loop.forget(stand_in.client.fileno())
            stand_in.client.close()
        done()


class _StandIn:
    """A publisher for one client that came back: greets, waits for it to subscribe."""

    def __init__(self, last_words: LastWords, client: socket.socket) -> None:
        self.client = client
        self._last_words = last_words
        self._greeted = False
        self._subscribed = False
        self._follower = zmtp.Follower(zmtp.OF_CLIENTS, self._look)

    def _look(self, index: int, body: bytes) -> None:
        self._subscribed = self._subscribed or zmtp.is_subscription(index, body)

    def say(self, data: bytes) -> bool:
        """Send; false where the client is gone."""
        try:
            return self.client.send(data) == len(data)
        except OSError:
            return False

    def hear(self, _events: int) -> None:
        """Go on with the handshake; when it has subscribed, say the words."""
        try:
            data = self.client.recv(4096)
            self._follower.feed(memoryview(data))
        except BlockingIOError:
            return
        except (OSError, zmtp.Violation):
            data = b""
        if self._follower.greeted and not self._greeted:
            self._greeted = True
            self.say(zmtp.ready(b"XPUB"))
        if self._subscribed:
            self.say(self._last_words.words)
        if self._subscribed or not data:
            self._last_words.heard(self)
