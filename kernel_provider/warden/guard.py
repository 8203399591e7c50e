"""What a kernel may say beside its messages: one READY, then a keep-alive now and then.

A libzmq client that is told the wrong socket type, an error, or what it can't read gives
up that connection for good, without a word to whoever uses it. So none of it is let
through. https://rfc.zeromq.org/spec/37/
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from kernel_provider.warden.budget import Bucket
from kernel_provider.warden.zmtp import Violation

TYPES: Final = {
    "shell": (b"ROUTER",),
    "iopub": (b"XPUB", b"PUB"),
    "stdin": (b"ROUTER",),
    "control": (b"ROUTER",),
    "hb": (b"ROUTER", b"REP"),
}
"""Socket types that Jupyter's clients can talk to."""

KEEP_ALIVES: Final = {b"\x04PING": range(7, 24), b"\x04PONG": range(5, 22)}
"""Commands after READY, and how long they may be. Subscriptions come from clients only."""
COMMANDS: Final = (20.0, 100.0)
"""A second, and at once, on each connection; clients ask for one a second or fewer."""

_READY: Final = b"\x05READY"


class KernelCommands:
    """Judges the commands of one connection; raises Violation at the first offence."""

    def __init__(self, channel: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._types = TYPES[channel]
        self._clock = clock
        self._ready = False
        self._rate = Bucket(*COMMANDS, now=clock())

    def __call__(self, body: bytes) -> None:
        """Look at the next command."""
        if not self._ready:
            self._ready = True
            self._check_ready(body)
            return
        if len(body) not in KEEP_ALIVES.get(body[:5], ()):
            msg = "a command that is not a kernel's to give"
            raise Violation(msg)
        now = self._clock()
        self._rate.take(1, now=now)
        if self._rate.wait(now=now):
            msg = "more commands than keep a connection alive"
            raise Violation(msg)

    def _check_ready(self, body: bytes) -> None:
        if not body.startswith(_READY):
            msg = "another command than READY at first"
            raise Violation(msg)
        types = [
            value for name, value in _properties(body[len(_READY) :]) if name == b"socket-type"
        ]
        if len(types) != 1 or types[0] not in self._types:
            msg = f"a socket that is not of type {self._types[0].decode()}"
            raise Violation(msg)


def _properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names, in lower case, and values; they fill ``data`` exactly."""
    while data:
        name, data = _split(data, 1)
        value, data = _split(data, 4)
        yield name.lower(), value


def _split(data: bytes, width: int) -> tuple[bytes, bytes]:
    """Take one value with its length of ``width`` bytes before it."""
    end = width + int.from_bytes(data[:width], "big")
    if len(data) < max(width, end):
        msg = "a READY that can't be read"
        raise Violation(msg)
    return data[width:end], data[end:]
