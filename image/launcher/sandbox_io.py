"""ipykernel's way out, fitted to a sandbox: no TCP, bounded memory, less processor time.

A sandbox has 512 MB and half a processor, and libzmq queues a thousand messages for a
slow reader, however large: 100 MB of prints killed kernels by their own queue. So what
is on its way out is counted, and who writes too much waits for the reader.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import zmq
from ipykernel.heartbeat import Heartbeat
from ipykernel.iostream import IOPubThread, OutStream
from zmq.eventloop.zmqstream import ZMQStream

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTED = 64 * 1024
"""Bytes from which a message is counted; libzmq tells for these when they are gone."""
IN_FLIGHT = 24 * 1024 * 1024
"""Bytes of counted messages that may wait for readers."""
UNCOUNTED = 32
"""Small messages until the next one is counted, for all of them: libzmq throws away what
is more than 1000 for a slow reader, without a word, and takes 500 that have been read for
unread ones."""
OF_SMALL = IN_FLIGHT // 8
"""Bytes that it counts as: some 300 small messages may wait."""
AHEAD = 256
"""Messages that the main thread may have sent before the sending thread has taken them."""
UNSENT = 4 * 1024 * 1024
"""Characters that a stream buffers before it flushes by itself."""
PATIENCE = 5.0
"""Seconds that a message waits for room; a reader that is slower than that is stuck,
and nobody waits for it until something moves again."""
SLICE = 0.05
"""Seconds after which who waits for the sending thread looks whether it still lives."""
FAREWELL = 1.0
"""Seconds that a process which ends itself by ``os._exit`` waits for its output to leave."""


class PassedHeartbeat(Heartbeat):
    """Beats on a listening socket that was passed in."""

    descriptor = -1

    def _bind_socket(self) -> None:
        self.socket.setsockopt(zmq.USE_FD, self.descriptor)
        self.socket.bind("ipc://heartbeat")


class Room:
    """How much is on its way out; used by one thread. ``newest`` tells of the latest."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, int]] = deque()
        self._size = 0
        self._stuck = False
        self.newest: Any = None

    def take(self, tracker: Any, size: int) -> None:
        """Count a message that was just sent."""
        self.newest = tracker
        self._waiting.append((tracker, size))
        self._size += size
        self._collect()

    def wait(self) -> None:
        """Wait until there is room, or a reader turns out to be stuck."""
        deadline = time.monotonic() + PATIENCE
        self._collect()
        while self._size > IN_FLIGHT and not self._stuck:
            left = deadline - time.monotonic()
            if left <= 0:
                self._stuck = True
                return
            try:
                self._waiting[0][0].wait(left)
            except zmq.NotDone:
                continue
            self._collect()

    def _collect(self) -> None:
        while self._waiting and self._waiting[0][0].done:
            self._size -= self._waiting.popleft()[1]
            self._stuck = False


