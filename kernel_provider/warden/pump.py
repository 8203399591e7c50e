"""One direction of one connection, a chunk at a time.

What its receiver does not take, a pump keeps, and reads no more until it is taken: a
flood waits with the sender.
"""

import socket
from typing import Final

from kernel_provider.warden.gate import Gate
from kernel_provider.warden.zmtp import Follower

CHUNK: Final = 256 * 1024
ROUND: Final = 4
"""Chunks for one connection before the others get their turn."""


class SinkGoneError(Exception):
    """Whoever a pump writes to reads no more."""


class Pump:
    """One direction: reads ``source``, follows the framing, writes ``sink``.

    While it is ``held`` it reads nothing; ``moved`` counts the bytes that it has read. A
    ``gate`` says what of them is written.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        follower: Follower,
        buffer: bytearray,
        gate: Gate | None = None,
    ) -> None:
        self.source = source
        self.sink = sink
        self.follower = follower
        self.gate = gate
        self.held = False
        self.moved = 0
        self.pending = b""
        self._buffer = memoryview(buffer)

    def run(self, most: int = ROUND * CHUNK) -> bool:
        """Move what can be moved now, ``most`` bytes; False at the end of the stream.

        Raises Violation, and SinkGoneError where nobody takes it.
        """
        if self.pending and not self._send(self.pending):
            return True
        for _ in range(ROUND):
            if self.held or most <= 0:
                return True
            try:
                count = self.source.recv_into(self._buffer[:most])
            except BlockingIOError:
                return True
            except ConnectionError:  # it went without reading all that it was sent
                count = 0
            if not count:
                return False
            most -= count
            self.moved += count
            if not self._send(self._follow(self._buffer[:count])):
                return True
        return True

    @property
    def between(self) -> bool:
        """Whether another message may be written to ``sink``."""
        followed = self.follower if self.gate is None else self.gate
        return followed.between and not self.pending

    def say(self, words: bytes) -> None:
        """Write a message of our own, behind whatever was read and the message under way.

        For pumps with a gate. Raises SinkGoneError.
        """
        assert self.gate is not None
        self._send(self.pending + self.gate.say(words))

    def _follow(self, data: memoryview) -> memoryview | bytes:
        if self.gate is not None:
            return self.gate.take(data)
        self.follower.feed(data)
        return data

    def _send(self, data: memoryview | bytes) -> bool:
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError as error:
            raise SinkGoneError from error
        self.pending = bytes(data[sent:])
        return not self.pending
