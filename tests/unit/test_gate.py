"""What subscribers see of a kernel that says too much: by hand, and cut up anyhow."""

import json
import random
from collections.abc import Iterable

import pytest
from relays import note

from kernel_provider.warden.gate import RESERVE, SMALL, Gate
from kernel_provider.warden.output import GRACE, OVERHEAD, Meter, Output, OutputLimits
from kernel_provider.warden.pair import Request
from kernel_provider.warden.zmtp import (
    COMMAND,
    LONG,
    MORE,
    Follower,
    FrameLimits,
    Violation,
    frame,
    greeting,
    message,
    ready,
)

HANDSHAKE = greeting() + ready(b"XPUB")
LIMIT = 1 << 20


def said(kind: str, text: str = "", *, buffers: Iterable[bytes] = ()) -> bytes:
    """An iopub message as ipykernel sends it."""
    header = json.dumps({"msg_type": kind, "msg_id": "m", "session": "s"}).encode()
    content = json.dumps({"text": text}).encode()
    front = [f"kernel.1.{kind}".encode(), b"<IDS|MSG>", b"signature"]
    return message([*front, header, b"{}", b"{}", content, *buffers])


def stream(name: str, text: str) -> bytes:
    """What ipykernel sends when a program has printed."""
    header = json.dumps({"msg_type": "stream", "msg_id": "m", "session": "s"}).encode()
    content = json.dumps({"name": name, "text": text}, ensure_ascii=False).encode()
    return message([b"stream." + name.encode(), b"<IDS|MSG>", b"s", header, b"{}", b"{}", content])


IDLE, BUSY = said("status", "idle"), said("status", "busy")
PRINT = said("stream", "x" * 1000)


class Subscriber:
    """A gate, and what it lets through; time stands still until it is moved."""

    def __init__(self, *, limit: int = LIMIT, rate: int = 1000) -> None:
        self.now = 0.0
        self.done: list[str] = []
        self.output = Output(
            OutputLimits(request=limit, rate=rate, messages=1000, frames=FrameLimits()),
            interrupt=lambda: self.done.append("interrupt"),
            stop=self.done.append,
            sign=lambda name, text, _: note(text, name),
            clock=lambda: self.now,
        )
        self.follower = Follower(FrameLimits())
        self.gate = Gate(self.follower, self.output)
        self.wire = b""
        self.requests = 0
        self.ask()
        self.hear(HANDSHAKE)

    def ask(self) -> None:
        """A client has a cell executed."""
        self.requests += 1
        request = Request(header=b"{}", kind="execute_request", number=self.requests)
        self.output.begin(request)

    def hear(self, data: bytes, *, step: int = 1 << 18) -> None:
        """The kernel says so much, and it comes in pieces of ``step``."""
        for at in range(0, len(data), step):
            self.wire += self.gate.take(memoryview(data[at : at + step]))

    @property
    def came(self) -> list[bytes]:
        """The messages that came whole, and none that did not."""
        found, at, begun = [], len(HANDSHAKE), len(HANDSHAKE)
        while at < len(self.wire):
            flags = self.wire[at]
            width = 9 if flags & LONG else 2
            at += width + int.from_bytes(self.wire[at + 1 : at + width], "big")
            if not flags & MORE:
                found += [self.wire[begun:at]] if not flags & COMMAND else []
                begun = at
        assert (at == begun == len(self.wire)) == self.gate.between
        return found if at == begun == len(self.wire) else found[:-1]

    @property
    def notes(self) -> list[str]:
        """What the relay itself said."""
        return [c.rpartition(b"\nexec")[2].decode() for c in self.came if b"\nexec" in c]


def is_note(wire: bytes) -> bool:
    """Whether the relay made it."""
    return wire[:6] == note("")[:6]


SHORT, LONG_ONE = said("stream", "x" * 2000), said("stream", "y" * 100_000)
WORDS = said("stream", "of the relay's own")


