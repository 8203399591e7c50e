import itertools
import socket
import time
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_provider.warden.zmtp import (
    CAPTURE,
    COMMAND,
    GREETING_SIZE,
    LONG,
    MORE,
    Follower,
    FrameLimits,
    Violation,
    frame,
    greeting,
    is_subscription,
    message,
    ready,
)

HANDSHAKE = greeting() + ready(b"ROUTER")
SMALL = FrameLimits(parts=4, message=2000, command=100)

Event = tuple[int, bytes]


def following() -> Follower:
    """A follower of small limits after the handshake."""
    follower = Follower(SMALL)
    follower.feed(memoryview(HANDSHAKE))
    return follower


def cut(stream: bytes, places: list[int]) -> list[memoryview]:
    """Split a stream at some places, which may repeat or lie beyond its end."""
    edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [memoryview(stream[a:b]) for a, b in itertools.pairwise(edges)]


def events(chunks: list[memoryview]) -> tuple[list[Event], int, bool]:
    """Frames, the number of messages, and whether the stream stands between two."""
    seen: list[Event] = []
    follower = Follower(FrameLimits(), lambda index, body: seen.append((index, body)))
    for chunk in chunks:
        follower.feed(chunk)
    return seen, follower.messages, follower.between


bodies = st.one_of(st.binary(max_size=300), st.sampled_from([b"", b"x" * 255, b"x" * 256]))
messages = st.lists(st.lists(bodies, min_size=1, max_size=5), max_size=5)
places = st.lists(st.integers(min_value=0, max_value=4000), max_size=30)


@settings(deadline=None)  # the machine is shared
@given(messages=messages, places=places, unfinished=st.booleans())
def test_chunks_do_not_matter(
    messages: list[list[bytes]], places: list[int], *, unfinished: bool
) -> None:
    """However a stream is cut into chunks, the same frames and messages are seen."""
    stream = HANDSHAKE + b"".join(message(parts) for parts in messages)
    stream += frame(b"begun", flags=MORE) * unfinished
    expected = [
        (-1, ready(b"ROUTER")[2:]),
        *((i, body) for parts in messages for i, body in enumerate(parts)),
        *[(0, b"begun")] * unfinished,
    ]
    assert events(cut(stream, places)) == (expected, len(messages), not unfinished)
    by_byte = [memoryview(stream[i : i + 1]) for i in range(len(stream))]
    assert events(by_byte) == (expected, len(messages), not unfinished)


@settings(deadline=None)  # the machine is shared
@given(data=st.binary(max_size=500), places=places)
def test_garbage_is_judged_alike(data: bytes, places: list[int]) -> None:
    """What breaks the rules breaks them however it is cut, and nothing else is raised."""

    def verdict(chunks: list[memoryview]) -> str:
        follower = following()
        try:
            for chunk in chunks:
                follower.feed(chunk)
        except Violation as offence:
            assert not follower.between
            return str(offence)
        return ""

    assert verdict(cut(data, places)) == verdict([memoryview(data)])


@settings(deadline=None)  # the machine is shared
@given(
    data=st.one_of(
        st.binary(max_size=500),
        st.lists(
            st.sampled_from([b"\0\0", b"\1\0", b"\0\3abc", b"\1\xff" + bytes(255)]), max_size=60
        ).map(b"".join),
    ),
    places=places,
)
def test_frames_that_nobody_looks_at_are_counted_alike(data: bytes, places: list[int]) -> None:
    """The quick way for short frames finds the messages and offences that the other finds."""

    def verdict(follower: Follower) -> tuple[str, int, bool]:
        follower.feed(memoryview(HANDSHAKE))
        offence = ""
        try:
            for chunk in cut(data, places):
                follower.feed(chunk)
        except Violation as error:
            offence = str(error)
        return offence, follower.messages, follower.between

    assert verdict(Follower(SMALL)) == verdict(Follower(SMALL, lambda _index, _body: None))


def test_commands_alone_can_be_looked_at() -> None:
    """Of messages nothing is kept then; who looks may call a command an offence."""
    seen: list[bytes] = []

    def look(body: bytes) -> None:
        if body == b"stop":
            raise Violation(body.decode())
        seen.append(body)

    follower = Follower(FrameLimits(), on_command=look)
    ping = frame(b"\x04PING\0\0", flags=COMMAND)
    stream = HANDSHAKE + message([b"x" * 300, b""]) + ping + message([b"y"])
    feed_in_steps(follower, stream, 7)
    assert seen == [ready(b"ROUTER")[2:], ping[2:]]
    assert follower.messages == 2
    with pytest.raises(Violation, match="stop"):
        follower.feed(memoryview(frame(b"stop", flags=COMMAND)))
    assert not follower.between


@pytest.mark.parametrize("flags", [0, MORE, LONG])
def test_no_message_before_the_end_of_the_handshake(flags: int) -> None:
    """It is an offence by its first byte and length, as soon as those have come."""
    follower = Follower(FrameLimits())
    follower.feed(memoryview(greeting()))
    with pytest.raises(Violation, match="handshake"):
        follower.feed(memoryview(bytes([flags]) + bytes(8)))


def test_between_messages_only_after_the_handshake_and_at_a_whole_message() -> None:
    """Something may be inserted at exactly the ends of the handshake and of messages."""
    parts = [b"a", b"", b"b" * 300]
    stream = HANDSHAKE + message(parts) + message(parts)
    follower = Follower(FrameLimits())
    ends = []
    for at in range(len(stream)):
        follower.feed(memoryview(stream[at : at + 1]))
        if follower.between:
            ends.append(at + 1)
    whole = len(message(parts))
    assert ends == [len(HANDSHAKE), len(HANDSHAKE) + whole, len(stream)]


