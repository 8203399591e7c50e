"""The relay between clients' sockets (outer) and the sandbox's (inner), D13.

One client connection, one connection to the kernel, two pumps between them. A pump
holds one chunk at most and stops reading while its receiver is slow, so a flood waits
in the sandbox and not here, and a client that does not read holds up nobody else.
"""

import json
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from kernel_provider.warden.loop import ENDED, READ, WRITE, Loop, Timer
from kernel_provider.warden.pump import CHUNK, Pump, SinkGoneError
from kernel_provider.warden.rendezvous import CHANNELS, CONTROL, IOPUB, SHELL
from kernel_provider.warden.zmtp import Follower, FrameLimits, Violation, is_subscription

RETRY: Final = 0.01
HOLD: Final = 1.0
"""Seconds that requests wait, at the most, for subscribers to come back after a restart.

A client is back when its own process gets to run: with 0.3 s, on a machine with more to
do than processors, 1 of 45 first outputs was lost. Only one that left waits so long.
"""
ORPHANED: Final = 2.0
"""Seconds that a client stays connected after the kernel hung up on it."""

_HEADER_PART: Final = 2
"""Jupyter's wire: delimiter, signature, header, parent, metadata, content."""


@dataclass(kw_only=True)
class Request:
    """A request on its way; ``header`` is the client's own JSON."""

    header: bytes
    kind: str
    number: int


