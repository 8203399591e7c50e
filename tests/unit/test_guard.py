"""What a kernel may say beside its messages, and what libzmq would make of the rest."""

import socket
from pathlib import Path

import pytest
import zmq
from relays import ended, receive

from kernel_provider.warden.guard import COMMANDS, KernelCommands
from kernel_provider.warden.rendezvous import CHANNELS
from kernel_provider.warden.zmtp import COMMAND, Violation, frame, greeting, ready


def body(socket_type: bytes) -> bytes:
    """A READY without its head."""
    return ready(socket_type)[2:]


def listening(channel: str = "shell", *, now: float = 0.0) -> KernelCommands:
    """A guard after an honest READY, at a time that stands still."""
    guard = KernelCommands(channel, clock=lambda: now)
    guard(body(b"XPUB" if channel == "iopub" else b"ROUTER"))
    return guard


@pytest.mark.parametrize(
    ("channel", "types"),
    [
        ("shell", {b"ROUTER"}),
        ("control", {b"ROUTER"}),
        ("stdin", {b"ROUTER"}),
        ("iopub", {b"PUB", b"XPUB"}),
        ("hb", {b"ROUTER", b"REP"}),
    ],
)
def test_socket_types(channel: str, types: set[bytes]) -> None:
    """Only what a channel's clients can talk to, exactly as it is spelled."""
    assert channel in CHANNELS
    every = [b"REQ", b"REP", b"DEALER", b"ROUTER", b"PUB", b"XPUB", b"SUB", b"XSUB", b"PUSH"]
    for kind in [*every, b"PULL", b"PAIR", b"", b"router", b"ROUTER\0", b"ROUTER "]:
        guard = KernelCommands(channel)
        if kind in types:
            guard(body(kind))
            continue
        with pytest.raises(Violation, match="of type"):
            guard(body(kind))


def test_what_libzmq_says_is_understood() -> None:
    """A ROUTER's READY names its identity, too; other properties are nobody's business."""
    identity = b"\x08Identity" + (0).to_bytes(4, "big")
    other = b"\x06X-Test" + (3).to_bytes(4, "big") + b"abc"
    KernelCommands("shell")(body(b"ROUTER") + identity + other)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x05ERROR\x03400", id="an error"),
        pytest.param(b"\x04PING\0\0", id="a keep-alive"),
        pytest.param(b"\x05ready", id="in lower case"),
        pytest.param(b"\x05READY", id="no type"),
        pytest.param(body(b"ROUTER") + body(b"ROUTER")[6:], id="two types"),
        pytest.param(body(b"ROUTER") + body(b"PUB")[6:].lower(), id="two, one in lower case"),
        pytest.param(body(b"ROUTER")[:-1], id="a value that is cut off"),
        pytest.param(body(b"ROUTER") + b"\x08Ident", id="a name that is cut off"),
        pytest.param(body(b"ROUTER") + b"\x01x\0\0", id="a length that is cut off"),
        pytest.param(body(b"ROUTER") + b"\x01x\xff\xff\xff\xff", id="a value of 4 GB"),
    ],
)
def test_first_commands_that_are_none(said: bytes) -> None:
    """The first command is a READY that can be read, or the kernel is stopped."""
    with pytest.raises(Violation):
        KernelCommands("shell")(said)


@pytest.mark.parametrize(
    ("said", "fine"),
    [
        (b"\x04PING\0\0", True),
        (b"\x04PING\0\0" + b"x" * 16, True),
        (b"\x04PING\0\0" + b"x" * 17, False),
        (b"\x04PING\0", False),
        (b"\x04PONG", True),
        (b"\x04PONG" + b"x" * 16, True),
        (b"\x04PONG" + b"x" * 17, False),
        (b"\x09SUBSCRIBE", False),
        (b"\x06CANCEL", False),
        (body(b"ROUTER"), False),
        (b"\x05ERROR\x03400", False),
        (b"\x04ping\0\0", False),
        (b"", False),
        (b"\xff", False),
    ],
)
@pytest.mark.parametrize("channel", CHANNELS)
def test_later_commands(channel: str, said: bytes, *, fine: bool) -> None:
    """Keep-alives of the lengths that libzmq reads, and nothing else."""
    guard = listening(channel)
    if fine:
        guard(said)
        return
    with pytest.raises(Violation, match="not a kernel's to give"):
        guard(said)


def test_keep_alives_are_few() -> None:
    """A client that asks ten times a second is answered for ever; a flood is an offence."""
    now = 0.0
    guard = KernelCommands("hb", clock=lambda: now)
    guard(body(b"ROUTER"))
    for _ in range(1000):
        guard(b"\x04PONG")
        now += 0.1
    for _ in range(int(COMMANDS[1])):
        guard(b"\x04PONG")
    with pytest.raises(Violation, match="keep a connection alive"):
        guard(b"\x04PONG")


@pytest.mark.parametrize(
    ("said", "attempts"),
    [
        pytest.param(ready(b"PUB")[:9], 2, id="merely hung up on"),
        pytest.param(ready(b"PUSH"), 1, id="wrong type"),
        pytest.param(frame(b"\x05ERROR\x03400", flags=COMMAND), 1, id="error"),
        pytest.param(frame(b"\x05READY\x0bSocket", flags=COMMAND), 1, id="unreadable"),
    ],
)
def test_libzmq_would_be_deaf_for_good(tmp_path: Path, said: bytes, attempts: int) -> None:
    """The control for the guard: a client that hears this never connects again.

    One that is hung up on in the middle of a handshake does, within 0.1 s.
    """
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, zmq.Context() as context:
        listener.bind(str(path))
        listener.listen()
        with context.socket(zmq.SUB) as sub:
            sub.linger = 0
            sub.connect(f"ipc://{path}")
            listener.settimeout(5)
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                peer.sendall(greeting())
                assert receive(peer, 64 + len(ready(b"SUB")))
                peer.sendall(said)
                assert attempts == 2 or ended(peer)
            listener.settimeout(5 if attempts == 2 else 0.5)
            if attempts == 2:
                listener.accept()[0].close()
            else:
                with pytest.raises(TimeoutError):
                    listener.accept()