@pytest.mark.parametrize(
    ("stream", "offence"),
    [
        (frame(b"x" * 2001), "message"),
        (bytes([LONG]) + (1 << 40).to_bytes(8, "big"), "message"),
        (bytes([LONG | MORE]) + b"\xff" * 8, "message"),
        (frame(b"", flags=MORE) * 4 + frame(b""), "parts"),
        (message([b"x" * 1000, b"x" * 1000, b"x"]), "message"),
        (frame(b"x" * 101, flags=COMMAND), "command"),
        (bytes([COMMAND | LONG]) + (1 << 40).to_bytes(8, "big"), "command"),
        (frame(b"x", flags=COMMAND | MORE), "command"),
        (frame(b"x", flags=MORE) + frame(b"x", flags=COMMAND), "command"),
        (b"\x08", "flags"),
        (b"\x80\x01x", "flags"),
    ],
)
def test_limits(stream: bytes, offence: str) -> None:
    """One step over a limit is an offence, told before the frame's body has come."""
    with pytest.raises(Violation, match=offence):
        following().feed(memoryview(stream))


def test_limits_reached_are_no_offence() -> None:
    """Everything exactly at its limit goes through, message after message."""
    follower = following()
    for stream in (
        message([b"x" * 1000, b"x" * 1000]),
        message([b""] * 4),
        frame(b"x" * 100, flags=COMMAND),
    ):
        follower.feed(memoryview(stream * 3))
    assert follower.messages == 6
    assert follower.between


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((0, b"\x01"), id="unversioned, by its first byte"),
        pytest.param((9, b"\x7e"), id="unversioned, by its tenth byte"),
        pytest.param((10, b"\x00"), id="ZMTP 1"),
        pytest.param((10, b"\x01"), id="ZMTP 2"),
        pytest.param((10, b"\x04"), id="ZMTP 4"),
        pytest.param((12, b"PLAIN"), id="another mechanism"),
        pytest.param((31, b"x"), id="more after the mechanism"),
    ],
)
def test_greeting(change: tuple[int, bytes]) -> None:
    """Only ZMTP 3 without encryption is followed.

    libzmq would go back with a peer to an older framing, where a frame of 2**40 bytes
    fits into what is a greeting here.
    """
    place, new = change
    bad = greeting()[:place] + new + greeting()[place + len(new) :]
    assert len(bad) == GREETING_SIZE
    for step in (1, GREETING_SIZE):
        follower = Follower(FrameLimits())
        with pytest.raises(Violation, match="greeting"):
            feed_in_steps(follower, bad, step)
        assert not follower.between


def feed_in_steps(follower: Follower, data: bytes, step: int) -> None:
    """So many bytes at once."""
    for at in range(0, len(data), step):
        follower.feed(memoryview(data[at : at + step]))


def test_large_frames_are_followed_without_being_kept() -> None:
    """Of a looked-at frame only its beginning is kept, of others nothing."""
    seen: list[Event] = []
    follower = Follower(FrameLimits(), lambda index, body: seen.append((index, body)))
    follower.feed(memoryview(HANDSHAKE))
    chunk = memoryview(bytes(1 << 20))
    follower.feed(memoryview(bytes([LONG]) + (64 << 20).to_bytes(8, "big")))
    for _ in range(64):
        follower.feed(chunk)
    assert [(index, len(body)) for index, body in seen[1:]] == [(0, CAPTURE)]
    assert follower.between


def test_subscriptions_of_both_versions() -> None:
    """A subscription is a message in ZMTP 3.0 and a command in 3.1."""
    assert is_subscription(0, b"\x01")
    assert is_subscription(-1, b"\x09SUBSCRIBE")
    assert not is_subscription(0, b"\x00")
    assert not is_subscription(1, b"\x01")
    assert not is_subscription(-1, b"\x06CANCEL")
    assert not is_subscription(-1, b"\x05READY")


def test_with_libzmq(tmp_path: Path) -> None:
    """A real libzmq takes what we write, and we follow what it writes."""
    parts = [b"first", b"", b"x" * 70_000]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{tmp_path}/s")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{tmp_path}/s")
            peer.settimeout(5)
            peer.sendall(greeting())
            seen: list[Event] = []
            follower = Follower(FrameLimits(), lambda index, body: seen.append((index, body)))
            while not follower.greeted:
                follower.feed(memoryview(peer.recv(1000)))
            peer.sendall(ready(b"DEALER") + message(parts))
            assert router.poll(5000)
            identity, *received = router.recv_multipart()
            assert received == parts
            router.send_multipart([identity, *parts])
            deadline = time.monotonic() + 5
            while not follower.messages and time.monotonic() < deadline:
                follower.feed(memoryview(peer.recv(1000)))
    assert follower.between
    assert [event for event in seen if event[0] >= 0] == [
        (0, b"first"),
        (1, b""),
        (2, b"x" * CAPTURE),
    ]


def test_libzmq_would_follow_a_downgrade(tmp_path: Path) -> None:
    """The control for the greeting's rule: libzmq does speak ZMTP 2 when asked to."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.linger = 0
        pull.bind(f"ipc://{tmp_path}/s")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{tmp_path}/s")
            old = b"\xff" + bytes(8) + b"\x7f" + b"\x01" + b"\x08" + b"\0\0" + b"\0\x04down"
            peer.sendall(old)
            assert pull.poll(5000)
            assert pull.recv() == b"down"
