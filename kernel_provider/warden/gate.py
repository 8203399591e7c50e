"""What of a kernel's output reaches one subscriber, message by message (D13).

While there is room, everything passes as it comes; of a message only the size is looked
at, before any of it is passed on. Beyond that the gate is shut: messages are taken apart
and left out, but for those without which a client hangs, and for the last ones, which
come when a request ends. So a cell has start and end of its output, and notes between
them that say what is missing.
"""

from collections import deque
from typing import Final

from kernel_provider.warden.budget import Bucket
from kernel_provider.warden.message import FRAMES, end_of_text, kind_of
from kernel_provider.warden.output import OVERHEAD, Meter, Output
from kernel_provider.warden.zmtp import COMMAND, Follower, frame, frames, message

SMALL: Final = 64 * 1024
"""Bytes of a message that is held until it is whole, and of the end that is kept."""
NEEDED: Final = frozenset({"status", "execute_input", "error", "shutdown_reply"})
"""What clients wait for, or a cell makes no sense without."""
RESERVE: Final = (64 * 1024.0, 1024 * 1024.0)
"""Bytes a second, and at once, that pass a shut gate: an honest kernel says 2 KB of them
for each request, and a hostile one calls them what it likes."""
STREAM: Final = b"stream."
"""How ipykernel's topics of texts begin; what they are is told by the rest."""
REOPENED: Final = 0.25
"""The part of a request's room that must be there again before everything passes."""


class Gate:
    """One subscriber's; ``take`` what the kernel says, and pass on what that gives."""

    def __init__(self, follower: Follower, output: Output) -> None:
        self._follower = follower
        self._output = output
        self._meter = Meter(output)
        self._held = b""  # the beginning of a message that may turn out to be too long
        self._passing = True  # the beginning of what is under way was passed on
        self._room = float(SMALL)  # there was for what is under way, when it began
        self._cut: _Cut | None = None
        self._unsaid = b""

    @property
    def between(self) -> bool:
        """Whether the subscriber has got whole messages only, and may get another."""
        passing = self._cut.passing if self._cut is not None else self._passing
        return self._follower.between or (self._follower.ready and not passing)

    def say(self, words: bytes) -> bytes:
        """Give a message of the relay's own back, or keep it until what is under way ends."""
        if self.between:
            return words
        self._unsaid += words
        return b""

    def take(self, data: memoryview) -> memoryview | bytes:
        """Follow the kernel's next bytes; give the subscriber's. Raises Violation."""
        if not self._follower.ready:
            self._follower.feed(data)
            self._passing = not self._follower.between
            return data
        if not self._unsaid:
            return self._take(data)
        at, passed = self._finish(data)
        if not self.between:
            return passed
        words, self._unsaid = self._unsaid, b""
        return bytes(passed) + words + bytes(self._take(data[at:]))

    def _take(self, data: memoryview) -> memoryview | bytes:
        return self._open(data) if self._cut is None else self._shut(self._cut, data)

    def _finish(self, data: memoryview) -> tuple[int, memoryview | bytes]:
        """Take what is under way to its end: how much that was, and what passes of it."""
        if self._cut is not None:
            at = self._cut.finish(data)
            return at, self._cut.said()
        before = self._follower.messages
        at = self._follower.finish(data)
        return at, self._pass(data[:at], self._follower.messages - before)

    def rest(self) -> bytes:
        """What was kept of the end, for a subscriber that gets nothing else. Once."""
        return self._cut.end() if self._cut is not None else b""

    def _open(self, data: memoryview) -> memoryview | bytes:
        before = self._follower.messages
        self._follower.feed(data)
        return self._pass(data, self._follower.messages - before)

    def _pass(self, data: memoryview, messages: int) -> memoryview | bytes:
        """What passes, now that it was followed; so many messages ended in it."""
        follower = self._follower
        room = self._meter.level()
        left = self._meter.take(size=len(data), messages=messages)
        begun = follower.begun
        if follower.between or begun:
            self._passing = False
        if follower.between or self._passing:
            passed = self._with_held(data)
            if self._passing and follower.size > self._room:
                self._output.end("sent more of it in buffers, which can't be left out")
        elif follower.size > max(room, SMALL):
            passed = self._with_held(data[:begun]) if begun else b""
            lost = bytes(self._with_held(data[begun:]))
            self._cut = _Cut(follower, self._output, lost=lost)
            return bytes(passed) + self._cut.said()
        elif follower.size > SMALL or left < 0:
            passed = self._with_held(data)
            self._passing, self._room = True, max(room, SMALL)
        else:
            passed = self._with_held(data[:begun]) if begun else b""
            self._held += data[begun:]
        if left < 0:
            self._cut = _Cut(follower, self._output, passing=self._passing)
        return passed

    def _with_held(self, data: memoryview) -> memoryview | bytes:
        held, self._held = self._held, b""
        return held + data if held else data

    def _shut(self, cut: "_Cut", data: memoryview) -> bytes:
        lost = cut.lost
        if self._meter.level() < self._output.limits.request * REOPENED:
            cut.take(data)
            if cut.lost > lost:
                self._meter.forfeit(cut.lost - lost)
                self._output.on_left_out(cut.lost)
            return cut.said()
        at = cut.finish(data)
        if not self._follower.between:
            return cut.said()
        self._cut = None
        self._passing = False
        return cut.said() + cut.close() + bytes(self._open(data[at:]))


