"""A small event loop on epoll: readiness callbacks and timers, one thread.

asyncio would take 40 ms and 8 MB of every warden for the two things needed here.
"""

import heapq
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
ENDED: Final = select.EPOLLHUP | select.EPOLLERR
ENDS: Final = select.EPOLLET
"""Ask for nothing but to be told, once, of a hang-up."""


class Timer:
    """A callback that waits for its time; ``cancel`` it as often as you like."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never call it."""
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready or a time has come, until stopped."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._running = False

    def watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(events)`` whenever one of ``events`` holds, and on hang-up."""
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Stop watching; must come before the descriptor is closed. Twice is fine."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once, ``seconds`` from now (monotonic)."""
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, timer))
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call back when a signal has come: between handlers, never within one.

        One signal for each process, from its main thread.
        """
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def wake(_events: int) -> None:
            os.read(reader, 64)
            callback()

        signal.set_wakeup_fd(writer)
        signal.signal(number, lambda _number, _frame: None)
        self.watch(reader, READ, wake)

    def close(self) -> None:
        """Give the descriptor back, for whoever outlives the loop."""
        self._epoll.close()

    def stop(self) -> None:
        """Leave ``run`` after the callbacks of this round."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped."""
        self._running = True
        while self._running:
            ready = self._epoll.poll(self._next_timer())
            handlers = [self._handlers.get(descriptor) for descriptor, _ in ready]
            for (descriptor, events), handler in zip(ready, handlers, strict=True):
                # a number that was closed and given out again in this round is another's
                if handler is not None and self._handlers.get(descriptor) == handler:
                    handler(events)
            self._call_due()

    def _next_timer(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _call_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