@pytest.mark.parametrize("step", [777, 1 << 16, 1 << 18])
@pytest.mark.parametrize("each", [SHORT, LONG_ONE], ids=["short", "long"])
@pytest.mark.parametrize("heard", [0, 1000, len(LONG_ONE), len(LONG_ONE) * 3 // 2])
def test_the_relays_own_words_wait_for_one_message_at_most(
    each: bytes, step: int, heard: int
) -> None:
    """However much more the kernel says, and wherever what is read ends."""
    client = Subscriber()
    data = each * 6
    client.hear(data[:heard], step=step)
    client.wire += client.gate.say(WORDS)
    client.hear(data[heard : heard + step], step=step)
    client.hear(data[heard + step :], step=step)
    assert sorted(client.came) == sorted([*[each] * 6, WORDS])
    assert client.came.index(WORDS) <= heard // len(each) + 1


@pytest.mark.parametrize("step", [1000, 1 << 18])
def test_the_relays_own_words_pass_a_shut_gate(step: int) -> None:
    """What is left out there is the kernel's."""
    client = Subscriber(limit=150_000)
    client.hear(LONG_ONE + LONG_ONE[:70_000], step=step)
    client.wire += client.gate.say(WORDS)
    client.hear(LONG_ONE[70_000:] + SHORT * 100, step=step)
    assert client.came.index(WORDS) <= 2
    assert client.came.count(SHORT) < 100


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 18])
def test_within_its_limit_everything_passes(step: int) -> None:
    """As it came, whatever the pieces; nothing is kept waiting that is whole."""
    client = Subscriber()
    data = IDLE + PRINT * 20 + frame(b"\x04PONG", flags=COMMAND) + said("stream", "y" * 90_000)
    client.hear(data, step=step)
    assert client.wire == HANDSHAKE + data
    assert client.gate.between


@pytest.mark.parametrize("step", [977, 1 << 16, 1 << 18])
def test_start_and_end_come_with_notes_between(step: int) -> None:
    """The first MB, what was left out, the last 64 KB, and that the cell is over."""
    client = Subscriber()
    numbered = [said("stream", f"{number:05d}" + "x" * 1000) for number in range(4000)]
    client.hear(b"".join(numbered) + IDLE, step=step)
    came = client.came
    first, last = (place for place, c in enumerate(came) if is_note(c))
    assert came[:first] == numbered[:first]
    assert LIMIT * 0.7 < sum(map(len, came[:first])) <= LIMIT + (1 << 18)
    assert last == first + 1
    assert came[-1] == IDLE
    end = came[last + 1 : -1]
    assert end == numbered[-len(end) :]
    assert SMALL - 2000 < sum(map(len, end)) <= SMALL
    assert 'raise "output_limit"' in client.notes[0]
    missing = sum(map(len, numbered)) - sum(map(len, came[:first])) - sum(map(len, end))
    assert f"{missing / 2**20:.1f} MB of output were left out here" in client.notes[1]


def test_a_message_that_is_too_long_is_left_out_before_it_begins() -> None:
    """The client gets nothing of it, so nothing has to be mended; what follows comes."""
    client = Subscriber()
    client.hear(PRINT + said("display_data", "x" * (2 << 20)) + PRINT + IDLE, step=5000)
    assert client.came[0] == PRINT
    assert client.came[-2:] == [PRINT, IDLE]
    assert len(client.notes) == 2
    assert len(client.wire) < 10_000


@pytest.mark.parametrize("step", [5000, 70_000, 1 << 18])
def test_the_end_of_a_text_in_one_long_message(step: int) -> None:
    """Kernels gather what is printed: the last 32 KB of it are shown, whatever is in there."""
    client = Subscriber()
    text = "".join(f'{number} é \\ " \n' for number in range(200_000))
    for data in (PRINT + stream("stdout", text), stream("stderr", text)):
        client.wire = HANDSHAKE
        client.hear(data + IDLE, step=step)
        (end,) = (c for c in client.came if b"199999" in c)
        shown = end.split(b"\0", 1)[1][8:].decode()
        assert text.endswith(shown)
        assert len(shown) > 25_000


def test_a_long_message_that_fits_comes_whole() -> None:
    """However the pieces fall: it is measured when its size is told."""
    long = said("display_data", "x" * (LIMIT - 5000))
    for step in (4096, 99_999):
        client = Subscriber()
        client.hear(long, step=step)
        assert client.came == [long]


def test_no_forged_idle_makes_room() -> None:
    """Neither does any other word of the kernel's; silence does, slowly."""
    client = Subscriber()
    client.hear((PRINT + IDLE + BUSY) * 6000)
    assert len(client.wire) < LIMIT + RESERVE[1] + (1 << 18)
    before = len(client.wire)
    client.hear((PRINT + IDLE + BUSY) * 300)
    assert len(client.wire) == before, "not even these, without end"
    client.now += LIMIT / 1000
    client.hear(PRINT)
    assert client.came[-1] == PRINT


def test_a_new_request_makes_room() -> None:
    """In the middle of a flood, too, and for the flood as well: once."""
    client = Subscriber()
    client.hear(PRINT * 3000, step=999)
    before = len(client.wire)
    client.ask()
    client.hear(PRINT * 3000, step=999)
    assert LIMIT * 0.7 < len(client.wire) - before < LIMIT * 1.3
    assert all(c == PRINT for c in client.came if not is_note(c))


