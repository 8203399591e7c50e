"""Processes of this machine, told by number and command line together.

Standard library only: it also runs before anything is installed.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

STOP_TIMEOUT: Final = 30.0
"""Seconds that a process has to end by itself; an engine ends its containers then."""


def end(pid: int, mark: str) -> None:
    """End the process ``pid`` if its command line still holds ``mark``; see it gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if mark not in command_line(pid):
                break
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            deadline = time.monotonic() + STOP_TIMEOUT
            while alive(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
    finally:
        os.close(handle)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def pid_of(pidfile: Path, mark: str) -> int | None:
    """The process that ``pidfile`` names, if its command line holds ``mark``."""
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return None
    return pid if mark in command_line(pid) else None


def command_line(pid: int) -> str:
    """Arguments of a process, joined by spaces; empty if it is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace")


def alive(pid: int) -> bool:
    """Whether it runs; reaps it where it is our own child."""
    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
