"""The relay between real sockets, with hand-made clients and kernels at both ends."""

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from kernel_provider.warden import relay as relay_module
from kernel_provider.warden.lastwords import LastWords
from kernel_provider.warden.loop import Loop
from kernel_provider.warden.pump import CHUNK
from kernel_provider.warden.relay import HOLD, Relay
from kernel_provider.warden.rendezvous import CHANNELS, CONTROL, IOPUB, SHELL
from kernel_provider.warden.zmtp import (
    LONG,
    MORE,
    Follower,
    FrameLimits,
    frame,
    greeting,
    message,
    ready,
)

HANDSHAKE = greeting() + ready(b"DEALER")
SUBSCRIBE = frame(b"\x01")
STDIN = 2
QUIET = 0.05
"""Seconds in which something that must not come would have come."""


def request(kind: str, name: str = "1") -> bytes:
    """A request on a client's wire."""
    header = json.dumps({"msg_type": kind, "msg_id": name, "session": "s"}).encode()
    return message([b"<IDS|MSG>", b"signature", header, b"{}", b"{}", b"{}"])


REPLY = message([b"<IDS|MSG>", b"signature", b"{}", b"{}", b"{}", b"{}"])


class Bench:
    """A relay that serves in a thread; kernel ends of its connections in a queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.kernels: queue.Queue[tuple[int, socket.socket]] = queue.Queue()
        self.refusals: list[Exception] = []
        self.violations: list[tuple[str, str]] = []
        self.opened: list[socket.socket] = []
        self.relay = Relay(self.loop, self.connect, self.on_violation, FrameLimits(frame=1 << 25))
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

    def on_violation(self, channel: str, what: str) -> None:
        """Note it."""
        self.violations.append((channel, what))

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

    def pair(self, channel: int = SHELL, *, greet: bool = True) -> tuple[socket.socket, ...]:
        """Connect a client; give its socket and the kernel's end."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(f"{self.folder}/c-{channel + 1}")
        self.opened.append(client)
        found, kernel = self.kernels.get(timeout=5)
        assert found == channel
        if greet:
            for here, there in ((client, kernel), (kernel, client)):
                here.sendall(HANDSHAKE)
                assert receive(there, len(HANDSHAKE)) == HANDSHAKE
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
        for opened in self.opened:
            opened.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A relay that is closed with the test."""
    made = Bench(tmp_path)
    yield made
    made.close()


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


@pytest.mark.parametrize("channel", range(len(CHANNELS)))
def test_bytes_arrive_as_they_were_sent(bench: Bench, channel: int) -> None:
    """Both directions of each channel carry a stream unchanged."""
    bench.start()
    client, kernel = bench.pair(channel)
    data = message([os.urandom(10), b"", os.urandom(300)])
    for here, there in ((client, kernel), (kernel, client)):
        here.sendall(data)
        assert receive(there, len(data)) == data


def test_greetings_are_passed_on_byte_by_byte(bench: Bench) -> None:
    """Ten bytes of a greeting arrive before the rest is sent: libzmq waits for them."""
    bench.start()
    client, kernel = bench.pair(greet=False)
    for a, b in ((0, 10), (10, 11), (11, 64)):
        for here, there in ((client, kernel), (kernel, client)):
            here.sendall(greeting()[a:b])
            assert receive(there, b - a) == greeting()[a:b]


def test_a_client_that_does_not_read_stops_the_kernel_not_the_relay(bench: Bench) -> None:
    """The relay holds one chunk; the rest waits at the kernel's end, and nothing is lost."""
    bench.start()
    client, kernel = bench.pair(IOPUB)
    data = message([os.urandom(8 << 20)])
    sent = fill(kernel, data)
    held = max(len(pair.down.pending) for pair in bench.relay.pairs)
    assert 0 < held <= CHUNK
    assert sent < CHUNK + (2 << 20), "more than a chunk and what sockets hold"
    rest = threading.Thread(target=kernel.sendall, args=(data[sent:],), daemon=True)
    rest.start()
    assert receive(client, len(data)) == data
    rest.join()


def test_a_client_that_does_not_read_holds_up_nobody_else(bench: Bench) -> None:
    """Other clients' round trips go on as before."""
    bench.start()
    _, flooding = bench.pair(IOPUB)
    client, kernel = bench.pair(SHELL)
    fill(flooding, message([bytes(8 << 20)]))
    begin = time.monotonic()
    for _ in range(100):
        client.sendall(request("execute_request"))
        receive(kernel, len(request("execute_request")))
        kernel.sendall(REPLY)
        assert receive(client, len(REPLY)) == REPLY
    assert time.monotonic() - begin < 1


