"""Programs that a build runs: ended with it, and quoted when they fail."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

LAST_LINES: Final = 15
GRACE: Final = 10.0
"""Seconds that a program has to clean up after itself before it is killed."""


def last_words(lines: Sequence[str], count: int = LAST_LINES) -> str:
    """The last lines that say something, indented, as an error shows them."""
    kept = [line.rstrip() for line in lines if line.strip()][-count:]
    return "".join(f"\n    {line}" for line in kept)


def follow(
    command: Sequence[str], environ: Mapping[str, str], on_line: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run a command, tell each of its lines as it comes; its exit code and all lines."""
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environ},
        start_new_session=True,
    )
    with ended(process):
        for line in process.stdout or ():
            lines.append(line.rstrip())
            on_line(line.strip())
    return process.returncode, lines


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Wait for ``process`` after the body; if the body is cut short, end its session.

    The process must lead a session of its own (``start_new_session``), so that a
    Ctrl-C reaches it through here, once, and its children too.
    """
    try:
        yield
        process.wait()
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.stdout:
            process.stdout.close()
