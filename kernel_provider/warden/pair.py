"""One client's connection and its counterpart in the sandbox, with a pump each way.

A pair ends with its client, soon after its kernel, and when the kernel keeps it
waiting: whatever a kernel does, it costs no descriptors for long.
"""

import json
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from kernel_provider.warden.budget import Pace
from kernel_provider.warden.gate import Gate
from kernel_provider.warden.guard import KernelCommands
from kernel_provider.warden.loop import ENDED, ENDS, READ, WRITE, Timer
from kernel_provider.warden.message import FRAMES
from kernel_provider.warden.output import Meter
from kernel_provider.warden.pump import Pump, SinkGoneError
from kernel_provider.warden.rendezvous import CHANNELS, CONTROL, HEARTBEAT, IOPUB, SHELL
from kernel_provider.warden.zmtp import (
    OF_CLIENTS,
    Follower,
    FrameLimits,
    Violation,
    is_subscription,
)

if TYPE_CHECKING:
    from kernel_provider.warden.relay import Relay

RETRY: Final = (0.01, 0.5)
"""Seconds until a full backlog is tried again: at first, and after doubling."""
CONNECT: Final = 10.0
"""Seconds that a backlog may stay full before its client is let go of."""
ORPHANED: Final = 8.0
"""Seconds that a client stays connected after the kernel hung up on it.

A kernel that was asked to go may close its sockets and take 5 s more until Jupyter has
it killed. Clients are still to be there then: for last words, and to be counted, so that
the next kernel waits for them.
"""
UNTAKEN: Final = 60.0
"""Seconds that what a client said before it left may wait for the kernel to read it."""

BEAT: Final = 4096
"""Bytes of a heartbeat; clients send four, and get them back."""

ANSWERED: Final = frozenset(
    f"{name}_request"
    for name in (
        "execute",
        "complete",
        "inspect",
        "history",
        "is_complete",
        "comm_info",
        "kernel_info",
        "connect",
        "interrupt",
    )
)
"""What ipykernel answers on shell; other requests get no reply, and would never end."""

_HEADER_PART: Final = 2
_CONTENT_PART: Final = 5
"""Jupyter's wire: delimiter, signature, header, parent, metadata, content."""


@dataclass(kw_only=True)
class Request:
    """A request on its way; ``header`` is the client's own JSON.

    ``off_record`` is code that is to leave no trace in the history: tools run it, not
    people, and some (nbval) wait for nothing but its reply. ``name`` is its msg_id.
    """

    header: bytes
    kind: str
    number: int
    name: str = ""
    off_record: bool = False