def test_a_kernel_that_does_not_read_stops_that_client_only(bench: Bench) -> None:
    """Back-pressure works towards the kernel as well."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = message([bytes(8 << 20)])
    sent = fill(client, data)
    assert sent < CHUNK + (2 << 20)
    other, counterpart = bench.pair(CONTROL)
    other.sendall(REPLY)
    assert receive(counterpart, len(REPLY)) == REPLY
    rest = threading.Thread(target=client.sendall, args=(data[sent:],), daemon=True)
    rest.start()
    assert receive(kernel, len(data)) == data
    rest.join()


@pytest.mark.parametrize("unread", [False, True], ids=["idle client", "client that asks on"])
def test_all_that_a_dying_kernel_said_arrives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, unread: bool
) -> None:
    """A kernel that writes much and goes is heard to the end.

    Even while its client sends what nobody reads any more; then the client is let go of,
    but not at once.
    """
    monkeypatch.setattr(relay_module, "ORPHANED", 0.3)
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = message([os.urandom(4 << 20)])
    writer = threading.Thread(target=say_and_go, args=(kernel, data), daemon=True)
    writer.start()
    time.sleep(QUIET)
    if unread:
        client.sendall(request("execute_request"))
    half = receive(client, len(data) // 2)
    if unread:
        client.sendall(request("execute_request"))
    half += receive(client, len(data) - len(half) - 10)
    writer.join()
    if unread:
        client.sendall(request("execute_request"))
        time.sleep(QUIET)
    assert half + receive(client, 10) == data
    assert silent(client, 0.1), "let go of before last words could come"
    assert ended(client)


def test_all_that_a_leaving_client_said_arrives(bench: Bench) -> None:
    """A client that sends much and closes at once is heard to the end by the kernel."""
    bench.start()
    client, kernel = bench.pair(STDIN)
    data = message([os.urandom(4 << 20)])
    writer = threading.Thread(target=say_and_go, args=(client, data), daemon=True)
    writer.start()
    time.sleep(QUIET)
    assert receive(kernel, len(data)) == data
    assert ended(kernel)
    writer.join()


@pytest.mark.parametrize("leaves", ["nobody", "client", "kernel", "both"])
@pytest.mark.parametrize("blocked", ["up", "down", "both", "neither", "held"])
def test_nothing_is_waited_for_in_a_busy_loop(bench: Bench, blocked: str, leaves: str) -> None:
    """Whoever hung up or is blocked, waiting for the other side takes no processor."""
    bench.start(subscribers=1 if blocked == "held" else 0)
    client, kernel = bench.pair(SHELL, greet=blocked != "held")
    if blocked in {"up", "both"}:
        fill(client, message([bytes(8 << 20)]))
    if blocked in {"down", "both"}:
        fill(kernel, message([bytes(8 << 20)]))
    if blocked == "held":
        client.sendall(HANDSHAKE)
    if leaves in {"client", "both"}:
        client.close()
    if leaves in {"kernel", "both"}:
        kernel.close()
    assert bench.processor_time(0.25) < 0.05


def test_the_busy_loop_would_be_noticed(bench: Bench) -> None:
    """The control: a loop that spins takes all the time there is."""
    bench.start()
    near, far = socket.socketpair()
    with near, far:
        bench.call(lambda: bench.loop.watch(near.fileno(), 4, lambda _: None))
        assert bench.processor_time(0.25) > 0.08
        bench.call(lambda: bench.loop.forget(near.fileno()))


def test_requests_wait_for_subscribers(bench: Bench) -> None:
    """Shell and control wait until as many subscribers are back as there were.

    Iopub, stdin and heartbeat don't.
    """
    bench.start(subscribers=2)
    held = [bench.pair(channel, greet=False) for channel in (SHELL, CONTROL)]
    begin = time.monotonic()
    for client, _ in held:
        client.sendall(HANDSHAKE + request("execute_request"))
    bench.pair(STDIN)
    first, _ = bench.pair(IOPUB)
    first.sendall(SUBSCRIBE)
    time.sleep(QUIET)
    first.sendall(SUBSCRIBE)
    assert all(silent(kernel) for _, kernel in held)
    second, counterpart = bench.pair(IOPUB)
    second.sendall(SUBSCRIBE)
    receive(counterpart, len(SUBSCRIBE))
    for _, kernel in held:
        kernel.settimeout(HOLD)
        assert receive(kernel, 1)
    assert time.monotonic() - begin < HOLD, "slower than the time-out: shows nothing"


def test_requests_wait_no_longer_than_promised(bench: Bench) -> None:
    """A subscriber that never comes back delays the others by HOLD and no more."""
    bench.start(subscribers=1)
    begin = time.monotonic()
    client, kernel = bench.pair(SHELL, greet=False)
    client.sendall(HANDSHAKE)
    assert receive(kernel, len(HANDSHAKE)) == HANDSHAKE
    assert HOLD - 0.01 < time.monotonic() - begin < HOLD + 0.15
    late, counterpart = bench.pair(CONTROL, greet=False)
    late.sendall(HANDSHAKE)
    counterpart.settimeout(0.1)
    assert receive(counterpart, 1)


@pytest.mark.parametrize(
    "offence",
    [b"GET / HTTP/1.1\r\n\r\n" * 4, HANDSHAKE + bytes([LONG]) + b"\x01" + bytes(7)],
    ids=["another protocol", "a frame of 2**56 bytes"],
)
def test_a_client_that_breaks_the_framing_loses_its_own_connection(
    bench: Bench, offence: bytes
) -> None:
    """Other clients of the same channel and the kernel notice nothing."""
    bench.start()
    good, kernel = bench.pair(SHELL)
    bad, counterpart = bench.pair(SHELL, greet=False)
    bad.sendall(offence)
    assert ended(bad)
    assert ended(counterpart)
    good.sendall(REPLY)
    assert receive(kernel, len(REPLY)) == REPLY
    assert not bench.violations


@pytest.mark.parametrize(
    ("offence", "what"),
    [
        (bytes([LONG]) + (1 << 40).to_bytes(8, "big"), "frame"),
        (frame(b"", flags=MORE) * 4097, "parts"),
        (b"\xff\xff\xff", "flags"),
    ],
)
@pytest.mark.parametrize("channel", [SHELL, IOPUB])
def test_a_kernel_that_breaks_the_framing_is_reported(
    bench: Bench, channel: int, offence: bytes, what: str
) -> None:
    """The warden is told channel and offence, once, and the client gets none of it."""
    bench.start()
    client, kernel = bench.pair(channel)
    kernel.sendall(REPLY)
    assert receive(client, len(REPLY)) == REPLY
    kernel.sendall(offence)
    assert ended(client)
    assert bench.violations == [(CHANNELS[channel], what)]


def test_the_running_request_is_known(bench: Bench) -> None:
    """The oldest unanswered request is the running one; a reply ends it."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    other, counterpart = bench.pair(SHELL)

    def running() -> str:
        found = bench.call(bench.relay.running)
        return json.loads(found.header)["msg_id"] if found else ""  # type: ignore[attr-defined]

    assert running() == ""
    for here, name in ((client, "a"), (client, "b"), (other, "c")):
        here.sendall(request("execute_request", name))
        time.sleep(QUIET)
    client.sendall(request("comm_msg", "no request"))
    assert running() == "a"
    kernel.sendall(REPLY)
    receive(client, len(REPLY))
    assert running() == "b"
    client.close()
    assert until(lambda: running() == "c")
    counterpart.sendall(REPLY)
    counterpart.close()
    receive(other, len(REPLY))
    assert until(lambda: running() == ""), "answered, and then the kernel went"


