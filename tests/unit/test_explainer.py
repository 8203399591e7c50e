"""What stands in for a kernel that could not be restarted, as its clients meet it."""

import queue
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from kernels import run
from launches import hears

from kernel_provider.errors import ImageMissingError
from kernel_provider.explainer import Explainer
from kernel_provider.outer import Outer
from kernel_provider.warden.rendezvous import CHANNELS

KEY = "the key of a test"
ERROR = ImageMissingError(image="lost:1")
LINES = [
    "\x1b[0;31mImageMissingError\x1b[0m: the image lost:1 is not on this machine",
    "Fix: run: executor-ml build",
    "Nothing was run: the kernel could not be restarted. Mend that, and restart it.",
]


@pytest.fixture
def outer() -> Iterator[Outer]:
    """Outer sockets of a session, with a path that is short enough."""
    made = Outer.below(f"/tmp/exu-{secrets.token_hex(3)}")
    yield made
    made.close()
    assert not Path(made.folder).exists()


@pytest.fixture
def explainer(outer: Outer) -> Iterator[Explainer]:
    """One that serves them."""
    made = Explainer(outer.listeners, key=KEY, error=ERROR)
    yield made
    made.stop()


@contextmanager
def connected(outer: Outer, key: str = KEY) -> Iterator[BlockingKernelClient]:
    """A client that was connected, and is heard as soon as somebody serves."""
    client = BlockingKernelClient(transport="ipc", ip=outer.ip)
    for number, name in enumerate(CHANNELS, start=1):
        setattr(client, f"{name}_port", number)
    client.session.key = key.encode()
    client.start_channels()
    try:
        yield client
    finally:
        client.stop_channels()


def ready(client: BlockingKernelClient) -> BlockingKernelClient:
    """Ask until it is heard on iopub, too."""
    client.kernel_info(reply=True, timeout=10)
    while not hears(client):
        client.kernel_info(reply=True, timeout=10)
    return client


def test_every_cell_tells_the_reason_and_the_remedy(outer: Outer, explainer: Explainer) -> None:
    """As an error of the cell's own, and in the reply; nothing of the code is run."""
    assert not explainer.over
    with connected(outer) as client:
        ready(client)
        for _ in range(2):
            outcome = run(client, f"open('{outer.folder}/made', 'w')", timeout=10)
            assert outcome.status == "error"
            assert outcome.error["ename"] == "ImageMissingError"
            assert outcome.error["evalue"] == str(ERROR)
            assert outcome.error["traceback"] == LINES
            states = [
                m["content"]["execution_state"]
                for m in outcome.messages[:: len(outcome.messages) - 1]
            ]
            assert states == ["busy", "idle"]
        assert not Path(outer.folder, "made").exists()
        reply = client.execute("1", silent=True, reply=True, timeout=10)
        assert reply["content"]["ename"] == "ImageMissingError"


@pytest.mark.usefixtures("explainer")
def test_whatever_else_is_asked_is_answered(outer: Outer) -> None:
    """A front end that waits for an answer would wait for ever."""
    with connected(outer) as client:
        info = ready(client).kernel_info(reply=True, timeout=10)["content"]
        assert (info["status"], info["language_info"]["name"]) == ("ok", "python")
        asked: list[tuple[Any, dict[str, Any]]] = [
            (client.complete, {"code": "impo"}),
            (client.inspect, {"code": "print"}),
            (client.history, {}),
            (client.comm_info, {}),
        ]
        for ask, words in asked:
            assert ask(reply=True, timeout=10, **words)["content"]["status"] == "ok"
        client.is_complete("x =")
        assert client.get_shell_msg(timeout=10)["content"] == {"status": "unknown"}
        for kind, status in (("interrupt_request", "ok"), ("debug_request", "error")):
            client.control_channel.send(client.session.msg(kind, {}))
            reply = client.get_control_msg(timeout=10)
            assert reply["msg_type"] == kind.replace("request", "reply")
            assert reply["content"]["status"] == status
        deadline = time.monotonic() + 10
        client.hb_channel.unpause()
        while not client.hb_channel.is_beating():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_shutdown_is_heard(outer: Outer, explainer: Explainer) -> None:
    """As before a restart: answered, and then it counts as ended."""
    with connected(outer) as client:
        reply = ready(client).shutdown(restart=True, reply=True, timeout=10)
        assert reply["content"] == {"status": "ok", "restart": True}
    deadline = time.monotonic() + 5
    while not explainer.over:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_has_not_the_key_hears_nothing(outer: Outer, explainer: Explainer) -> None:
    """Nor does nonsense end it."""
    with connected(outer, key="another") as stranger, connected(outer) as client:
        stranger.kernel_info()
        stranger.shell_channel.socket.send_multipart([b"nonsense"])
        stranger.shell_channel.socket.send_multipart([b"<IDS|MSG>", b"", b"{", b"", b"", b""])
        ready(client)
        with pytest.raises(queue.Empty):
            stranger.get_shell_msg(timeout=0.3)
        assert not explainer.over


def test_clients_stay_for_the_next(outer: Outer, explainer: Explainer) -> None:
    """When it stops, whoever serves the sockets next has its clients."""
    with connected(outer) as client:
        ready(client)
        explainer.stop()
        explainer.stop()
        client.execute("1")
        other = Explainer(outer.listeners, key=KEY, error=ImageMissingError(image="other:2"))
        try:
            told = client.get_shell_msg(timeout=10)["content"]["evalue"]
            assert "other:2" in told
        finally:
            other.stop()
    shutil.rmtree(outer.folder, ignore_errors=True)
