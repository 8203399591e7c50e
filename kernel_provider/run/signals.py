"""Ctrl-C and SIGTERM, turned into wishes that a run looks at between two steps."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kernel_provider.run.model import ExitCode


@dataclass(kw_only=True)
class Wishes:
    """What signals asked for: to stop, and to stop at once."""

    stop: ExitCode | None = None
    at_once: bool = False

    def hear(self, code: ExitCode) -> None:
        """Take a signal: the first asks to stop, the second to stop at once."""
        self.at_once = self.stop is not None
        self.stop = self.stop or code


@contextmanager
def listening(wishes: Wishes) -> Iterator[None]:
    """Signals are wishes only until the end of the body."""
    loop = asyncio.get_running_loop()
    signals = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}
    for number, code in signals.items():
        loop.add_signal_handler(number, wishes.hear, code)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
