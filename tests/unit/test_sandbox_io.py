"""The kernel's way out, with its sending thread in this process."""

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sandbox_io
import zmq
from jupyter_client.session import Session


@pytest.fixture
def thread() -> Iterator[Any]:
    """A sending thread whose socket has no readers."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.linger = 0
        socket.bind("inproc://test-sandbox-io")
        made: Any = sandbox_io.SandboxIOPubThread(socket)
        made.thread.start()
        yield made
        made.stop()
        made.close()


def test_a_flush_does_not_wait_for_a_thread_that_stops(
    thread: Any,
) -> None:
    """It stops with the flush still in its queue, as in one of a hundred shutdowns."""
    make: Any = sandbox_io.SandboxOutStream
    stream = make(Session(), thread, "stdout", watchfd=False)
    deaf = threading.Event()

    def hear_no_more() -> None:
        thread._event_puller.stop_on_recv()  # noqa: SLF001
        deaf.set()

    thread.schedule(hear_no_more)
    assert deaf.wait(5)
    stop = threading.Timer(0.3, thread.stop)
    stop.start()
    began = time.monotonic()
    stream.flush()
    assert time.monotonic() - began < stream.flush_timeout / 2
    stop.join(5)


def test_a_slow_reader_loses_nothing() -> None:
    """What is more than 1000 messages libzmq throws away: whoever writes them waits."""
    address = f"ipc://@test-slow-{uuid.uuid4().hex}"
    with (
        zmq.Context() as context,
        context.socket(zmq.XPUB) as socket,
        context.socket(zmq.SUB) as reader,
    ):
        socket.linger = 0
        socket.bind(address)
        reader.rcvhwm = 10
        reader.subscribe(b"")
        reader.connect(address)
        assert socket.recv() == b"\1", "it has subscribed"
        made: Any = sandbox_io.SandboxIOPubThread(socket)
        made.thread.start()
        came: list[bytes] = []

        def read() -> None:
            time.sleep(0.3)
            while len(came) < 6000 and reader.poll(2000):
                came.append(reader.recv_multipart()[1][:6])

        reading = threading.Thread(target=read)
        reading.start()
        for number in range(6000):
            made.send_multipart([b"topic", b"%06d" % number + bytes(500)])
        reading.join(30)
        made.stop()
        made.close()
    assert came == [b"%06d" % number for number in range(6000)]


def test_a_drain_ends_when_all_has_left(thread: Any) -> None:
    """Without readers there is nothing to wait for; and what it sends is small."""
    sent: list[int] = []

    def last() -> None:
        sent.append(1)
        thread.send_multipart([b"topic", b"{}"])

    thread.send_multipart([b"topic", b"x" * 100])
    began = time.monotonic()
    thread.drain(last, 5)
    assert time.monotonic() - began < 2
    assert sent == [1, 1]


def test_a_drain_waits_for_a_reader_no_longer_than_it_may() -> None:
    """One that reads nothing holds nobody up for good."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        socket.bind("inproc://test-nobody")
        made: Any = sandbox_io.SandboxIOPubThread(socket)  # a PUSH without readers waits
        made.thread.start()
        with context.socket(zmq.PULL) as reader:
            reader.rcvhwm = 1
            reader.connect("inproc://test-nobody")
            began = time.monotonic()
            made.drain(lambda: made.send_multipart([b"x"]), 0.3)
            assert time.monotonic() - began < 3
        made.stop()
        made.close()