class _Cut:
    """What is left out, from the moment that a gate is shut until it opens.

    Of the message under way at first, the rest is ``passing``, as its beginning did; or it
    is ``losing`` that, too, after a beginning that was ``lost``. ``lost`` counts bytes.
    """

    def __init__(
        self, follower: Follower, output: Output, *, passing: bool = False, lost: bytes = b""
    ) -> None:
        self.passing = passing
        self.losing = bool(lost)
        self.lost = 0
        self._follower = follower
        self._output = output
        self._reserve = Bucket(*RESERVE, now=output.clock())
        self._out: list[bytes] = []
        self._parts = frames(lost)
        self._kept = sum(map(len, self._parts))
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._untold = 0
        self._announced = False
        follower.keep_ends()
        follower.on_frame = self._frame
        follower.on_message = self._message
        if lost:
            self._announce()

    def said(self) -> bytes:
        """What passes of all that was taken so far."""
        out, self._out = self._out, []
        return b"".join(out)

    def take(self, data: memoryview) -> None:
        """Take apart what comes."""
        at = self.finish(data) if self.passing or self.losing else 0
        if not (self.passing or self.losing):
            self._follower.feed(data[at:])

    def finish(self, data: memoryview) -> int:
        """Take what is under way to its end; how much that was."""
        at = self._follower.finish(data)
        if self.passing:
            self._out.append(bytes(data[:at]))
        if self._follower.between:
            self.passing = self.losing = False
        return at

    def close(self) -> bytes:
        """Let everything pass from now on."""
        self._follower.on_frame = self._follower.on_message = None
        self._follower.keeps_end = False
        return self.end()

    def end(self) -> bytes:
        """The last messages, and a note of how much is missing before them."""
        missing = self._untold - self._tail_size
        self._untold = 0
        tail = b"".join(self._tail)
        self._tail.clear()
        self._tail_size = 0
        if missing <= 0:
            return tail
        what = f"{missing / 2**20:.1f} MB of output were left out here"
        if self._output.interrupted is not None:
            what += ", and the kernel was interrupted"
        return self._output.note(f"{what}.") + tail

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._out.append(
                self._output.note(
                    f"more than {self._output.limits.request / 2**20:g} MB of output; the rest "
                    'is left out, but for its end. Write less, or raise "output_limit" in the '
                    "kernelspec."
                )
            )

    def _frame(self, index: int, body: bytes) -> None:
        if index < 0:
            if not self.passing:
                self._out.append(frame(body, flags=COMMAND))
        elif self._kept <= SMALL:
            self._kept += len(body)
            self._parts.append(body)

    def _message(self, size: int) -> None:
        parts, self._parts, self._kept = self._parts, [], 0
        if self.passing:
            return
        if self.losing or size > SMALL:
            self._leave_out(size, self._end_of(parts))
            return
        wire = message(parts)
        if kind_of(parts) in NEEDED and self._take_reserve(len(wire)):
            if self._take_reserve(self._tail_size, leaving=RESERVE[1] / 2):
                self._out.append(self.end())
            self._out.append(wire)
        else:
            self._leave_out(len(wire), wire)

    def _take_reserve(self, size: int, *, leaving: float = 0.0) -> bool:
        now = self._output.clock()
        enough = self._reserve.level(now=now) - size >= leaving
        if enough:
            self._reserve.take(size, now=now)
        return enough

    def _end_of(self, parts: list[bytes]) -> bytes:
        """The end of a long text, as a message of its own; nothing of anything else."""
        if len(parts) != FRAMES + 1 or not parts[0].startswith(STREAM):
            return b""
        name = parts[0][len(STREAM) :].decode(errors="replace")
        return self._output.text(name, end_of_text(parts[-1][-SMALL // 2 :]))

    def _leave_out(self, size: int, wire: bytes) -> None:
        self._announce()
        self.lost += size + OVERHEAD
        self._untold += size
        if size > SMALL:
            self._tail.clear()  # an end with a hole in it is none
            self._tail_size = 0
        self._tail.append(wire)
        self._tail_size += len(wire)
        while self._tail_size > SMALL:
            self._tail_size -= len(self._tail.popleft())
