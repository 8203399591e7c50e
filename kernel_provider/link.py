"""The owner's end of the connection to a warden: what is heard of a sandbox, and said.

The connection is the lifeline as well: while it is open, the sandbox lives.
"""

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel_provider.errors import SandboxError, WardenError, from_wire
from kernel_provider.warden.order import Order
from kernel_provider.warden.rendezvous import BACKLOG

GRACE: Final = 5.0
"""Seconds for an answer that a warden has at hand."""
TAKEN_WITHIN: Final = 0.5
"""Seconds that a parked sandbox's warden has to read a claim that a buffer can't hold."""

_BOOT: Final = (
    "import sys; sys.path.append(sys.argv[1]); from kernel_provider.warden.main import main; main()"
)


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a kernel ended; ``expected`` when somebody asked for it."""

    name: str
    reason: str
    remedy: str
    exit_code: int
    expected: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} {self.remedy}"


STOPPED: Final = Death(
    name="KernelStopped", reason="the kernel was stopped.", remedy="", exit_code=-9, expected=True
)
WARDEN_LOST: Final = Death(
    name="WardenLost",
    reason="the process beside the sandbox ended, and the sandbox with it.",
    remedy="Restart the kernel; the server's log may say more.",
    exit_code=70,
)
NOT_GONE: Final = Death(
    name="SandboxLost",
    reason="the engine removed the sandbox, and processes of it are still there.",
    remedy="Restart the engine: it has lost sight of them.",
    exit_code=70,
)


class Link:
    """One sandbox, by its warden's words; ``pid`` is the warden's where it is our child.

    ``ready`` holds the sandbox's facts once it serves, ``error`` why it could not,
    ``death`` how it ended, and ``gone`` turns true when nothing is left of it.
    ``parked`` turns true when it lies on the shelf, and ``taken`` when another claimed it.
    ``subscribers`` counts the iopub clients that it had at its end, ``troubles`` says
    what the engine refused meanwhile.
    """

    def __init__(self, connection: socket.socket, folder: str, pid: int | None = None) -> None:
        connection.setblocking(False)  # noqa: FBT003
        self.connection = connection
        self.folder = folder
        self.pid = pid
        self.ready: dict[str, Any] | None = None
        self.error: SandboxError | None = None
        self.death: Death | None = None
        self.gone = False
        self.parked = False
        self.taken = False
        self.subscribers = 0
        self.troubles: list[str] = []
        self._buffer = b""

    @classmethod
    def claim(
        cls, order: Order, claim: Mapping[str, Any], outer: Sequence[socket.socket]
    ) -> "Link":
        """Start a warden that finds the claim waiting: it never runs without a lifeline."""
        return cls._start(order, claim, outer)

    @classmethod
    def park(cls, order: Order, *, kernel: str, ttl: float, stays: bool) -> "Link":
        """Start a warden whose sandbox is to lie on the shelf for ``ttl`` seconds.

        It ends with this connection, or ``stays`` without it.
        """
        keeper = 0 if stays else os.getpid()
        words = {"op": "park", "kernel": kernel, "ttl": ttl, "keeper": keeper}
        return cls._start(order, words, ())

    @classmethod
    def take(cls, folder: str, claim: Mapping[str, Any], outer: Sequence[socket.socket]) -> "Link":
        """Claim a parked sandbox by its warden's folder; raise OSError where it is gone."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line = json.dumps(claim).encode() + b"\n"
        try:
            connection.settimeout(TAKEN_WITHIN)
            connection.connect(f"{folder}/w")
            sent = socket.send_fds(connection, [line], [s.fileno() for s in outer])
            connection.sendall(line[sent:])
        except BaseException:
            connection.close()
            raise
        return cls(connection, folder)

    @classmethod
    def _start(
        cls, order: Order, words: Mapping[str, Any], outer: Sequence[socket.socket]
    ) -> "Link":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line = json.dumps(words).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(f"{order.folder}/w")
                listener.listen(BACKLOG)
                connection.connect(f"{order.folder}/w")
                connection.setblocking(False)  # noqa: FBT003
                sent = socket.send_fds(connection, [line], [s.fileno() for s in outer])
                pid = _spawn(order, listener)
            if sent < len(line):
                connection.setblocking(True)  # noqa: FBT003
                connection.sendall(line[sent:])
        except BaseException:
            connection.close()
            raise
        return cls(connection, order.folder, pid)

    @classmethod
    def attach(cls, folder: str, key: str) -> "Link":
        """Join the owners of a running sandbox; raise WardenError where that can't be."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(f"{folder}/w")
            connection.sendall(json.dumps({"op": "attach", "key": key}).encode() + b"\n")
            connection.settimeout(GRACE)
            answer = json.loads(connection.recv(65536).partition(b"\n")[0] or b"{}")
        except OSError as error:
            connection.close()
            raise WardenError(reason="cannot be reached: the kernel has ended") from error
        if answer.get("event") != "ready":
            connection.close()
            raise WardenError(reason="does not know this key")
        link = cls(connection, folder)
        link.ready = answer
        return link

    def say(self, order: Mapping[str, Any]) -> None:
        """Order something; of a sandbox that is gone, nothing."""
        if self.gone:
            return
        try:
            self.connection.send(json.dumps(order).encode() + b"\n")
        except OSError:
            self.listen()

    def listen(self) -> None:
        """Take in what was said so far, and return at once."""
        while not self.gone:
            try:
                data = self.connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._take(data)

    async def hear(self, deadline: float) -> None:
        """Wait for the warden's next words, or for the deadline (monotonic)."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                data = await loop.sock_recv(self.connection, 65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        self._take(data)

    def last_words(self) -> str:
        """The end of the warden's own complaints, if it left any."""
        try:
            lines = Path(f"{self.folder}/log").read_text(encoding="utf-8").splitlines()
        except OSError:
            return ""
        return f": {lines[-1]}" if lines else ""

    def _take(self, data: bytes) -> None:
        if not data:
            self.gone = True
            if self.death is None and self.error is None:
                self.death = WARDEN_LOST
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._on_event(json.loads(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "ready":
            self.ready = event
        elif kind == "parked":
            self.parked = True
        elif kind == "taken":
            self.taken = True
        elif kind == "failed":
            self.error = from_wire(event)
        elif kind == "died":
            self.subscribers = event["subscribers"]
            self.death = Death(**event["cause"], expected=event["expected"])
        elif kind == "trouble":
            self.troubles.append(event["text"])
        elif kind == "gone":
            self.gone = True
            if not event["clean"]:
                self.death = NOT_GONE
            elif self.death is None:
                self.subscribers = event["subscribers"]
                self.death = STOPPED


def _spawn(order: Order, listener: socket.socket) -> int:
    """Start a warden in a session of its own, with nothing of ours but these files."""
    reader = os.memfd_create("order", os.MFD_CLOEXEC)
    with os.fdopen(reader, "r+b", buffering=0) as file:
        file.write(order.to_json().encode())
        file.seek(0)
        log = f"{order.folder}/log"
        package = str(Path(__file__).resolve().parent.parent)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _BOOT, package],
            {"PATH": os.defpath, "LANG": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, file.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), 3),
            ],
            setsid=True,
        )


def reap_later(pid: int) -> None:
    """Collect a warden that is about to end, or it would stay a zombie of ours."""

    def collect() -> None:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)

    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
    with suppress(RuntimeError):  # the interpreter is ending: init will do it
        threading.Thread(target=collect, name="executor-ml-reaper", daemon=True).start()
