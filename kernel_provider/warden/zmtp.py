"""ZMTP 3 as seen by somebody in between: where frames and messages begin and end.

A ``Follower`` keeps pace with a byte stream without decoding or holding it, so that
the warden can bound what a hostile kernel sends (D13) and knows when it stands
between two messages. https://rfc.zeromq.org/spec/23/ and /spec/37/
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

GREETING_SIZE: Final = 64
GREETING_KNOWN: Final = {0: b"\xff", 9: b"\x7f\x03", 12: b"NULL".ljust(20, b"\0")}
"""What is not free in a greeting: signature, major version, mechanism. A peer that is
let to speak an older version may hide a frame's head in the rest of it."""
MORE: Final = 0x01
LONG: Final = 0x02
COMMAND: Final = 0x04

CAPTURE: Final = 64 * 1024
"""Bytes of a frame that are kept where frames are looked at; the rest is skipped."""


class Violation(Exception):  # noqa: N818  what it is called in the field
    """The stream broke a limit or the protocol; the text says which."""


@dataclass(frozen=True, kw_only=True)
class FrameLimits:
    """What one stream may do; sizes are bytes."""

    frame: int = 1 << 30
    parts: int = 4096
    message: int = 1 << 30
    command: int = 4096


class Follower:
    """Follows one direction of one connection.

    ``on_frame(index, body)``, where given, is called at the end of each frame with its
    place in its message (-1 for a command) and its first ``CAPTURE`` bytes.
    ``messages`` counts finished messages; ``between`` is true when the stream stands
    after a whole message, where another one may be inserted.
    """

    def __init__(
        self, limits: FrameLimits, on_frame: Callable[[int, bytes], None] | None = None
    ) -> None:
        self.limits = limits
        self.on_frame = on_frame
        self.messages = 0
        self._greeting = b""
        self._broken = False
        self._head = b""
        self._body = 0
        self._flags = 0
        self._parts = 0
        self._size = 0
        self._kept = bytearray()

    @property
    def between(self) -> bool:
        """Whether the handshake is over and no message is under way."""
        settled = not (self._broken or self._head or self._body or self._parts)
        return settled and self._ready

    _ready = False

    @property
    def greeted(self) -> bool:
        """Whether the whole greeting has come: libzmq drops who says READY before."""
        return len(self._greeting) == GREETING_SIZE

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the stream; raise Violation at the first offence."""
        try:
            self._follow(data)
        except Violation:
            self._broken = True
            raise

    def _follow(self, data: memoryview) -> None:
        at, end = self._greet(data), len(data)
        while at < end:
            if self._body:
                step = min(self._body, end - at)
                if self.on_frame is not None and len(self._kept) < CAPTURE:
                    self._kept += data[at : at + min(step, CAPTURE - len(self._kept))]
                self._body -= step
                at += step
                if not self._body:
                    self._end_frame()
                continue
            at = self._read_head(data, at, end)

    def _greet(self, data: memoryview) -> int:
        """Look at what is still missing of the greeting; give its length."""
        missing = GREETING_SIZE - len(self._greeting)
        if not missing:
            return 0
        self._greeting += data[:missing]
        for place, known in GREETING_KNOWN.items():
            found = self._greeting[place : place + len(known)]
            if not known.startswith(found):
                msg = "greeting"
                raise Violation(msg)
        return min(missing, len(data))

    def _read_head(self, data: memoryview, at: int, end: int) -> int:
        """Read flags and length, in one go where they are all there."""
        head = self._head
        flags = head[0] if head else data[at]
        if flags & ~(MORE | LONG | COMMAND):
            msg = "flags"
            raise Violation(msg)
        need = (9 if flags & LONG else 2) - len(head)
        taken = min(need, end - at)
        head += data[at : at + taken]
        if taken < need:
            self._head = head
            return at + taken
        self._head = b""
        self._begin_frame(flags, int.from_bytes(head[1:], "big"))
        return at + taken

    def _begin_frame(self, flags: int, size: int) -> None:
        limits = self.limits
        if flags & COMMAND:
            if size > limits.command or flags & MORE or self._parts:
                msg = "command"
                raise Violation(msg)
        else:
            self._parts += 1
            self._size += size
            if size > limits.frame:
                msg = "frame"
                raise Violation(msg)
            if self._parts > limits.parts:
                msg = "parts"
                raise Violation(msg)
            if self._size > limits.message:
                msg = "message"
                raise Violation(msg)
        self._flags = flags
        self._body = size
        if not size:
            self._end_frame()

    def _end_frame(self) -> None:
        command = bool(self._flags & COMMAND)
        if self.on_frame is not None:
            self.on_frame(-1 if command else self._parts - 1, bytes(self._kept))
            self._kept.clear()
        if command:
            self._ready = True
        elif not self._flags & MORE:
            self.messages += 1
            self._parts = 0
            self._size = 0


def frame(body: bytes, *, flags: int = 0) -> bytes:
    """One frame on the wire."""
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def message(parts: list[bytes]) -> bytes:
    """One message on the wire."""
    *front, last = parts
    return b"".join([frame(part, flags=MORE) for part in front]) + frame(last)


def greeting() -> bytes:
    """What a peer without encryption says first."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(socket_type: bytes) -> bytes:
    """End our half of the handshake."""
    name = b"Socket-Type"
    properties = bytes([len(name)]) + name + len(socket_type).to_bytes(4, "big") + socket_type
    return frame(b"\x05READY" + properties, flags=COMMAND)


def is_subscription(index: int, body: bytes) -> bool:
    """Whether a frame from a subscriber subscribes it to something (3.0 and 3.1)."""
    if index < 0:
        return body.startswith(b"\x09SUBSCRIBE")
    return index == 0 and body.startswith(b"\x01")