def test_many_small_messages_count_as_much_as_few_large_ones() -> None:
    """Reading each takes a client as long as 256 bytes."""
    client = Subscriber()
    tiny = message([b""] * 6)
    client.hear(tiny * 20_000, step=4096)
    passed = sum(c == tiny for c in client.came)
    assert passed < 1.1 * LIMIT / (OVERHEAD + len(tiny)) + SMALL / len(tiny)


def test_one_that_goes_on_is_interrupted_and_then_stopped() -> None:
    """Each once; one that heeds the interrupt is left alone."""
    client = Subscriber()
    client.hear(PRINT * 1200)
    assert client.done == []
    client.hear(PRINT * 1200)
    assert client.done == ["interrupt"]
    client.now += GRACE - 1
    client.hear(PRINT * 1200)
    assert client.done == ["interrupt"], "it had no time yet"
    client.hear(IDLE)
    assert "and the kernel was interrupted" in client.notes[-1]
    client.now += 2
    client.hear(IDLE)
    assert client.done == ["interrupt"]
    client.hear(PRINT * 100)
    client.hear(PRINT * 100)
    assert client.done == ["interrupt", "went on after an interrupt"]


def test_what_was_kept_is_there_for_last_words() -> None:
    """When the kernel dies over it, its end is shown; also after half a message."""
    client = Subscriber()
    client.hear(PRINT * 3000 + said("stream", "the end") + PRINT[:500])
    assert client.gate.between
    rest = client.gate.rest()
    assert is_note(rest)
    assert rest.endswith(said("stream", "the end"))
    assert client.gate.rest() == b""


def test_buffers_that_follow_come_with_what_they_belong_to() -> None:
    """They can't be left out once that has begun; too many of them are the kernel's end."""
    client = Subscriber()
    long = said("comm_msg", "x" * 70_000, buffers=[bytes(1 << 20), bytes(1 << 20)])
    client.hear(long + PRINT * 10 + IDLE, step=10_000)
    assert client.came[0] == long
    assert client.came[-1] == IDLE
    assert client.done == ["sent more of it in buffers, which can't be left out"]
    fitting = Subscriber()
    fitting.hear(said("comm_msg", "x" * 70_000, buffers=[bytes(400_000)] * 2), step=10_000)
    assert fitting.done == []


def test_what_is_no_message_is_left_out_too() -> None:
    """A shut gate takes nonsense apart, and keeps none of it for long."""
    client = Subscriber()
    client.hear(PRINT * 2000)
    nested = b"[" * 60_000
    for parts in ([b"<IDS|MSG>", b"", nested], [nested], [b"<IDS|MSG>"], [b""] * 900):
        client.hear(message(parts) * 3)
    client.hear(frame(b"\x04PONG", flags=COMMAND) + IDLE)
    assert client.wire.endswith(IDLE)
    assert frame(b"\x04PONG", flags=COMMAND) in client.wire


def test_a_violation_shows_up_in_a_shut_gate() -> None:
    """Limits on frames hold there as everywhere, and the stream stands between messages."""
    client = Subscriber()
    client.hear(PRINT * 2000)
    with pytest.raises(Violation):
        client.hear(frame(b"", flags=MORE) * 3 + bytes([LONG]) + (1 << 40).to_bytes(8, "big"))
    assert client.gate.between


def test_any_stream_stays_well_formed() -> None:
    """Random messages in random pieces: what comes is whole messages, in their order."""
    chance = random.Random(7)  # noqa: S311
    for _ in range(10):
        client = Subscriber(limit=chance.choice([100_000, LIMIT]))
        sent = []
        for number in range(200):
            kind = chance.choice(["stream", "stream", "status", "error", "display_data"])
            size = chance.choice([0, 10, 300, 5000, 70_000, 200_000])
            sent.append(said(kind, f"{number}:" + "x" * size))
            if chance.random() < 0.02:
                client.ask()
            client.hear(sent[-1], step=chance.choice([2000, 30_000, 70_000]))
            client.now += chance.choice([0, 0, 0.5, 30])
        own = [c for c in client.came if not is_note(c)]
        places = [sent.index(c) for c in own]
        assert places == sorted(set(places))
        assert client.notes


def test_replies_are_metered_and_renewed() -> None:
    """So many bytes for each request, and what a rate brings."""
    client = Subscriber()
    meter = Meter(client.output)
    assert meter.take(size=LIMIT - OVERHEAD, messages=1) == 0
    assert meter.take(size=1, messages=0) == -1
    client.now += 1
    assert meter.level() == 999
    client.ask()
    assert meter.level() == LIMIT
