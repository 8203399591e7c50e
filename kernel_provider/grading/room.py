"""Memory of this machine, shared out so that it is never promised twice.

A sandbox may take all of its limit at any moment, so limits are what is counted: of those
that run, and of the one that wants to start. What else runs on the machine is seen in
what the system calls available, which is looked at anew before each start.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from kernel_provider.grading.errors import MemoryShortError, StoppedError
from kernel_provider.values import MIB, show

RESERVE: Final = 256 * MIB
"""Bytes that are left to everything else."""
BESIDE: Final = 24 * MIB
"""What a sandbox costs beside its limit: its warden, the engine's shim."""
LOOK: Final = 0.5
"""Seconds after which somebody who waits looks again."""
PATIENCE: Final = 120.0
"""Seconds to wait where nothing of ours runs that could make room."""


def fits(*, wanted: int, promised: int, capacity: int, available: int) -> bool:
    """Whether a sandbox of ``wanted`` bytes may start beside ``promised`` ones.

    ``capacity`` was available before any of them ran, ``available`` is so now.
    """
    need = wanted + BESIDE
    return promised + need <= capacity - RESERVE and need <= available - RESERVE


def available_memory(path: str = "/proc/meminfo") -> int:
    """Bytes that can be had without swapping, as the system estimates it."""
    for line in Path(path).read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


class Room:
    """Who holds how much; those who wait are let in in the order in which they came."""

    def __init__(
        self,
        *,
        stopped: Callable[[], bool] = lambda: False,
        available: Callable[[], int] = available_memory,
    ) -> None:
        """``stopped`` tells whether nobody is to be let in any more."""
        self._stopped = stopped
        self._available = available
        self._capacity = available()
        self._promised = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def held(self, memory: int) -> AsyncIterator[None]:
        """Wait until a sandbox with this limit (bytes) may run; it may until the end.

        Raises MemoryShortError where nothing of ours runs and there is no room for it, and
        StoppedError.
        """
        async with self._turn:
            await self._wait(memory)
            self._promised += memory + BESIDE
        try:
            yield
        finally:
            self._promised -= memory + BESIDE
            self._changed.set()

    async def _wait(self, memory: int) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while self._stopped() or not fits(
            wanted=memory,
            promised=self._promised,
            capacity=self._capacity,
            available=self._available(),
        ):
            if self._stopped():
                raise StoppedError
            if self._promised:
                until = loop.time() + PATIENCE
            elif loop.time() > until:
                free = max(0, self._available() - RESERVE) // MIB * MIB
                raise MemoryShortError(memory=show("memory", memory), free=show("memory", free))
            else:
                self._capacity = max(self._capacity, self._available())
            self._changed.clear()
            try:
                async with asyncio.timeout(LOOK):
                    await self._changed.wait()
            except TimeoutError:
                continue
