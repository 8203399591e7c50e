"""What a kernel may cost its warden and its clients over time (D13).

A kernel is served at full speed until it has used up a burst, and at a sustained rate
from then on: its bytes wait with it, and none is dropped.
"""

import time
from collections.abc import Callable
from typing import Final

BYTES: Final = (200e6, 256e6)
"""A second, and at once: 100 MB of output for two clients come at full speed."""
MESSAGES: Final = (50_000, 100_000)
"""An honest kernel, printing and flushing as fast as it can, says 6,000 a second."""
WORK: Final = (0.15, 0.5)
"""Seconds of processor. Counting frames alone would not do: a kernel that writes a
long frame byte by byte sends next to nothing, and each byte wakes the warden."""
TURN: Final = 10e-6
"""Seconds of processor to be woken, beside what is measured."""
AT_ONCE: Final = 3.0
"""Seconds' worth of messages that a connection carries at full speed."""
SHORT: Final = 256
"""Bytes of a short message: an honest kernel's have twice as many."""
LEAST: Final = 4096
"""Bytes to read at once, however little is left."""
SMALLEST: Final = 2
"""Bytes of the shortest message."""


class Bucket:
    """Tokens that come back with time; whoever takes more than there are has to wait.

    Times are seconds by any clock that only goes forward.
    """

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, amount: float, *, now: float) -> None:
        """Take, even more than there is: the size of a thing is known when it has come."""
        self._level = self.level(now=now) - amount
        self._at = now

    def level(self, *, now: float) -> float:
        """How much is there; less than nothing where some is owed."""
        return min(self._burst, self._level + (now - self._at) * self._rate)

    def wait(self, *, now: float) -> float:
        """Seconds until nothing is owed any more; 0.0 where nothing is."""
        return max(0.0, -self.level(now=now) / self._rate)


class Pace:
    """How many messages a second one connection carries, whatever others do."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._messages = Bucket(rate, rate * AT_ONCE, now=clock())

    def spend(self, messages: int) -> None:
        """Account for what has come."""
        self._messages.take(messages, now=self._clock())

    def room(self) -> int:
        """Bytes to read in a turn that begins now; 0 where the kernel has to wait."""
        left = self._messages.level(now=self._clock())
        return max(LEAST, int(left * SHORT)) if left >= 0 else 0

    def wait(self) -> float:
        """Seconds until more may come; 0.0 where it may at once."""
        return self._messages.wait(now=self._clock())


class Budget:
    """One kernel's, for all of its connections together."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self.processor = processor
        now = clock()
        self._bytes = Bucket(*BYTES, now=now)
        self._messages = Bucket(*MESSAGES, now=now)
        self._work = Bucket(*WORK, now=now)

    def spend(self, *, size: int, messages: int, since: float) -> None:
        """Account for one turn, which began when ``processor()`` said ``since``."""
        now = self._clock()
        self._bytes.take(size, now=now)
        self._messages.take(messages, now=now)
        self._work.take(self.processor() - since + TURN, now=now)

    def room(self) -> int:
        """Bytes to read in a turn that begins now; 0 where the kernel has to wait.

        So many that little is owed afterwards, whatever they turn out to be: others
        would have to wait for it, too.
        """
        now = self._clock()
        size, messages = self._bytes.level(now=now), self._messages.level(now=now)
        if min(size, messages, self._work.level(now=now)) < 0:
            return 0
        return max(LEAST, int(min(size, messages * SMALLEST)))

    def wait(self) -> float:
        """Seconds until the kernel may be heard again; 0.0 where it may at once."""
        now = self._clock()
        return max(bucket.wait(now=now) for bucket in (self._bytes, self._messages, self._work))
