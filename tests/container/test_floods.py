"""A real Jupyter server beside kernels that flood it: memory, answers, other kernels."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from floods import DEAF, GONE, READS, Toll, flooded
from kernels import MINE
from servers import Server, serving

from kernel_provider import cli

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

SECONDS = float(os.environ.get("EXECUTOR_ML_FLOOD_SECONDS", "10"))
SHORT = 2.0
GROWN, ANSWERED, SLOWER = 100.0, 0.5, 2.0
"""MB that a server may grow, seconds of its answers, and how much slower others may be."""

SOCKETS = (
    MINE
    + """
def spin(s, wire):
    s.setblocking(True)
    while True:
        s.sendall(wire)
def flood(channel, wire):
    for s in mine(channel):
        threading.Thread(target=spin, args=(s, wire), daemon=True).start()
    time.sleep(100)
def framed(*parts):
    return b"".join(
        bytes([3 if n < len(parts) - 1 else 2]) + len(p).to_bytes(8, "big") + p
        for n, p in enumerate(parts))
"""
)
TINY = "(b'\\1\\2xx' * 6 + b'\\0\\2xx') * 1000"
JUNK = "framed(b't', b'<IDS|MSG>', b'', b'{}', b'{}', b'{}', bytes(100_000))"
SEND = "k = get_ipython().kernel\nsend = lambda *a: k.send_response(k.iopub_socket, *a)\n"
TEXT = "send('stream', {'name': 'stdout', 'text': 'x' * 1000})"
IDLE = "send('status', {'execution_state': 'idle'})"
PICTURE = "send('display_data', {'data': {'text/html': 'x' * 1_000_000}, 'metadata': {}})"
COMM = "send('comm_msg', {'comm_id': 'c', 'data': {'x': 'y' * 100_000}})"
DEAF_TO_SIGNALS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"

ATTACKS = {
    "prints": "while True: print('x' * 1000)",
    "small prints": "while True: print('x', flush=True)",
    "texts with idle between": f"{SEND}while True:\n {TEXT}\n {IDLE}",
    "pictures": f"{SEND}while True: {PICTURE}",
    "pictures, deaf to signals": f"{DEAF_TO_SIGNALS}{SEND}while True: {PICTURE}",
    "comm messages": f"{SEND}while True: {COMM}",
    "messages of 2-byte frames": f"{SOCKETS}\nflood(2, {TINY})",
    "unsigned messages": f"{SOCKETS}\nflood(2, {JUNK})",
    "frames of 2 bytes": f"{SOCKETS}\nflood(2, b'\\0\\2xx' * 1000)",
    "a message without end": f"{SOCKETS}\nflood(2, b'\\1\\0' * 1000)",
    "a frame of 8 GB": f"{SOCKETS}\nflood(2, b'\\2' + (1 << 33).to_bytes(8, 'big'))",
    "keep-alives": f"{SOCKETS}\nflood(2, b'\\4\\5\\4PONG' * 1000)",
    "replies": f"{SOCKETS}\nflood(1, {JUNK})",
    "small replies": f"{SOCKETS}\nflood(1, {TINY})",
    "questions": f"{SOCKETS}\nflood(3, {JUNK})",
    "control": f"{SOCKETS}\nflood(4, {JUNK})",
    "heartbeats": f"{SOCKETS}\nflood(5, b'\\0\\4ping' * 1000)",
    "nested": f"{SEND}import json\ns = k.session\nwhile True:\n"
    " p = [s.pack(x) for x in (s.msg_header('stream'), k.get_parent()['header'], {})]\n"
    " p.append(b'[' * 200_000)\n"
    " k.iopub_socket.send_multipart([b't', b'<IDS|MSG>', s.sign(p), *p])",
    "hanging up": f"{SOCKETS}\nwhile True:\n for s in mine(2) + mine(1): s.shutdown(2)\n"
    " time.sleep(0.01)",
    "accepting and closing": f"{SOCKETS}\nls = [s for c in range(1, 6) for s in mine(c, True)]\n"
    "for s in mine(1) + mine(2): s.shutdown(2)\nfor s in ls: s.setblocking(False)\n"
    "while True:\n for s in ls:\n  try: s.accept()[0].close()\n  except OSError: pass",
}
KEPT = ["pictures", "texts with idle between", "unsigned messages"]
"""What a server keeps for a browser that does not read, or that is gone."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with its usual settings, whose kernels may say 16 MB, or the default."""
    folder = tmp_path_factory.mktemp("flooded")
    place = ["install", "--prefix", str(folder)]
    assert cli.main([*place, "--name", "usual"]) == 0
    limits = ["--output-limit", "16m", "--message-size", "16m"]
    assert cli.main([*place, "--name", "tight", *limits]) == 0
    environ = {"JUPYTER_PATH": str(folder / "share/jupyter")}
    with serving(folder, environ=environ) as running:
        yield running


def suffer(server: Server, name: str, attack: str, mode: str, seconds: float) -> Toll:
    """Flood it, and say what that cost."""
    toll = asyncio.run(flooded(server, name, ATTACKS[attack], mode=mode, seconds=seconds))
    print(f"{name:6s} {mode:6s} {attack:26s} {toll.line()}")
    return toll


def judge(toll: Toll) -> None:
    """Look whether the bars hold."""
    assert toll.grown < GROWN, toll.line()
    assert toll.rest < ANSWERED, toll.line()
    assert toll.beside < SLOWER * toll.alone, toll.line()


def test_a_server_hardly_feels_a_flood(server: Server) -> None:
    """A short one, by memory: all of them, for longer and by the clock, are soak tests."""
    toll = suffer(server, "tight", "pictures, deaf to signals", READS, SHORT)
    assert toll.grown < GROWN, toll.line()


@pytest.mark.soak
@pytest.mark.parametrize("attack", ATTACKS)
def test_ten_seconds_of_every_flood(server: Server, attack: str) -> None:
    """With all settings as they are, and a browser that reads."""
    judge(suffer(server, "usual", attack, READS, SECONDS))


@pytest.mark.soak
@pytest.mark.parametrize("mode", [DEAF, GONE])
@pytest.mark.parametrize("attack", KEPT)
def test_what_a_server_keeps_by_itself(server: Server, attack: str, mode: str) -> None:
    """It has no limit for those who don't read: the budget is one, 16 MB here."""
    judge(suffer(server, "tight", attack, mode, SECONDS))


@pytest.mark.soak
@pytest.mark.parametrize("mode", [DEAF, GONE])
def test_what_it_keeps_with_the_default(server: Server, mode: str) -> None:
    """128 MB for each connection, and what a server makes of them: it is bounded."""
    toll = suffer(server, "usual", "pictures", mode, SECONDS)
    assert toll.grown < 700
