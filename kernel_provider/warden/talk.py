"""The talk with a sandbox's guardian: three words from it, one claim to it.

The guardian is PID 1 in there. What it says after the claim is how the kernel ended,
and nothing else is listened to; its end without a word counts as well, and is seen by
its connection and by its process (pidfd).
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernel_provider.errors import SandboxError, StartError
from kernel_provider.warden.loop import READ, Loop
from kernel_provider.warden.sandbox import EndedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kernel_provider.warden.sandbox import Sandbox
    from kernel_provider.warden.wishes import Claim

CLAIM_WITHIN: Final = 5.0
"""Seconds that a sandbox may take to read its claim."""
LINE: Final = 4096
"""Bytes of one line at most: a guardian's words are short."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told; ``ended`` gets an exit code, minus a signal, or None for no word."""

    parked: Callable[[], None]
    ready: Callable[[], None]
    ended: Callable[[int | None], None]
    failed: Callable[[SandboxError], None]


class Talk:
    """One sandbox's guardian, from its arrival to its end."""

    def __init__(self, loop: Loop, sandbox: Sandbox, listener: Listener) -> None:
        """Begin to listen; the sandbox is running and its guardian yet to come."""
        self._loop = loop
        self._sandbox = sandbox
        self._listener = listener
        self._lines = b""
        self._over = False
        self._pidfd = -1
        loop.watch(sandbox.listener.fileno(), READ, self._arrive)
        try:
            self._pidfd = os.pidfd_open(sandbox.pid)
        except ProcessLookupError:
            loop.after(0, self._pid_one_ended)
        else:
            loop.watch(self._pidfd, READ, lambda _: self._pid_one_ended())

    def claim(self, claim: Claim, descriptors: Sequence[int]) -> None:
        """Tell the kernel whose it is, and pass on the folder's copy if there is one.

        That is sealed memory, plain data that leads nowhere; ours is closed. That the
        kernel does not listen is told as any failure.
        """
        guardian = self._sandbox.guardian
        assert guardian is not None
        wanted = {
            "key": claim.key,
            "env": claim.env,
            "cwd": claim.cwd,
            "workspace": bool(claim.workspace),  # not which folder of the host's
            "kernel": claim.kernel,
        }
        line = json.dumps(wanted).encode() + b"\n"
        guardian.settimeout(CLAIM_WITHIN)
        try:
            sent = socket.send_fds(guardian, [line], descriptors)
            guardian.sendall(line[sent:])
        except TimeoutError:
            self._loop.after(0, self._not_read)
        except OSError:  # it has hung up: what it said before that is still to be heard
            self._loop.after(0, self._pid_one_ended)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        guardian.setblocking(False)  # noqa: FBT003

    def _not_read(self) -> None:
        reason = f"it did not read its claim within {CLAIM_WITHIN:g} s"
        self._listener.failed(StartError(reason=reason, last_words=""))

    def close(self) -> None:
        """Hear no more; must come before the sandbox is removed. Twice is fine."""
        self._over = True
        for side in (self._sandbox.guardian, self._sandbox.listener):
            if side is not None and side.fileno() >= 0:
                self._loop.forget(side.fileno())
        if self._pidfd >= 0:
            self._loop.forget(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _arrive(self, _events: int) -> None:
        """Meet it; the listener goes with the first connection."""
        self._loop.forget(self._sandbox.listener.fileno())
        try:
            self._sandbox.meet()
        except EndedError:  # which the process itself is about to show
            return
        except SandboxError as error:
            self._listener.failed(error)
            return
        assert self._sandbox.guardian is not None
        self._loop.watch(self._sandbox.guardian.fileno(), READ, lambda _: self._hear())

    def _hear(self) -> None:
        guardian = self._sandbox.guardian
        if guardian is None or self._over:
            return
        try:
            data = guardian.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._understand(line)
        if not data or len(self._lines) > LINE:
            self._end(None)

    def _understand(self, line: bytes) -> None:
        if self._over:
            return
        if line == b"parked":
            self._listener.parked()
        elif line == b"ready":
            self._listener.ready()
        elif line.startswith(b"exit "):
            try:
                self._end(int(line[5:]))
            except ValueError:
                self._end(None)

    def _pid_one_ended(self) -> None:
        """Its word may still be in the connection: look there first."""
        self._hear()
        self._end(None)

    def _end(self, status: int | None) -> None:
        if not self._over:
            self.close()
            self._listener.ended(status)