class Pair:
    """A client's connection and its counterpart in the sandbox."""

    def __init__(self, relay: "Relay", channel: int, client: socket.socket) -> None:
        self.relay = relay
        self.channel = channel
        self.client = client
        self.kernel: socket.socket | None = None
        self.subscribed = False
        self.waiting: deque[Request] = deque()
        self._header: bytes = b""
        self._replies = 0
        self._retry: Timer | None = None

    def connect(self) -> None:
        """Reach the kernel's socket; a full backlog is tried again."""
        try:
            self.kernel = self.relay.connect(self.channel)
        except BlockingIOError:
            self._retry = self.relay.loop.after(RETRY, self.connect)
            return
        except OSError:
            self.close()
            return
        limits, buffer = self.relay.limits, self.relay.buffer
        looks = self._look if self.channel in (SHELL, IOPUB, CONTROL) else None
        self.up = Pump(self.client, self.kernel, Follower(limits, looks), buffer)
        self.down = Pump(self.kernel, self.client, Follower(limits), buffer)
        self.up.held = self.relay.holding and self.channel in (SHELL, CONTROL)
        self._watch()

    def _watch(self) -> None:
        """Ask for what can be made use of, and nothing else."""
        assert self.kernel is not None
        up, down = self.up, self.down
        reads = not up.pending and not up.held
        client = (READ if reads else 0) | (WRITE if down.pending else 0)
        kernel = (0 if down.pending else READ) | (WRITE if up.pending else 0)
        for side, events, handler in (
            (self.client, client, self._on_client),
            (self.kernel, kernel, self._on_kernel),
        ):
            if events:
                self.relay.loop.watch(side.fileno(), events, handler)
            else:  # a hang-up is reported whatever was asked for: don't spin on it
                self.relay.loop.forget(side.fileno())

    def _on_client(self, events: int) -> None:
        self._step(up=bool(events & (READ | ENDED)), down=bool(events & WRITE))

    def _on_kernel(self, events: int) -> None:
        self._step(up=bool(events & WRITE), down=bool(events & (READ | ENDED)))

    def _step(self, *, up: bool, down: bool) -> None:
        before = self._state()
        if (down and not self._run_down()) or (up and not self._run_up()):
            return
        if before != self._state():
            self._watch()

    def _state(self) -> tuple[bool, bool, bool]:
        return bool(self.up.pending), bool(self.down.pending), self.up.held

    def _run_down(self) -> bool:
        """From the kernel: who breaks the framing here ends the kernel."""
        try:
            alive = self.down.run()
        except Violation as offence:
            # still among the pairs: its client is to hear of it
            self.relay.on_violation(CHANNELS[self.channel], str(offence))
            self.close()
            return False
        except SinkGoneError:
            self.close()
            return False
        if self.channel == SHELL:
            self._count_replies()
        if not alive:
            self._orphan()
        return alive

    def _run_up(self) -> bool:
        """From the client: who breaks the framing here loses this connection only."""
        try:
            alive = self.up.run()
        except Violation:
            alive = False
        except SinkGoneError:  # what the kernel said before it went is still to come
            self.up.pending = b""
            self.up.held = True
            return True
        if not alive:
            self.close()
        return alive

    def _orphan(self) -> None:
        """The kernel hung up: it is dying, most likely, and last words are to come."""
        assert self.kernel is not None
        for side in (self.client, self.kernel):
            self.relay.loop.forget(side.fileno())
        self.kernel.close()
        self._retry = self.relay.loop.after(ORPHANED, self.close)

    def release(self) -> None:
        """Let held requests through."""
        if self.kernel is not None and self.kernel.fileno() >= 0 and self.up.held:
            self.up.held = False
            self._watch()

    def close(self) -> None:
        """Drop both sides. Twice is fine."""
        if self._retry is not None:
            self._retry.cancel()
        for side in (self.client, self.kernel):
            if side is not None and side.fileno() >= 0:
                self.relay.loop.forget(side.fileno())
                side.close()
        self.relay.pairs.discard(self)

    def _look(self, index: int, body: bytes) -> None:
        """See frames from a client: subscriptions, and the headers of requests."""
        if self.channel == IOPUB:
            if is_subscription(index, body) and not self.subscribed:
                self.subscribed = True
                self.relay.on_subscribed()
        elif index == _HEADER_PART:
            self._note(body)

    def _note(self, header: bytes) -> None:
        try:
            kind = json.loads(header)["msg_type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if kind == "shutdown_request":
            self.relay.shutdown_requested = True
        elif self.channel == SHELL and isinstance(kind, str) and kind.endswith("_request"):
            self.relay.requests += 1
            self.waiting.append(Request(header=header, kind=kind, number=self.relay.requests))

    def _count_replies(self) -> None:
        """A kernel answers each connection's requests in their order, one reply each."""
        replies = self.down.follower.messages
        if replies == self._replies:
            return
        for _ in range(replies - self._replies):
            if self.waiting:
                self.waiting.popleft()
        self._replies = replies
        self.relay.on_answer()


class Relay:
    """All connections of one sandbox.

    ``connect(channel)`` reaches the sandbox; ``on_violation(channel, what)`` is called
    at most once for each connection that broke the rules, which is closed by then;
    ``on_answer()`` whenever the kernel is done with a request.
    """

    def __init__(
        self,
        loop: Loop,
        connect: Callable[[int], socket.socket],
        on_violation: Callable[[str, str], None],
        limits: FrameLimits,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.on_answer = on_answer
        self.connect = connect
        self.on_violation = on_violation
        self.limits = limits
        self.buffer = bytearray(CHUNK)
        self.pairs: set[Pair] = set()
        self.requests = 0
        self.shutdown_requested = False
        self.holding = False
        self._awaited = 0
        self._outer: list[socket.socket] = []

    def open(self, outer: list[socket.socket], *, subscribers: int) -> None:
        """Serve the outer listeners.

        After a restart ``subscribers`` iopub clients are expected back: shell and
        control wait for them, or the first output would be lost.
        """
        self._outer = outer
        self._awaited = subscribers
        if subscribers:
            self.holding = True
            self.loop.after(HOLD, self._release)
        for channel, listener in enumerate(outer):
            listener.setblocking(False)  # noqa: FBT003
            self.loop.watch(listener.fileno(), READ, partial(self._accept, channel))

    def outer(self, channel: int) -> socket.socket:
        """Give the listener that clients of ``channel`` connect to."""
        return self._outer[channel]

    def subscribers(self) -> int:
        """How many iopub clients are connected and subscribed."""
        return sum(pair.subscribed for pair in self.pairs)

    def running(self) -> Request | None:
        """The oldest request that the kernel has not answered."""
        heads = [pair.waiting[0] for pair in self.pairs if pair.waiting]
        return min(heads, key=lambda request: request.number, default=None)

    def on_subscribed(self) -> None:
        """One of those that were awaited is back."""
        if self.holding and self.subscribers() >= self._awaited:
            self.loop.after(0, self._release)

    def _release(self) -> None:
        self.holding = False
        for pair in tuple(self.pairs):
            pair.release()

    def _accept(self, channel: int, _events: int) -> None:
        while True:
            try:
                client, _ = self._outer[channel].accept()
            except BlockingIOError:
                return
            client.setblocking(False)  # noqa: FBT003
            pair = Pair(self, channel, client)
            self.pairs.add(pair)
            pair.connect()

    def close_listeners(self) -> None:
        """Leave new connections in the backlog, for the next warden."""
        for listener in self._outer:
            self.loop.forget(listener.fileno())

    def close(self) -> None:
        """Drop everything; the outer listeners live on in their owner."""
        self.close_listeners()
        for pair in tuple(self.pairs):
            pair.close()
        for listener in self._outer:
            listener.close()
        self._outer = []
