"""How much a kernel may say, and what happens to one that says more (D13).

Every connection of a client gets so many bytes for each request that it had executed,
and so many more a second. Which request runs is known from the clients' headers, so
nothing that a kernel says of itself (``idle``, above all) gives it more. Beyond that,
output is left out, a kernel that goes on is interrupted, and then stopped; replies
can't be left out without hanging who waits for them, so there it is stopped at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernel_provider.warden.budget import Bucket
from kernel_provider.warden.zmtp import FrameLimits

if TYPE_CHECKING:
    from kernel_provider.warden.pair import Request

OVERHEAD: Final = 256
"""Bytes that a message counts beside its own: reading many small ones costs as much."""
GRACE: Final = 5.0
"""Seconds from the interrupt of a kernel that goes on to its end."""


@dataclass(frozen=True, kw_only=True)
class OutputLimits:
    """Bytes for each executed request, and a second on top; and of each message.

    ``messages`` is how many a second each connection carries.
    """

    request: int
    rate: int
    messages: int
    frames: FrameLimits


class Output:
    """One kernel's, over all connections: what runs, and what is done about too much.

    ``interrupt()`` is called once for each request, ``stop(why)`` once, from within a
    pump. ``sign(stream, text, request)`` makes a message to whoever sent the request.
    """

    def __init__(
        self,
        limits: OutputLimits,
        *,
        interrupt: Callable[[], None] = lambda: None,
        stop: Callable[[str], None] = lambda _: None,
        sign: "Callable[[str, str, Request], bytes]" = lambda *_: b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.request: Request | None = None
        self.interrupted: float | None = None
        self._stopped = False
        self._interrupt = interrupt
        self._stop = stop
        self._sign = sign

    def begin(self, request: "Request") -> None:
        """Another request is executed: there is room again."""
        if self.request is None or request.number > self.request.number:
            self.request = request
            self.interrupted = None

    def note(self, text: str) -> bytes:
        """A line for the cell that runs, or ran last, on the wire; none without one."""
        return self.text("stderr", f"\nexecutor-ml: {text}\n")

    def text(self, stream: str, text: str) -> bytes:
        """A text in that cell, on the wire."""
        return self._sign(stream, text, self.request) if self.request else b""

    def on_left_out(self, size: int) -> None:
        """So many bytes were left out on one connection since it was cut."""
        now = self.clock()
        if self.interrupted is None:
            if size > self.limits.request:
                self.interrupted = now
                self._interrupt()
        elif now > self.interrupted + GRACE:
            self.end("went on after an interrupt")

    def end(self, why: str) -> None:
        """It is enough; ``why`` goes on from what the kernel did."""
        if not self._stopped:
            self._stopped = True
            self._stop(why)


class Meter:
    """What is left to one connection."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._request = output.request
        self._bucket = self._full()

    def _full(self) -> Bucket:
        limits = self._output.limits
        return Bucket(limits.rate, limits.request, now=self._output.clock())

    def level(self) -> float:
        """Bytes that are left; less than nothing where too much was said."""
        if self._request is not self._output.request:
            self._request = self._output.request
            self._bucket = self._full()
        return self._bucket.level(now=self._output.clock())

    def take(self, *, size: int, messages: int) -> float:
        """Account for what was said; what is left then."""
        self.level()
        now = self._output.clock()
        self._bucket.take(size + messages * OVERHEAD, now=now)
        return self._bucket.level(now=now)

    def forfeit(self, size: int) -> None:
        """Let what was left out count, so that only silence makes room again."""
        level = self.level()
        self._bucket.take(max(0.0, min(level, float(size))), now=self._output.clock())
