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
    """The stream broke a limit or the protocol; the text says which.

    ``setting`` names the setting that allows for more, if there is one.
    """

    def __init__(self, text: str, *, setting: str = "") -> None:
        self.setting = setting
        super().__init__(text)


@dataclass(frozen=True, kw_only=True)
class FrameLimits:
    """What one stream may do; sizes are bytes.

    A peer holds a whole message before anybody sees it. What people make is one print
    of 100 MB, or an image of 90 MB, which is 120 MB in JSON: browsers don't show more.
    A message is six parts and a topic, and one more for each buffer of a widget, of
    which dashboards have hundreds. A READY is shorter than 300 bytes. ``least_parts`` is
    what a message has where fewer make no sense. ``handshake`` is how many seconds the
    kernel has for its half, from a client's first byte; whoever has the clock looks at it.
    ``of_message`` names the setting that ``message`` comes from, if one does.
    """

    message: int = 128 << 20
    parts: int = 1024
    command: int = 512
    least_parts: int = 1
    handshake: float = 10.0
    of_message: str = "message_size"


OF_CLIENTS: Final = FrameLimits(message=1 << 30, parts=4096, command=4096)
"""Whoever holds the key may send a kernel what fits into it."""


class Follower:
    """Follows one direction of one connection.

    ``on_frame(index, body)``, where given, is called at the end of each frame with its
    place in its message (-1 for a command) and its first ``CAPTURE`` bytes, or, where it
    ``keeps_end``, its last ones; ``on_piece(index, data)`` with all of its bytes before that;
    ``on_command(body)`` for commands alone, and may raise Violation; ``on_message(size)``
    at the end of each message while there is an ``on_frame``.
    ``messages`` counts finished messages; ``ready`` is true after the first command,
    which ends the handshake; ``between`` when the stream stands after a whole message,
    where another one may be inserted. Of the message under way, ``parts`` and ``size`` are
    what was told of it, sizes of frames still to come included, and ``begun`` is its place
    in the bytes that were fed last: 0 where it began before them.
    """

    def __init__(
        self,
        limits: FrameLimits,
        on_frame: Callable[[int, bytes], None] | None = None,
        on_command: Callable[[bytes], None] | None = None,
    ) -> None:
        self.limits = limits
        self.on_frame = on_frame
        self.on_command = on_command
        self.on_message: Callable[[int], None] | None = None
        self.on_piece: Callable[[int, memoryview], None] | None = None
        self.keeps_end = False
        self.messages = 0
        self.ready = False
        self.parts = 0
        self.size = 0
        self.begun = 0
        self._greeting = b""
        self._broken = False
        self._head = b""
        self._body = 0
        self._flags = 0
        self._keeps = False
        self._kept = bytearray()

    @property
    def between(self) -> bool:
        """Whether the handshake is over and no message is under way."""
        return not self._broken and self.ready and self._settled

    @property
    def _settled(self) -> bool:
        return not (self.parts or self._body or self._head)

    @property
    def greeted(self) -> bool:
        """Whether the whole greeting has come: libzmq drops who says READY before."""
        return len(self._greeting) == GREETING_SIZE

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the stream; raise Violation at the first offence."""
        self._take(data, once=False)

    def finish(self, data: memoryview) -> int:
        """Take the rest of the message or command under way, and give its length.

        That is 0 between two of them. Raises Violation.
        """
        return 0 if self._settled else self._take(data, once=True)

    def _take(self, data: memoryview, *, once: bool) -> int:
        try:
            return self._follow(data, once=once)
        except Violation:
            self._broken = True
            raise

    def _follow(self, data: memoryview, *, once: bool) -> int:
        """Follow to the end of the data, or ``once`` to that of what is under way."""
        at, end = self._greet(data), len(data)
        self.begun = 0
        while at < end:
            if self._settled:
                self.begun = at
                if once and at:
                    return at
            if self._body:
                step = min(self._body, end - at)
                if self._keeps:
                    self._keep(data[at : at + step])
                self._body -= step
                at += step
                if not self._body:
                    self._end_frame()
                continue
            if self.ready and self.on_frame is None and not self._head and not once:
                at = self._pass_short(data, at, end)
            if at < end:
                at = self._read_head(data, at, end)
        return at

    def keep_ends(self) -> None:
        """Keep the ends of frames from now on, of the one under way as well."""
        self.keeps_end = self._keeps = True

    def _keep(self, data: memoryview) -> None:
        if self.on_piece is not None:
            self.on_piece(self.parts - 1, data)
        kept = self._kept
        if self.keeps_end:
            kept += data[-CAPTURE:]
            del kept[:-CAPTURE]
        elif len(kept) < CAPTURE:
            kept += data[: CAPTURE - len(kept)]

    def _pass_short(self, data: memoryview, at: int, end: int) -> int:
        """Pass short frames of messages that have come whole, and that nobody looks at.

        Six times as quick as one by one: most of what kernels say is made of them, and
        they are what floods a warden. What breaks a limit is left to be told there.
        """
        parts, size = self.parts, self.size
        most_parts, most_size = self.limits.parts, self.limits.message
        front = self.limits.least_parts - 1
        while at + 1 < end:
            flags, body = data[at], data[at + 1]
            after = at + 2 + body
            if flags > MORE or after > end or parts >= most_parts or size + body > most_size:
                break
            if flags:
                parts += 1
                size += body
            elif parts < front:
                break
            else:
                self.messages += 1
                parts = size = 0
                self.begun = after
            at = after
        self.parts, self.size = parts, size
        return at

    def _greet(self, data: memoryview) -> int:
        """Look at what is still missing of the greeting; give its length."""
        missing = GREETING_SIZE - len(self._greeting)
        if not missing:
            return 0
        self._greeting += data[:missing]
        for place, known in GREETING_KNOWN.items():
            found = self._greeting[place : place + len(known)]
            if not known.startswith(found):
                msg = "a greeting other than ZMTP 3's"
                raise Violation(msg)
        return min(missing, len(data))

    def _read_head(self, data: memoryview, at: int, end: int) -> int:
        """Read flags and length, in one go where they are all there."""
        head = self._head
        flags = head[0] if head else data[at]
        if flags & ~(MORE | LONG | COMMAND):
            msg = "a frame with unknown flags"
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
        command = bool(flags & COMMAND)
        if command:
            if size > self.limits.command:
                msg = f"a command of more than {self.limits.command} bytes"
                raise Violation(msg, setting="command_size")
            if flags & MORE or self.parts:
                msg = "a command within a message"
                raise Violation(msg)
        else:
            self.parts += 1
            self.size += size
            self._check_message()
        self._flags = flags
        self._body = size
        self._keeps = self.on_frame is not None or (command and self.on_command is not None)
        if not size:
            self._end_frame()

    def _check_message(self) -> None:
        limits = self.limits
        if not self.ready:
            msg = "a message before the end of the handshake"
            raise Violation(msg)
        if self.parts > limits.parts:
            msg = f"a message of more than {limits.parts} parts"
            raise Violation(msg, setting="message_parts")
        if self.size > limits.message:
            msg = f"a message of more than {limits.message / 2**20:g} MiB"
            raise Violation(msg, setting=limits.of_message)

    def _end_frame(self) -> None:
        command = bool(self._flags & COMMAND)
        body = bytes(self._kept)
        self._kept.clear()
        if command and self.on_command is not None:
            self.on_command(body)
        if self.on_frame is not None:
            self.on_frame(-1 if command else self.parts - 1, body)
        if command:
            self.ready = True
        elif not self._flags & MORE:
            self._end_message()

    def _end_message(self) -> None:
        if self.parts < self.limits.least_parts:
            msg = f"a message of fewer than {self.limits.least_parts} parts"
            raise Violation(msg)
        size = self.size
        self.messages += 1
        self.parts = self.size = 0
        if self.on_message is not None:
            self.on_message(size)


def frame(body: bytes, *, flags: int = 0) -> bytes:
    """One frame on the wire."""
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def message(parts: list[bytes]) -> bytes:
    """One message on the wire."""
    *front, last = parts
    return b"".join([frame(part, flags=MORE) for part in front]) + frame(last)


def frames(data: bytes) -> list[bytes]:
    """The bodies of all frames that are whole, where one begins with the data."""
    bodies, at = [], 0
    while at < len(data):
        body = at + (9 if data[at] & LONG else 2)
        at = body + int.from_bytes(data[at + 1 : body], "big")
        if body <= at <= len(data):
            bodies.append(data[body:at])
    return bodies


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
