"""The last words over real sockets, to libzmq subscribers and to rude ones."""

import socket
import threading
import time

import pytest
import zmq
from relays import QUIET, SUBSCRIBE, Bench, receive, said

from kernel_provider.warden.lastwords import LastWords
from kernel_provider.warden.rendezvous import IOPUB
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


LENGTH = 100_000
MIDDLE = frame(b"begun", flags=MORE) * 5 + bytes([LONG]) + LENGTH.to_bytes(8, "big") + b" half"
END = bytes(LENGTH - len(b" half"))


@pytest.mark.parametrize(
    ("spoken", "dies"),
    [
        pytest.param(b"", "alone", id="between messages"),
        pytest.param(MIDDLE, "alone", id="in the middle of a message"),
        pytest.param(MIDDLE[:10], "alone", id="in the middle of its first parts"),
        pytest.param(bytes([LONG]) + b"\xff" * 8, "violation", id="by a violation"),
        pytest.param(MIDDLE + END + b"\xff", "violation", id="message ended, then garbage"),
    ],
)
def test_last_words_reach_a_subscriber(bench: Bench, spoken: bytes, dies: str) -> None:
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
        kernel.sendall(said(b"an output"))
        assert sub.poll(5000)
        assert sub.recv_multipart()[-1] == b"an output"
        kernel.sendall(spoken)
        if dies == "alone":
            time.sleep(QUIET)
            kernel.close()
            time.sleep(QUIET)
            bench.call(mourn)
        # libzmq subscribes anew only while its owner asks for messages, as clients do
        assert sub.poll(5000), "no last words"
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
    assert finished.wait(5)
    assert time.monotonic() - begin < 3
