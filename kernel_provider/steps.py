"""Steps that a person waits for: what is being done, for how long, and how it ended.

Standard library only: it also runs before anything is installed.
"""

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from kernel_provider.errors import SandboxError

PATIENCE: Final = 2.0
HEARTBEAT: Final = 15.0
"""Seconds before the first sign of life in a log, and between those that follow; a
terminal gets one each half second."""

LAST_LINES: Final = 12

GRACE: Final = 10.0
"""Seconds that a program has to clean up after Ctrl-C."""


class SetupError(SandboxError):
    """Something that the person must do or decide first; nothing was changed."""

    exit_code = 2
    summary = "{reason}"
    fix = "{remedy}"


class CommandError(SandboxError):
    """A program that setting up needs has failed."""

    exit_code = 1
    summary = "{what} failed (exit code {code}): {command}{last_words}"
    fix = "see the lines above; the step can be repeated as often as needed"


class Note:
    """What a step has to say: so far, while it goes on, and in the end."""

    text = ""

    @property
    def tail(self) -> str:
        """The same, to stand behind the step's name."""
        return f": {self.text}" if self.text else ""


class Steps:
    """Prints steps to ``stream``: a live line on a terminal, plain lines in a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()

    def say(self, text: str = "") -> None:
        """Print one line."""
        print(text, file=self._stream, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Note]:
        """Time the body; ``text`` of the yielded note is added to each line about it."""
        begun = time.monotonic()
        over = threading.Event()
        note = Note()
        ticker = threading.Thread(target=self._tick, args=(text, note, begun, over), daemon=True)
        ticker.start()
        word = "failed"
        try:
            yield note
            word = "ok"
        except KeyboardInterrupt:
            word = "stopped"
            raise
        finally:
            over.set()
            ticker.join()
            took = time.monotonic() - begun
            start = "\r\x1b[K" if self._live else ""
            self.say(f"{start}  {word:<3} {text}{note.tail} ({took:.1f} s)")

    def _tick(self, text: str, note: Note, begun: float, over: threading.Event) -> None:
        pause = 0.1 if self._live else PATIENCE
        while not over.wait(pause):
            took = time.monotonic() - begun
            if self._live:
                room = shutil.get_terminal_size().columns - 1
                line = f"  ... {text}{note.tail} ({took:.0f} s)"
                self._stream.write(f"\r\x1b[K{line[:room]}")
                self._stream.flush()
                pause = 0.5
            else:
                self.say(f"  ... {text}{note.tail}: {took:.0f} s so far")
                pause = HEARTBEAT


def last_lines(text: str, count: int = LAST_LINES) -> str:
    """The last ``count`` lines that are not empty, indented, ready to be shown."""
    lines = [line for line in text.splitlines() if line.strip()][-count:]
    return "".join(f"\n    {line}" for line in lines)


def run_quietly(
    command: Sequence[str | Path],
    *,
    what: str,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run ``command`` with nothing on its standard input; return all that it printed.

    Raises:
        CommandError: it ended with another code than 0; carries its last lines.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=cwd,
        )
        code = _wait(process)
        output.seek(0)
        text = output.read()
    if code:
        raise CommandError(
            what=what, code=code, command=" ".join(words), last_words=last_lines(text)
        )
    return text


def run_visibly(command: Sequence[str | Path]) -> int:
    """Run ``command`` with our own input and output; returns its exit code."""
    return _wait(subprocess.Popen([str(word) for word in command]))


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait; on Ctrl-C, which the terminal sends to the program too, let it clean up."""
    try:
        return process.wait()
    except BaseException:
        for end in (process.terminate, process.kill):
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
                break
            end()
        process.wait()
        raise