def test_a_shutdown_request_is_noted(bench: Bench) -> None:
    """So that an end that was asked for is not taken for a death."""
    bench.start()
    client, kernel = bench.pair(CONTROL)
    assert not bench.relay.shutdown_requested
    client.sendall(request("shutdown_request"))
    receive(kernel, 1)
    assert bench.relay.shutdown_requested


@pytest.mark.parametrize("header", [b"", b"[" * 60_000, b"7", b'"x"', b"\xff", b'{"msg_type": 7}'])
def test_headers_that_make_no_sense_pass(bench: Bench, header: bytes) -> None:
    """What a client sends is looked at, not judged."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    data = message([b"<IDS|MSG>", b"", header])
    client.sendall(data)
    assert receive(kernel, len(data)) == data
    assert bench.call(bench.relay.running) is None


def test_a_full_backlog_is_tried_again(bench: Bench) -> None:
    """A kernel that is slow to accept keeps its clients waiting, and gets them all."""
    bench.refusals = [BlockingIOError(), BlockingIOError(), BlockingIOError()]
    bench.start()
    client, kernel = bench.pair(SHELL)
    client.sendall(REPLY)
    assert receive(kernel, len(REPLY)) == REPLY


def test_a_kernel_that_refuses_costs_the_connection(bench: Bench) -> None:
    """A client that can't be connected through is hung up on, and may try again."""
    bench.refusals = [ConnectionRefusedError()]
    bench.start()
    client = socket.socket(socket.AF_UNIX)
    bench.opened.append(client)
    client.settimeout(5)
    client.connect(f"{bench.folder}/c-1")
    assert ended(client)
    bench.pair(SHELL)


