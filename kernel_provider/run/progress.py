"""What a person sees of a run: one live line on a terminal, plain lines in a pipe."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from kernel_provider.run.model import CellReport
from kernel_provider.run.text import printable, shown

_COLOURS: Final = {"ok": "32", "error": "31", "timed_out": "31", "died": "31", "interrupted": "33"}
_WORDS: Final = {"timed_out": "timeout", "interrupted": "stopped"}
LIVE_EVERY: Final = 0.25
PLAIN_EVERY: Final = 30.0
"""Seconds between two signs of life, on a terminal and in a log."""
LAST_LINES: Final = 60
LONGEST_LINE: Final = 500
"""What is shown of an error that nobody asked to see in full."""
CLEAR: Final = "\r\x1b[K"


class Printer:
    """Progress for ``stream``; falls silent where nobody reads it any more."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str], *, show: bool) -> None:
        self._stream = stream
        self._live = stream.isatty() and environ.get("TERM") != "dumb"
        self._coloured = self._live and not environ.get("NO_COLOR")
        self._show = show
        self._doing = ""
        self._begun = self._told = time.monotonic()

    def opened(self, notebook: Path, kernel: str) -> None:
        """A run begins: a line at once, since what runs it takes a second to import."""
        self._write(f"  run     {printable(str(notebook))}, kernel {printable(kernel)}\n")

    def starting(self, kernel: str) -> None:
        """A sandbox is being started."""
        self._begin(f"kernel {printable(kernel)}")

    def started(self, seconds: float, limits: Mapping[str, Any], pid: int) -> None:  # noqa: ARG002
        """It serves."""
        held = f"memory {limits['memory']}, processors {limits['cpus']}"
        self._end("ok", f"{self._doing}: {held} ({seconds:.1f} s)")

    def cell_started(self, cell: CellReport, total: int) -> None:
        """A cell begins."""
        self._begin(f"cell {cell.number} of {total}: {cell.title}")

    def tick(self) -> None:
        """Show that time passes, now and then."""
        now = time.monotonic()
        if now < self._told + (LIVE_EVERY if self._live else PLAIN_EVERY):
            return
        self._told = now
        took = f"({now - self._begun:.0f} s) "
        if self._live:
            room = shutil.get_terminal_size().columns - len(took) - 8
            self._write(f"{CLEAR}  ... {took}{self._doing[:room]}")
        else:
            self._write(f"  ... {self._doing}: {now - self._begun:.0f} s so far\n")

    def cell_ended(self, cell: CellReport, total: int, outputs: list[Any]) -> None:
        """A cell has ended: its line, and its outputs where they are wanted or needed."""
        self._end(cell.state, f"cell {cell.number} of {total}: {cell.title} ({cell.seconds:.1f} s)")
        if not self._show:
            outputs = [o for o in outputs if o["output_type"] == "error"]
        lines = list(shown(outputs))
        if not self._show:
            lines = [line[:LONGEST_LINE] for line in lines[-LAST_LINES:]]
        self._write("".join(f"      | {line}\n" for line in lines))

    def done(self) -> None:
        """Leave no half line behind."""
        if self._doing and self._live:
            self._write(CLEAR)

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._begun = time.monotonic()
        self._told = 0.0 if self._live else self._begun
        self.tick()

    def _end(self, state: str, text: str) -> None:
        word = f"{_WORDS.get(state, state):<7}"
        if self._coloured:
            word = f"\x1b[{_COLOURS[state]}m{word}\x1b[0m"
        self._doing = ""
        self._write(f"{CLEAR if self._live else ''}  {word} {text}\n")

    def _write(self, text: str) -> None:
        tell(self._stream, text)


def tell(stream: TextIO, text: str) -> None:
    """Write at once; to a pipe that nobody reads any more, nothing from now on."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
