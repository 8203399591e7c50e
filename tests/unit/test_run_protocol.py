"""What a run takes for a message, and what it makes of anything else."""

import asyncio
import json
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session
from nbclient.exceptions import CellExecutionComplete

from kernel_provider.run.model import KernelProtocolError
from kernel_provider.run.protocol import DEEPEST, WAITING, Channel, bound, check, judging


def message(kind: str = "stream", /, **content: Any) -> dict[str, Any]:
    """A message as jupyter_client hands it on."""
    return {
        "header": {"msg_id": "1", "msg_type": kind},
        "msg_id": "1",
        "msg_type": kind,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "buffers": [],
    }


def nested(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


DATA: dict[str, Any] = {"data": {"text/plain": "x"}, "metadata": {}}


@pytest.mark.parametrize(
    "fine",
    [
        message(name="stdout", text="x"),
        message("status", execution_state="idle"),
        message("display_data", **DATA, transient=None),
        message("display_data", **DATA, transient={"display_id": "a"}),
        message("execute_result", **DATA, execution_count=3),
        message("error", ename="E", evalue="", traceback=["a"]),
        message("execute_reply", status="aborted"),
        message("execute_reply", status="ok", execution_count=None, payload=[{}]),
        message("comm_msg", comm_id="1", data=nested(DEEPEST - 2) and {"a": nested(90)}),
        message("clear_output", wait=True),
        message("of_a_kind_that_is_to_come", anything=[1, 2.5, None, True, {"a": "b"}]),
    ],
)
def test_messages(fine: dict[str, Any]) -> None:
    """What kernels send, and what they may come to send."""
    check(fine)


@pytest.mark.parametrize(
    "foul",
    [
        {**message(name="stdout", text="x"), "header": 7},
        {**message(name="stdout", text="x"), "header": {}},
        {**message(name="stdout", text="x"), "parent_header": [1]},
        {**message(name="stdout", text="x"), "metadata": None},
        {**message(), "content": []},
        message(name="stdout", text=["x"]),
        message(name={}, text="x"),
        message("status"),
        message("status", execution_state=["idle"]),
        message("display_data", data=[], metadata={}),
        message("display_data", data={}),
        message("display_data", **DATA, transient="a"),
        message("execute_result", **DATA, execution_count="3"),
        message("error", ename="E", evalue="", traceback="abc"),
        message("error", ename="E", evalue="", traceback=[1]),
        message("error", ename=None, evalue="", traceback=[]),
        message("execute_reply"),
        message("execute_reply", status="error", ename=7),
        message("comm_msg", comm_id=["1"], data={}),
        message("comm_open", comm_id="1", data={}),
        message("display_data", data={"a": nested(DEEPEST)}, metadata={}),
        message(name="stdout", text="half a character: \ud800"),
    ],
)
def test_what_is_none(foul: dict[str, Any]) -> None:
    """Of another type, without what must be there, too deep, or not to be saved."""
    told: list[KernelProtocolError] = []
    with pytest.raises(KernelProtocolError), judging(told.append):
        check(foul)
    assert [error.exit_code for error in told] == [76]


def test_what_is_no_offence() -> None:
    """Signals of the client's own pass; an offence is told in one short line, once."""
    told: list[KernelProtocolError] = []
    with pytest.raises(CellExecutionComplete), judging(told.append):
        raise CellExecutionComplete
    with pytest.raises(KernelProtocolError), judging(told.append), judging(told.append):
        raise RecursionError("100 %\n" + "x" * 1000)
    assert len(told) == 1
    assert len(str(told[0])) < 400
    assert "%" not in str(told[0])


def test_sockets_take_no_more_than_they_must() -> None:
    """Those that are made from then on."""
    with zmq.Context() as context:
        bound(context, 1234)
        with context.socket(zmq.SUB) as made:
            assert made.getsockopt(zmq.MAXMSGSIZE) == 1234
            assert made.getsockopt(zmq.RCVHWM) == WAITING


# --- on the wire ----------------------------------------------------------------------

HEADER = {
    "msg_id": "1",
    "msg_type": "stream",
    "session": "s",
    "username": "u",
    "date": "2026-01-01T00:00:00Z",
    "version": "5.3",
}
CONTENT = {"name": "stdout", "text": "x"}


def wire(
    header: object = HEADER, parent: object = None, content: object = CONTENT, *, raw: bytes = b""
) -> list[bytes]:
    """Four parts that are signed later; ``raw`` goes in place of the content."""
    return [json.dumps(part).encode() for part in (header, parent or {}, {})] + [
        raw or json.dumps(content).encode()
    ]


FOUL_WIRE = {
    "two parts": wire()[:2],
    "header is a list": wire([1, 2]),
    "header without id": wire({k: v for k, v in HEADER.items() if k != "msg_id"}),
    "version is a word": wire({**HEADER, "version": "abc", "msg_type": ["a"]}),
    "date of no calendar": wire({**HEADER, "date": "9999-99-99T99:99:99Z", "msg_id": 4}),
    "parent is a number": wire(parent=7),
    "status without a state": wire({**HEADER, "msg_type": "status"}, content={}),
    "number of 5000 digits": wire(raw=b'{"name": "stdout", "text": ' + b"9" * 5000 + b"}"),
    "200,000 levels": wire(raw=b"[" * 200_000),
    "content is a text": wire(content="x"),
    "empty content": wire(raw=b" "),
}


async def heard(parts: list[bytes]) -> tuple[dict[str, Any] | None, list[KernelProtocolError]]:
    """What a channel makes of such a message."""
    session, told = Session(key=b"k"), list[KernelProtocolError]()
    with zmq.asyncio.Context() as context:
        near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        with near, far:
            near.bind("inproc://kernel")
            far.connect("inproc://kernel")
            channel = Channel(far, session)
            channel.report = told.append
            await near.send_multipart(parts)
            try:
                return await channel.get_msg(timeout=5), told
            except KernelProtocolError:
                return None, told


def signed(parts: list[bytes]) -> list[bytes]:
    """With the right key, which code in a kernel knows."""
    return [b"<IDS|MSG>", Session(key=b"k").sign(parts), *parts]


@pytest.mark.parametrize("parts", FOUL_WIRE.values(), ids=FOUL_WIRE)
def test_a_channel_tells_what_is_no_message(parts: list[bytes]) -> None:
    """Signed or not: one typed error, and nothing of Jupyter's libraries' own."""
    message, told = asyncio.run(heard(signed(parts)))
    assert message is None
    assert len(told) == 1


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"x"], id="no delimiter"),
        pytest.param([b"<IDS|MSG>"], id="only a delimiter"),
        pytest.param([b"<IDS|MSG>", b"bad", *wire()], id="bad signature"),
        pytest.param([b"<IDS|MSG>", b"", *wire()], id="no signature"),
        pytest.param([b"<IDS|MSG>", b"\xff", *wire()], id="a signature of other bytes"),
    ],
)
def test_a_channel_tells_what_is_not_signed(parts: list[bytes]) -> None:
    """Whoever does not know the key, or how to use it."""
    message, told = asyncio.run(heard(parts or [b""]))
    assert message is None
    assert len(told) == 1


def test_a_channel_hands_messages_on() -> None:
    """The control: the same with nothing wrong."""
    message, told = asyncio.run(heard(signed(wire())))
    assert message is not None
    assert message["content"] == CONTENT
    assert not told
