"""The relay between clients' sockets (outer) and the sandbox's (inner), D13.

One client connection, one connection to the kernel, two pumps between them. A pump
holds one chunk at most and stops reading while its receiver is slow, so a flood waits
in the sandbox and not here, and a client that does not read holds up nobody else. What
all pumps together hear from the kernel keeps to one budget.
"""

import resource
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from kernel_provider.warden.acceptor import Acceptor
from kernel_provider.warden.budget import Budget
from kernel_provider.warden.loop import Loop
from kernel_provider.warden.output import Output
from kernel_provider.warden.pair import Pair, Request
from kernel_provider.warden.pump import CHUNK
from kernel_provider.warden.rendezvous import BACKLOG, CHANNELS
from kernel_provider.warden.zmtp import Violation

if TYPE_CHECKING:
    from kernel_provider.warden.overtime import Overtime

HOLD: Final = 1.0
"""Seconds that requests wait, at the most, for subscribers to come back after a restart.

A client is back when its own process gets to run: with 0.3 s, on a machine with more to
do than processors, 1 of 45 first outputs was lost. Only one that left waits so long.
"""
PAUSE: Final = 0.005
"""Seconds that a kernel beyond its budget is not heard, at the least."""
MOST_PAIRS: Final = 256
"""Connections of clients at once, with two descriptors each; more wait in the backlog."""
RESERVED: Final = 64
"""Descriptors for everything else: owners, the engine, the end of it all."""


class Relay:
    """All connections of one sandbox.

    ``connect(channel)`` reaches the sandbox; ``output`` bounds what comes from there;
    ``on_violation(channel, offence)`` is called once, when the kernel broke the rules and
    is heard no more; ``on_answer()`` whenever it is done with a request. ``overtime`` has an
    eye on how long cells run, where there is a limit; it is set before the relay opens.
    """

    def __init__(
        self,
        loop: Loop,
        connect: Callable[[int], socket.socket],
        on_violation: Callable[[str, Violation], None],
        output: Output,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.on_answer = on_answer
        self.connect = connect
        self.on_violation = on_violation
        self.limits = output.limits.frames
        self.output = output
        self.overtime: Overtime | None = None
        self.buffer = bytearray(CHUNK)
        self.budget = Budget()
        self.pairs: set[Pair] = set()
        self.requests = 0
        self.shutdown_requested = False
        self.holding = False
        self._awaited = 0
        self._silenced = False
        self._outer: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        self.most = most_pairs(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._waiting: deque[Pair] = deque()

    def open(
        self,
        outer: list[socket.socket],
        *,
        subscribers: int,
        are_welcome: Callable[[socket.socket], bool] = lambda one: one.family == socket.AF_UNIX,
    ) -> None:
        """Serve the outer listeners; those that were only bound listen from now on.

        After a restart ``subscribers`` iopub clients are expected back: shell and
        control wait for them, or the first output would be lost. ``are_welcome`` says of
        a client that came whether it may stay. Raises OSError where another process
        listens at a port that was bound.
        """
        self._outer = outer
        self._are_welcome = are_welcome
        for listener in outer:  # clients may take a port that answers for a kernel that does
            listener.listen(BACKLOG)
        self._awaited = subscribers
        if subscribers:
            self.holding = True
            self.loop.after(HOLD, self._release)
        self._acceptors = [
            Acceptor(self.loop, listener, partial(self._welcome, channel))
            for channel, listener in enumerate(outer)
        ]

    def outer(self, channel: int) -> socket.socket:
        """Give the listener that clients of ``channel`` connect to."""
        return self._outer[channel]

    def subscribers(self) -> int:
        """How many iopub clients are connected and subscribed."""
        return sum(pair.subscribed for pair in self.pairs)

    def running(self) -> Request | None:
        """The oldest request that the kernel has not answered.

        Of one that was silenced no answer is believed: it is the last that was executed.
        """
        heads = [pair.waiting[0] for pair in self.pairs if pair.waiting]
        answered = self.output.request if self._silenced else None
        return min(heads, key=lambda request: request.number, default=answered)

    def see_who_runs(self) -> None:
        """Tell the output's account when another request is executed."""
        running = self.running()
        if running is not None and running.kind == "execute_request":
            self.output.begin(running)

    def tell(self, words: bytes) -> None:
        """Say a message of our own, on the wire, to everybody who watches."""
        for pair in tuple(self.pairs):
            if pair.subscribed:
                pair.say(words)

    def on_subscribed(self) -> None:
        """One of those that were awaited is back."""
        if self.holding and self.subscribers() >= self._awaited:
            self.loop.after(0, self._release)

    def _release(self) -> None:
        self.holding = False
        for pair in tuple(self.pairs):
            pair.release()

    def _welcome(self, channel: int, client: socket.socket) -> None:
        if self._are_welcome(client):
            self.join(channel, client)
        else:
            client.close()

    def join(self, channel: int, client: socket.socket) -> Pair:
        """Serve a client that has connected."""
        pair = Pair(self, channel, client)
        self.pairs.add(pair)
        if len(self.pairs) >= self.most:
            for acceptor in self._acceptors:
                acceptor.shut()
        pair.connect()
        return pair

    def drop(self, pair: Pair) -> None:
        """Forget a pair that closed; there is room for another one."""
        if pair in self.pairs:
            self.pairs.remove(pair)
            if len(self.pairs) == self.most - 1:
                for acceptor in self._acceptors:
                    acceptor.open()

    def hold(self, pair: Pair, *, own: float = 0.0) -> None:
        """Have a pair wait until the budget allows for it; first come, first heard.

        One that has to wait by its ``own`` pace, for so many seconds, holds up nobody else.
        """
        if own:
            self.loop.after(max(PAUSE, own), pair.resume)
            return
        self._waiting.append(pair)
        if len(self._waiting) == 1:
            self.loop.after(max(PAUSE, self.budget.wait()), self._resume)

    def _resume(self) -> None:
        while self._waiting and not self.budget.wait():
            self._waiting.popleft().resume()
        if self._waiting:
            self.loop.after(max(PAUSE, self.budget.wait()), self._resume)

    def on_offence(self, pair: Pair, offence: Violation) -> None:
        """The kernel broke the rules: nothing more of it reaches anybody."""
        self.silence()
        self.on_violation(CHANNELS[pair.channel], offence)
        pair.close()

    def silence(self) -> None:
        """Hear no more of the kernel; its clients stay."""
        self._silenced = True
        for pair in tuple(self.pairs):
            pair.orphan()

    def close_listeners(self) -> None:
        """Leave new connections in the backlog, for the next warden; time decides no more."""
        if self.overtime is not None:
            self.overtime.close()
            self.overtime = None
        for acceptor in self._acceptors:
            acceptor.shut()
        self._acceptors = []

    def close(self) -> None:
        """Drop everything; the outer listeners live on in their owner."""
        self.close_listeners()
        for pair in tuple(self.pairs):
            pair.close()
        for listener in self._outer:
            listener.close()
        self._outer = []


def most_pairs(descriptors: int) -> int:
    """How many pairs a process with so many descriptors may have; -1 is no limit."""
    if descriptors < 0:
        return MOST_PAIRS
    return max(1, min(MOST_PAIRS, (descriptors - RESERVED) // 2))
