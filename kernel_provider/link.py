"""The owner's end of the connection to a warden: what is heard of a sandbox, and said.

The connection is the lifeline as well: while it is open, the sandbox lives.
"""

import asyncio
import errno
import json
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernel_provider.children import start_warden
from kernel_provider.errors import (
    EnvironmentTooLargeError,
    SandboxError,
    WardenError,
    from_wire,
    of_runtime_folder,
)
from kernel_provider.warden.order import Order
from kernel_provider.warden.rendezvous import BACKLOG

if TYPE_CHECKING:
    from _typeshed import HasFileno

GRACE: Final = 5.0
"""Seconds for an answer that a warden has at hand."""
SLICE: Final = 0.1
"""Seconds after which a waiter looks up: another may have taken in what was said."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a kernel ended; ``expected`` when somebody asked for it.

    ``memory_peak`` is in bytes, 0 where it is not known.
    """

    name: str
    reason: str
    remedy: str
    exit_code: int
    memory_peak: int = 0
    expected: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} {self.remedy}"


STOPPED: Final = Death(
    name="KernelStopped", reason="the kernel was stopped.", remedy="", exit_code=-9, expected=True
)
NOT_GONE: Final = Death(
    name="SandboxLost",
    reason="the engine removed the sandbox, and processes of it are still there.",
    remedy="Restart the engine: it has lost sight of them.",
    exit_code=70,
)


def _warden_lost(last_words: str) -> Death:
    return Death(
        name="WardenLost",
        reason=f"the process beside the sandbox was killed, and the sandbox with it{last_words}.",
        remedy="Restart the kernel; the system's log may say who did it, or what ran out.",
        exit_code=70,
    )