class SandboxIOPubThread(IOPubThread):
    """Sends with bounded memory; collects forked workers' output over a socket of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.room = Room()
        self._counted = COUNTED
        self._small = 0
        self._ahead = 0
        super().__init__(*args, **kwargs)

    def until(self, done: threading.Event, patience: float) -> bool:
        """Wait for what the thread was asked to do, for as long as it lives."""
        deadline = time.monotonic() + patience
        while not done.wait(min(SLICE, max(0.0, deadline - time.monotonic()))):
            if not self.thread.is_alive() or time.monotonic() > deadline:
                return done.is_set()
        return True

    def drain(self, last: Callable[[], None], patience: float) -> None:
        """Wait until what was sent has left. ``last`` sends a message that says nothing new.

        All messages are counted from then on, so that libzmq tells when the last one, and
        so those before it, was taken; and again, since the first time tells a moment before
        it is written. For any thread but the sending one.
        """
        deadline = time.monotonic() + patience
        self._counted = 0
        for _ in range(2):
            taken = threading.Event()
            last()
            self.schedule(taken.set)
            if not self.until(taken, deadline - time.monotonic()):
                return
            try:
                self.room.newest.wait(max(0.0, deadline - time.monotonic()))
            except zmq.NotDone:
                return

    def send_multipart(self, *args: Any, **kwargs: Any) -> None:
        """From the thread itself send at once: what is queued came later.

        The main thread, where cells run, waits where it is far ahead; no other does, since
        interrupts are answered by one.
        """
        current = threading.current_thread()
        if current is self.thread:
            self._really_send(*args, **kwargs)
            return
        super().send_multipart(*args, **kwargs)
        if current is threading.main_thread() and self._is_master_process():
            self._ahead += 1
            if self._ahead >= AHEAD:
                self._ahead = 0
                taken = threading.Event()
                self.schedule(taken.set)
                self.until(taken, 2 * PATIENCE)

    def _really_send(self, msg: list[Any], *args: Any, **kwargs: Any) -> None:
        weight = self._weight(msg) if not self.closed and self._is_master_process() else 0
        if not weight:
            super()._really_send(msg, *args, **kwargs)
            return
        self.room.wait()
        self.socket.copy_threshold = 0 if weight == OF_SMALL else self._counted
        try:
            tracker = self.socket.send_multipart(msg, copy=False, track=True)
        except (AttributeError, zmq.ZMQError):
            if self.closed or self.socket.closed:
                return
            raise
        self.room.take(tracker, weight)

    def _weight(self, msg: list[Any]) -> int:
        """Bytes that a message counts as; 0 for one that does not count."""
        size = sum(len(part) for part in msg)
        if size >= self._counted:
            return size
        self._small += 1
        if self._small < UNCOUNTED:
            return 0
        self._small = 0
        return OF_SMALL

    def _setup_pipe_in(self) -> None:
        self._pipe_uuid = os.urandom(16)
        self._pipe_address = f"ipc://@executor-iopub-{self._pipe_uuid.hex()}"
        pipe_in = self.socket.context.socket(zmq.PULL)
        pipe_in.linger = 0
        pipe_in.bind(self._pipe_address)
        self._pipe_in = ZMQStream(pipe_in, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def _setup_pipe_out(self) -> tuple[Any, Any]:
        context = zmq.Context()
        pipe_out = context.socket(zmq.PUSH)
        pipe_out.linger = 3000
        pipe_out.connect(self._pipe_address)
        return context, pipe_out


class SandboxOutStream(OutStream):
    """Flushes with one wake-up of the sending thread, and before it holds too much."""

    _unsent = 0

    def write(self, string: str) -> int:
        """Buffer; a writer that is far ahead of the reader waits here."""
        super().write(string)
        self._unsent += len(string)
        if self._unsent > UNSENT:
            self.flush()
        return len(string)

    def flush(self) -> None:
        """Send what is buffered; returns when it was handed to the sockets."""
        self._unsent = 0
        thread = self.pub_thread
        if (
            thread is None
            or not thread.thread.is_alive()
            or thread.thread is threading.current_thread()
            or not self._is_master_process()
        ):
            super().flush()
            return
        sent = threading.Event()

        def flush() -> None:
            try:
                self._flush()
            finally:
                sent.set()

        thread.schedule(flush)
        thread.until(sent, self.flush_timeout)


def leave_with_output(thread: SandboxIOPubThread, last: Callable[[], None]) -> None:
    """Have ``os._exit`` wait a moment for output on its way, which would be lost.

    libzmq sends from a thread of its own, and that ends with the process. ``last`` sends
    a message that says nothing new. Forked children leave at once, as ever: what they
    print goes through their parent.
    """
    leave, kernel = os._exit, os.getpid()

    def exit_now(status: int) -> NoReturn:
        if (
            os.getpid() == kernel
            and thread.thread.is_alive()
            and thread.thread is not threading.current_thread()
        ):
            try:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                thread.drain(last, FAREWELL)
            except Exception:  # noqa: BLE001, S110  whatever a notebook made of its streams
                pass
        leave(status)

    exit_now.__name__ = exit_now.__qualname__ = leave.__name__
    exit_now.__doc__ = leave.__doc__
    os._exit = exit_now
