"""The last words over real sockets, to libzmq subscribers and to rude ones."""

import hashlib
import hmac
import json
import socket
import threading
import time

import pytest
import zmq
from relays import QUIET, SUBSCRIBE, Bench, receive, request, said, silent

from kernel_provider.warden.death import Cause
from kernel_provider.warden.lastwords import LastWords, answer, compose
from kernel_provider.warden.pair import Request
from kernel_provider.warden.rendezvous import IOPUB, SHELL
from kernel_provider.warden.zmtp import (
    CAPTURE,
    LONG,
    MORE,
    Follower,
    FrameLimits,
    frame,
    frames,
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


# --- replies ------------------------------------------------------------------------------

CAUSE = Cause(name="KernelKilled", reason="It was killed.", remedy="Try again.", exit_code=137)
OFF = b'{"code": "1", "silent": false, "store_history": false}'


def asked(bench: Bench, content: bytes) -> socket.socket:
    """A client whose kernel took its request, and died over it."""
    client, kernel = bench.pair(SHELL)
    wire = request("execute_request", "41", content)
    client.sendall(wire)
    receive(kernel, len(wire))
    kernel.close()
    time.sleep(QUIET)
    return client


def test_code_off_the_record_gets_a_reply_from_the_dead(bench: Bench) -> None:
    """One that libraries take for the kernel's: signed, an answer, without a topic."""
    bench.start()
    client = asked(bench, OFF)
    bench.call(lambda: answer(bench.relay, CAUSE, "key"))
    delimiter, signature, *parts = frames(client.recv(65536))
    header, parent, _, content = map(json.loads, parts)
    assert delimiter == b"<IDS|MSG>"
    proof = hmac.new(b"key", b"".join(parts), digestmod=hashlib.sha256)
    assert signature == proof.hexdigest().encode()
    assert (header["msg_type"], parent["msg_id"]) == ("execute_reply", "41")
    assert (content["status"], content["ename"]) == ("error", "KernelKilled")


@pytest.mark.parametrize(
    "content",
    [
        b'{"code": "1", "store_history": true}',
        b"{}",
        b"[1]",
        b"no JSON",
        b'{"code": "' + b"x" * CAPTURE + b'", "store_history": false}',
    ],
    ids=["on the record", "unsaid", "a list", "nonsense", "longer than is looked at"],
)
def test_other_code_gets_none(bench: Bench, content: bytes) -> None:
    """People's clients see for themselves that a kernel died, and tell it in their way."""
    bench.start()
    client = asked(bench, content)
    bench.call(lambda: answer(bench.relay, CAUSE, "key"))
    assert silent(client)


def test_a_client_cut_off_in_a_reply_gets_no_other_in_its_middle(bench: Bench) -> None:
    """It would take that for the rest of the first."""
    bench.start()
    client, kernel = bench.pair(SHELL)
    wire = request("execute_request", "41", OFF)
    client.sendall(wire)
    receive(kernel, len(wire))
    kernel.sendall(MIDDLE)
    receive(client, len(MIDDLE))
    bench.call(lambda: answer(bench.relay, CAUSE, "key"))
    assert silent(client)


@pytest.mark.parametrize("off_record", [True, False])
def test_the_end_of_code_off_the_record_is_told(*, off_record: bool) -> None:
    """On iopub, after the error: who waits for a reply waits for that, too."""
    asked = Request(header=b"{}", kind="execute_request", number=1, off_record=off_record)
    topics: list[bytes] = []
    follower = Follower(
        FrameLimits(), lambda index, body: topics.append(body) if index == 0 else None
    )
    follower.feed(memoryview(greeting() + ready(b"XPUB") + compose(CAUSE, asked, "")))
    assert topics == ([b"error", b"status"] if off_record else [b"error"])