class Pair:
    """One connection of each side; ``connect`` begins it, ``close`` ends it."""

    def __init__(self, relay: "Relay", channel: int, client: socket.socket) -> None:
        self.relay = relay
        self.channel = channel
        self.client = client
        self.kernel: socket.socket | None = None
        self.subscribed = False
        self.waiting: deque[Request] = deque()
        self._noted: Request | None = None
        self._meter = Meter(relay.output)
        self._pace = Pace(relay.output.limits.messages, relay.output.clock)
        self._waited = 0.0
        self._greeted = False
        self._timer: Timer | None = None

    def connect(self) -> None:
        """Reach the kernel's socket; a full backlog is tried again for a while."""
        try:
            self.kernel = self.relay.connect(self.channel)
        except BlockingIOError:
            self._connect_later()
            return
        except OSError:
            self.close()
            return
        buffer = self.relay.buffer
        from_client, from_kernel = Follower(OF_CLIENTS), Follower(self._limits())
        if self.channel in (SHELL, IOPUB, CONTROL):
            from_client.on_frame = self._look
        from_kernel.on_command = KernelCommands(CHANNELS[self.channel])
        if self.channel == SHELL and self.relay.overtime is not None:
            self.relay.overtime.hear(self, from_kernel)
        self.up = Pump(self.client, self.kernel, from_client, buffer)
        gate = Gate(from_kernel, self.relay.output) if self.channel == IOPUB else None
        self.down = Pump(self.kernel, self.client, from_kernel, buffer, gate)
        self.up.held = self.relay.holding and self.channel in (SHELL, CONTROL)
        self._watch()

    def _limits(self) -> FrameLimits:
        """What the kernel may say here: Jupyter's messages, or a heart's beat."""
        if self.channel == HEARTBEAT:
            return replace(self.relay.limits, message=BEAT, of_message="")
        return replace(self.relay.limits, least_parts=FRAMES)

    def _connect_later(self) -> None:
        first, most = RETRY
        delay = min(most, max(first, self._waited))
        self._waited += delay
        if self._waited > CONNECT:
            self.close()
            return
        self.relay.loop.watch(self.client.fileno(), ENDS, lambda _: self.close())
        self._within(delay, self.connect)

    def _within(self, seconds: float, then: Callable[[], None]) -> None:
        """Wait for something that may not come; what was waited for before has come."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.relay.loop.after(seconds, then)

    def _watch(self) -> None:
        """Ask for what can be made use of, and nothing else."""
        assert self.kernel is not None
        up, down = self.up, self.down
        reads, hears = not (up.pending or up.held), not (down.pending or down.held)
        client = (READ if reads else 0) | (WRITE if down.pending else 0)
        kernel = (READ if hears else 0) | (WRITE if up.pending else 0)
        if not client and up.pending:  # that it left would be seen only when all is taken
            client = ENDS
        for side, events, handler in (
            (self.client, client, self._on_client),
            (self.kernel, kernel, self._on_kernel),
        ):
            if events:
                self.relay.loop.watch(side.fileno(), events, handler)
            else:  # a hang-up is reported whatever was asked for: don't spin on it
                self.relay.loop.forget(side.fileno())

    def _on_client(self, events: int) -> None:
        if events & ENDED and self.up.pending:
            self._within(UNTAKEN, self._leave)
        self._step(up=bool(events & (READ | ENDED)), down=bool(events & WRITE))

    def _on_kernel(self, events: int) -> None:
        self._step(up=bool(events & WRITE), down=bool(events & (READ | ENDED)))

    def _step(self, *, up: bool, down: bool) -> None:
        before = self._state()
        if (down and not self._run_down()) or (up and not self._run_up()):
            return
        if before != self._state():
            self._watch()

    def _state(self) -> tuple[bool, ...]:
        up, down = self.up, self.down
        return bool(up.pending), up.held, bool(down.pending), down.held

    def _run_down(self) -> bool:
        """From the kernel: who breaks the rules here ends the kernel."""
        budget, down = self.relay.budget, self.down
        room = min(budget.room(), self._pace.room())
        if not room and not down.held:
            down.held = True
            self.relay.hold(self, own=self._pace.wait())
        since, moved, messages = budget.processor(), down.moved, down.follower.messages
        try:
            alive = down.run(room)
        except Violation as offence:
            self.relay.on_offence(self, offence)
            return False
        except SinkGoneError:
            self._leave()
            return False
        messages, size = down.follower.messages - messages, down.moved - moved
        budget.spend(size=size, messages=messages, since=since)
        self._pace.spend(messages)
        if self.channel != IOPUB and self._meter.take(size=size, messages=messages) < 0:
            self.relay.output.end("part of it in replies, which can't be left out")
        if self.channel == SHELL and messages:
            self._answered(messages)
        if not alive:
            self.orphan()
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
            self._within(ORPHANED, self.close)
            return True
        if not alive:
            self._leave()
        elif self.up.moved and not self._greeted:
            self._greeted = True
            self._within(self.relay.limits.handshake, self._expect_ready)
        return alive

    def _expect_ready(self) -> None:
        """Hang up where the kernel has not finished its half.

        libzmq greets from a thread of its own, whatever the kernel computes, so a slow
        answer is the sandbox's, paused or short of memory. Then it costs a client's libzmq,
        which would wait 30 s, one more try, in which nothing is lost; the kernel lives.
        """
        if not self.down.follower.ready:
            self.close()

    def resume(self) -> None:
        """Hear the kernel again, which the budget had kept waiting."""
        if self.kernel is not None and self.kernel.fileno() >= 0:
            self.down.held = False
            if self._run_down():
                self._watch()

    def say(self, words: bytes) -> None:
        """Say a message of the relay's own on iopub, between two of the kernel's."""
        if self.kernel is None or self.kernel.fileno() < 0:
            return
        try:
            self.down.say(words)
        except SinkGoneError:
            self._leave()
        else:
            self._watch()

    def _leave(self) -> None:
        """The client is gone, by its own doing."""
        if self.relay.overtime is not None:
            self.relay.overtime.left(self)
        self.close()

    def orphan(self) -> None:
        """Let go of the kernel; last words to the client are to come, most likely."""
        if self.kernel is None:
            self.close()
            return
        for side in (self.client, self.kernel):
            self.relay.loop.forget(side.fileno())
        self.kernel.close()
        self._within(ORPHANED, self.close)

    def release(self) -> None:
        """Let held requests through."""
        if self.kernel is not None and self.kernel.fileno() >= 0 and self.up.held:
            self.up.held = False
            self._watch()

    def close(self) -> None:
        """Drop both sides. Twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
        for side in (self.client, self.kernel):
            if side is not None and side.fileno() >= 0:
                self.relay.loop.forget(side.fileno())
                side.close()
        self.relay.drop(self)

    def _look(self, index: int, body: bytes) -> None:
        """See frames from a client: subscriptions, and the headers of requests."""
        if self.channel == IOPUB:
            if is_subscription(index, body) and not self.subscribed:
                self.subscribed = True
                self.relay.on_subscribed()
        elif index == _HEADER_PART:
            self._note(body)
        elif index == _CONTENT_PART and self._noted is not None:
            self._note_content(self._noted, body)

    def _note(self, header: bytes) -> None:
        self._noted = None
        try:
            read = json.loads(header)
            kind, name = read["msg_type"], str(read.get("msg_id", ""))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return
        if kind == "shutdown_request":
            self.relay.shutdown_requested = True
        elif self.channel == SHELL and isinstance(kind, str) and kind in ANSWERED:
            self.relay.requests += 1
            noted = Request(header=header, kind=kind, number=self.relay.requests, name=name)
            self._noted = noted
            self.waiting.append(noted)
            self.relay.see_who_runs()
            if self.relay.overtime is not None and kind == "execute_request":
                self.relay.overtime.asked(self, noted)

    def _note_content(self, request: Request, content: bytes) -> None:
        """Of code that is longer than what is kept of a frame, nothing is known."""
        try:
            request.off_record = json.loads(content).get("store_history") is False
        except (ValueError, AttributeError, RecursionError):
            return

    def _answered(self, count: int) -> None:
        """A kernel answers each connection's requests in their order, one reply each."""
        for _ in range(min(count, len(self.waiting))):
            self.waiting.popleft()
        self.relay.see_who_runs()
        self.relay.on_answer()