class Link:
    """One sandbox, by its warden's words; ``pid`` is the warden's where it is our child.

    ``ready`` holds the sandbox's facts once it serves, ``error`` why it could not,
    ``death`` how it ended. ``stopped`` turns true when its processes are gone, and ``gone``
    when nothing is left of it, or when nothing more can be heard: ``lost`` then, unless its
    warden said good-bye, or that another had claimed it.
    ``parked`` turns true when it lies on the shelf, and ``taken`` when another claimed it.
    ``subscribers`` counts the iopub clients that it had at its end, ``troubles`` says
    what the engine refused meanwhile, and ``late`` counts the cells that were interrupted
    since they ran too long.
    """

    def __init__(self, connection: socket.socket, folder: str, pid: int | None = None) -> None:
        connection.setblocking(False)  # noqa: FBT003
        self.connection = connection
        self.folder = folder
        self.pid = pid
        self.ready: dict[str, Any] | None = None
        self.error: SandboxError | None = None
        self.death: Death | None = None
        self.stopped = False
        self.gone = False
        self.lost = False
        self.parked = False
        self.taken = False
        self.subscribers = 0
        self.troubles: list[str] = []
        self.late = 0
        self._buffer = b""
        self._lock = threading.Lock()
        self._failure: SandboxError | None = None
        self._patience = math.inf

    @classmethod
    def claim(
        cls, order: Order, claim: Mapping[str, Any], brought: Sequence["HasFileno"]
    ) -> "Link":
        """Start a warden that finds the claim waiting: it never runs without a lifeline.

        ``brought`` are the outer sockets and, if there is one, the folder's copy. Nothing
        can fail once it runs. Raises EnvironmentTooLargeError where the claim would have to
        wait for its reader, RuntimeFolderError, and WardenError.
        """
        return cls._start(order, claim, brought)

    @classmethod
    def park(cls, order: Order, *, kernel: str, ttl: float, stays: bool) -> "Link":
        """Start a warden whose sandbox is to lie on the shelf for ``ttl`` seconds.

        It ends with this connection, or ``stays`` without it.
        """
        keeper = 0 if stays else os.getpid()
        return cls._start(order, {"op": "park", "kernel": kernel, "ttl": ttl, "keeper": keeper}, ())

    @classmethod
    def take(cls, folder: str, claim: Mapping[str, Any], brought: "Sequence[HasFileno]") -> "Link":
        """Claim a parked sandbox by its warden's folder; raise OSError where it is gone."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)  # noqa: FBT003
            connection.connect(f"{folder}/w")
            _send(connection, claim, brought)
        except BaseException:
            connection.close()
            raise
        return cls(connection, folder)

    @classmethod
    def _start(
        cls, order: Order, words: Mapping[str, Any], brought: "Sequence[HasFileno]"
    ) -> "Link":
        root = str(Path(order.folder).parent)
        try:
            with ExitStack() as undone:
                connection = undone.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)  # noqa: FBT003
                with socket.socket(socket.AF_UNIX) as listener:
                    try:
                        listener.bind(f"{order.folder}/w")
                    except OSError as error:
                        raise of_runtime_folder(root, error) from error
                    listener.listen(BACKLOG)
                    connection.connect(f"{order.folder}/w")
                    _send(connection, words, brought)
                    link = cls(connection, order.folder, start_warden(order, listener))
                undone.pop_all()
                return link
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # no room for its log
                raise of_runtime_folder(root, error) from error
            raise WardenError(reason=f"cannot be started: {error.strerror or error}") from error

    @classmethod
    async def attach(cls, folder: str, key: str) -> "Link":
        """Join the owners of a running sandbox; raise WardenError where that can't be."""
        link = cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), folder)
        try:
            await link._join(key)
        except OSError as error:
            link.hang_up()
            raise WardenError(reason="cannot be reached: the kernel has ended") from error
        except BaseException:
            link.hang_up()
            raise
        return link

    async def _join(self, key: str) -> None:
        deadline = time.monotonic() + GRACE
        await _connect(self.connection, f"{self.folder}/w", deadline)
        self.say({"op": "attach", "key": key})
        while self.ready is None and not self.gone and time.monotonic() < deadline:
            await self.hear(deadline)
        if self.error is not None:
            raise self.error
        if self.ready is None:
            raise WardenError(reason="has ended" if self.gone else "does not answer")

    def say(self, order: Mapping[str, Any]) -> None:
        """Order something; of a sandbox that is gone, nothing."""
        if self.gone:
            return
        try:
            with self._lock:
                self.connection.send(json.dumps(order).encode() + b"\n")
        except OSError:
            self.listen()

    def listen(self) -> None:
        """Take in what was said so far, and return at once. Any thread may."""
        with self._lock:
            while not self.gone:
                try:
                    data = self.connection.recv(65536)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                self._take(data)

    async def hear(self, deadline: float, *, at_most: float = SLICE) -> None:
        """Wait for the warden's next words, for the deadline (monotonic), or a moment.

        Any number may wait, on whatever event loops: a loop knows one reader of each
        descriptor, so each brings its own. Who waited looks for itself whether what it
        waits for has come, since another may have taken it in.
        """
        patience = max(0.0, min(at_most, deadline - time.monotonic()))
        try:
            ear = self.connection.dup()
        except OSError:  # hung up, or out of descriptors
            await asyncio.sleep(min(SLICE, patience) / 10)
        else:
            await _readable(ear, patience)
        self.listen()
        if time.monotonic() > self._patience:
            self.error = self.error or self._failure

    def hang_up(self) -> None:
        """Let go: who still waits hears no more. Twice is fine."""
        self.listen()
        with self._lock:
            self.gone = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

    def last_words(self) -> str:
        """The end of the warden's own complaints, if it left any."""
        try:
            text = Path(f"{self.folder}/log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = text.replace("%", "").split("\n")
        return next((f": {line[:300]}" for line in reversed(lines) if line.strip()), "")

    def _take(self, data: bytes) -> None:
        if not data:
            self.gone = True
            if self.taken:  # it is another's by now, folder and all
                return
            self.lost = True
            self.error = self.error or self._failure
            if self.death is None and self.error is None:
                self.death = _warden_lost(self.last_words())
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                self._on_event(json.loads(line))
        except (ValueError, LookupError, TypeError):  # no warden of ours: nothing is believed
            self._take(b"")

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "ready":
            self.ready = event
        elif kind in {"parked", "taken"}:
            setattr(self, kind, True)
        elif kind == "failed":
            self._failure = from_wire(event)  # an error once nothing is left, or it takes long
            self._patience = time.monotonic() + GRACE
        elif kind == "refused":
            self.error = WardenError(reason="does not know this key")
        elif kind == "died":
            self.subscribers = event["subscribers"]
            self.death = Death(**event["cause"], expected=event["expected"])
        elif kind == "trouble":
            self.troubles.append(event["text"])
        elif kind == "late":
            self.late += 1
            self.troubles.append(event["text"])
        elif kind == "stopped":
            self.stopped = True
            self._on_stopped(event["subscribers"])
        elif kind == "gone":
            self._on_gone(clean=event["clean"], subscribers=event["subscribers"])

    def _on_gone(self, *, clean: bool, subscribers: int) -> None:
        self.gone = True
        self.error = self.error or self._failure
        self._on_stopped(subscribers)
        if not clean:
            self.death = NOT_GONE

    def _on_stopped(self, subscribers: int) -> None:
        if self.death is None:
            self.subscribers = subscribers
            self.death = STOPPED


def _send(
    connection: socket.socket, words: Mapping[str, Any], brought: "Sequence[HasFileno]"
) -> None:
    """Say all of it at once, or refuse: nobody reads yet."""
    line = json.dumps(words).encode() + b"\n"
    sent = socket.send_fds(connection, [line], [s.fileno() for s in brought])
    if sent < len(line):
        raise EnvironmentTooLargeError(size=len(line), limit=sent)


async def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    """Connect, however busy the listener is; asyncio can't where a backlog is full."""
    while True:
        try:
            connection.connect(path)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise WardenError(reason="does not answer") from error
            await asyncio.sleep(SLICE / 10)
        else:
            return


async def _readable(ear: socket.socket, patience: float) -> None:
    """Wait until there is something to read, and read nothing; closes ``ear``."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    with ear, suppress(TimeoutError):
        loop.add_reader(ear, heard.set)
        try:
            async with asyncio.timeout(patience):
                await heard.wait()
        finally:
            loop.remove_reader(ear)