def test_descriptors_from_a_kernel_are_dropped(bench: Bench) -> None:
    """What a kernel attaches to its bytes never becomes a descriptor of ours."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        socket.send_fds(kernel, [REPLY], [0, 0, 0])
    assert receive(client, 20 * len(REPLY)) == 20 * REPLY
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- last words -----------------------------------------------------------------------

WORDS = message([b"error", b"the last words"])


def subscriber(bench: Bench) -> tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]]:
    """A libzmq subscriber to everything, as clients have it."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.linger = 0
    sub.setsockopt(zmq.SUBSCRIBE, b"")
    sub.connect(f"ipc://{bench.folder}/c-{IOPUB + 1}")
    return context, sub


def publish(bench: Bench) -> socket.socket:
    """Play the kernel's publisher for a libzmq subscriber until it has subscribed."""
    _, kernel = bench.kernels.get(timeout=5)
    subscribed: list[bytes] = []

    def look(_index: int, body: bytes) -> None:
        if b"SUBSCRIBE" in body:
            subscribed.append(body)

    follower = Follower(FrameLimits(), look)
    kernel.sendall(greeting())
    while not follower.greeted:
        follower.feed(memoryview(kernel.recv(1000)))
    kernel.sendall(ready(b"XPUB"))
    while not subscribed and not follower.messages:
        follower.feed(memoryview(kernel.recv(1000)))
    return kernel


MIDDLE = frame(b"begun", flags=MORE) + b"\x00\xff half"


@pytest.mark.parametrize(
    ("said", "dies"),
    [
        pytest.param(b"", "alone", id="between messages"),
        pytest.param(MIDDLE, "alone", id="in the middle of a message"),
        pytest.param(bytes([LONG]) + b"\xff" * 8, "violation", id="by a violation"),
        pytest.param(MIDDLE + b"x" * 300 + b"\xff", "violation", id="message ended, then garbage"),
    ],
)
def test_last_words_reach_a_subscriber(bench: Bench, said: bytes, dies: str) -> None:
    """Wherever its stream was cut off, a libzmq subscriber hears the last words once."""
    finished = threading.Event()

    def mourn(*_: object) -> None:
        bench.relay.close_listeners()
        LastWords(bench.loop, bench.relay, WORDS, finished.set)

    if dies == "violation":
        bench.relay.on_violation = mourn
    bench.start()
    context, sub = subscriber(bench)
    with context, sub:
        kernel = publish(bench)
        kernel.sendall(message([b"an output"]))
        assert sub.poll(5000)
        assert sub.recv_multipart() == [b"an output"]
        kernel.sendall(said)
        if dies == "alone":
            time.sleep(QUIET)
            kernel.close()
            time.sleep(QUIET)
            bench.call(mourn)
        # libzmq subscribes anew only while its owner asks for messages, as clients do
        assert sub.poll(2000), "no last words"
        assert sub.recv_multipart() == [b"error", b"the last words"]
        assert finished.wait(5)
        assert not sub.poll(50)


def test_last_words_do_not_wait_for_ever(bench: Bench) -> None:
    """A client that was cut off and does not come back delays the end by 0.6 s."""
    bench.start()
    client, kernel = bench.pair(IOPUB)
    client.sendall(SUBSCRIBE)
    receive(kernel, len(SUBSCRIBE))
    kernel.sendall(MIDDLE)
    receive(client, len(MIDDLE))
    finished = threading.Event()
    begin = time.monotonic()

    def mourn() -> None:
        bench.relay.close_listeners()
        LastWords(bench.loop, bench.relay, WORDS, finished.set)

    bench.call(mourn)
    for rude in range(3):  # connects, and says nothing or goes at once
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(f"{bench.folder}/c-{IOPUB + 1}")
        bench.opened.append(visitor)
        if rude:
            visitor.close()
    assert finished.wait(2)
    assert time.monotonic() - begin < 1
