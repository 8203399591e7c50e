"""A relay between real sockets, with hand-made clients and kernels at both ends."""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kernel_provider.warden.loop import Loop
from kernel_provider.warden.output import Output, OutputLimits
from kernel_provider.warden.relay import Relay
from kernel_provider.warden.rendezvous import CHANNELS, IOPUB, SHELL
from kernel_provider.warden.zmtp import FrameLimits, Violation, frame, greeting, message, ready

HANDSHAKE = greeting() + ready(b"DEALER")
SUBSCRIBE = frame(b"\x01")
STDIN = 2
QUIET = 0.05
"""Seconds in which something that must not come would have come."""


def request(kind: str, name: str = "1", content: bytes = b"{}") -> bytes:
    """A request on a client's wire."""
    header = json.dumps({"msg_type": kind, "msg_id": name, "session": "s"}).encode()
    return message([b"<IDS|MSG>", b"signature", header, b"{}", b"{}", content])


def kernels_handshake(channel: int) -> bytes:
    """What an honest kernel says first."""
    return greeting() + ready(b"XPUB" if channel == IOPUB else b"ROUTER")


def note(text: str, stream: str = "stderr") -> bytes:
    """What the relay says for itself, on the wire."""
    return message([b"note", stream.encode(), text.encode()])


def said(content: bytes) -> bytes:
    """A message on a kernel's wire: as many parts as Jupyter's have."""
    return message([b"<IDS|MSG>", b"signature", b"{}", b"{}", b"{}", content])


REPLY = said(b"{}")


class Bench:
    """A relay that serves in a thread; kernel ends of its connections in a queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.kernels: queue.Queue[tuple[int, socket.socket]] = queue.Queue()
        self.refusals: list[Exception] = []
        self.violations: list[tuple[str, str]] = []
        self.settings: list[str] = []
        self.opened: list[socket.socket] = []
        self.background: list[threading.Thread] = []
        self.excess: list[str] = []
        self.output = Output(
            OutputLimits(request=128 << 20, rate=1 << 20, messages=10**12, frames=FrameLimits()),
            interrupt=partial(self.excess.append, "interrupt"),
            stop=self.excess.append,
            sign=lambda name, text, _: note(text, name),
        )
        self.relay = Relay(self.loop, self.connect, self.on_violation, self.output)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)

    def connect(self, channel: int) -> socket.socket:
        """Give a connection to a kernel that the test plays, or refuse as was asked."""
        if self.refusals:
            raise self.refusals.pop()
        near, far = socket.socketpair()
        near.setblocking(False)  # noqa: FBT003
        far.settimeout(5)
        self.opened.append(far)
        self.kernels.put((channel, far))
        return near

    def on_violation(self, channel: str, offence: Violation) -> None:
        """Note it."""
        self.violations.append((channel, str(offence)))
        self.settings.append(offence.setting)

    def start(self, *, subscribers: int = 0) -> None:
        """Bind the outer listeners and serve."""
        outer = []
        for number in range(len(CHANNELS)):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{self.folder}/c-{number + 1}")
            listener.listen()
            outer.append(listener)
        self.relay.open(outer, subscribers=subscribers)
        self.thread.start()

    def client(self, channel: int) -> socket.socket:
        """Connect a client."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(f"{self.folder}/c-{channel + 1}")
        self.opened.append(client)
        return client

    def pair(self, channel: int = SHELL, *, greet: bool = True) -> tuple[socket.socket, ...]:
        """Connect a client; give its socket and the kernel's end."""
        client = self.client(channel)
        found, kernel = self.kernels.get(timeout=5)
        assert found == channel
        if greet:
            theirs = kernels_handshake(channel)
            for here, there, said in ((client, kernel, HANDSHAKE), (kernel, client, theirs)):
                here.sendall(said)
                assert receive(there, len(said)) == said
        return client, kernel

    def call(self, function: Callable[[], object]) -> object:
        """Run something in the loop's own thread and give its result."""
        answers: queue.Queue[object] = queue.Queue()
        reader, writer = socket.socketpair()
        with reader, writer:

            def answer(_events: int) -> None:
                self.loop.forget(reader.fileno())
                answers.put(function())

            self.loop.watch(reader.fileno(), 1, answer)
            writer.send(b"!")
            return answers.get(timeout=5)

    def processor_time(self, seconds: float) -> float:
        """Seconds of processor that the relay's thread takes in so many of the clock."""
        assert self.thread.ident is not None
        clock = time.pthread_getcpuclockid(self.thread.ident)
        before = time.clock_gettime(clock)
        time.sleep(seconds)
        return time.clock_gettime(clock) - before

    def close(self) -> None:
        """End the loop and every socket."""
        if self.thread.is_alive():
            self.call(self.relay.close)
            self.call(self.loop.stop)
            self.thread.join(5)
        self.loop.close()
        for thread in self.background:  # the relay hung up on them
            thread.join(5)
        for opened in self.opened:
            opened.close()


def receive(source: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or fewer at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        chunk = source.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def silent(source: socket.socket, seconds: float = QUIET) -> bool:
    """Whether nothing comes, not even an end."""
    source.settimeout(seconds)
    try:
        source.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        source.settimeout(5)
    return False


def ended(source: socket.socket) -> bool:
    """Whether the other side hangs up within 5 s, with nothing more to say."""
    try:
        return source.recv(1) == b""
    except ConnectionError:
        return True


def fill(sink: socket.socket, data: bytes) -> int:
    """Write until nobody takes more for a while; how many bytes were taken."""
    sink.settimeout(0.3)
    sent = 0
    try:
        while sent < len(data):
            sent += sink.send(data[sent : sent + 65536])
    except TimeoutError:
        pass
    finally:
        sink.settimeout(5)
    return sent


def say_and_go(sink: socket.socket, data: bytes) -> None:
    """Write everything and hang up."""
    sink.sendall(data)
    sink.close()


def until(condition: Callable[[], object], seconds: float = 5) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
