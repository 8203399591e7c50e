"""Timing of the steps of a build, told to whoever asked for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_provider.builder.model import Event, Phase, Report


class Step:
    """A step that runs: ``detail`` and ``size`` go into its last event."""

    def __init__(self, name: str, report: Report) -> None:
        self.name = name
        self.detail = ""
        self.size: int | None = None
        self._report = report

    def say(self, detail: str, *, size: int | None = None) -> None:
        """Tell what happens now."""
        self._report(Event(step=self.name, phase=Phase.RUNNING, detail=detail, size=size))


@contextmanager
def step(name: str, report: Report) -> Iterator[Step]:
    """Announce a step, time the body, and announce its end if the body succeeds."""
    begun = time.monotonic()
    report(Event(step=name, phase=Phase.STARTED))
    running = Step(name, report)
    yield running
    report(
        Event(
            step=name,
            phase=Phase.DONE,
            detail=running.detail,
            size=running.size,
            seconds=time.monotonic() - begun,
        )
    )
