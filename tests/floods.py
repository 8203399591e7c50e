"""A Jupyter server under a flood: what it keeps, how it answers, how others fare.

Run as a program it is the flooded browser: what that has to read is its own affair, and
would slow down whoever measures in the same process.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxes import memory
from servers import Server
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

READS, DEAF, GONE = "reads", "deaf", "gone"
"""What the flooded browser does: reads all, never reads, or went and left its kernel."""
LONGEST_NOTE = 4096
"""Bytes of a message that the flooded browser looks into."""


@dataclass(kw_only=True)
class Toll:
    """What a flood cost.

    MB that the server grew at most, and MB that stayed; seconds of its slowest answer; a
    bystander's round trips without and with the flood; the share of a processor that the
    server took; and what the flooded browser heard.
    """

    grown: float = 0.0
    kept: float = 0.0
    rest: float = 0.0
    alone: float = 0.0
    beside: float = 0.0
    busy: float = 0.0
    heard: int = 0
    messages: int = 0
    last: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As people read it."""
        return (
            f"grew {self.grown:6.1f} MB (kept {self.kept:6.1f}), REST {self.rest * 1000:4.0f} ms, "
            f"round trip {self.alone * 1000:.1f} -> {self.beside * 1000:.1f} ms "
            f"({self.beside / self.alone:.1f} times), server {self.busy:4.0%}, "
            f"heard {self.heard / 2**20:6.1f} MB, {self.messages} messages; {self.last[-3:]}"
        )


class Browser:
    """A notebook's connection to its kernel."""

    def __init__(self, server: Server, kernel: str) -> None:
        self.server = server
        self.kernel = kernel
        self.session = uuid.uuid4().hex
        self.heard = 0
        self.messages = 0
        self.last: list[str] = []

    @property
    def _url(self) -> str:
        place = f"127.0.0.1:{self.server.port}/api/kernels/{self.kernel}/channels"
        return f"ws://{place}?session_id={self.session}&token={self.server.token}"

    async def connect(self) -> None:
        """Open it."""
        self.ws: WebSocketClientConnection = await websocket_connect(
            self._url, max_message_size=1 << 30
        )
        assert self.ws.protocol is not None
        self.ws.protocol.set_nodelay(True)

    def leave(self) -> None:
        """Hang up, whatever is unread. Twice is fine."""
        protocol = self.ws.protocol
        if protocol is not None:
            self.ws.close()
            protocol._abort()  # noqa: SLF001  else it waits for an answer

    async def ask(self, code: str) -> str:
        """Have a cell executed; give the request's id."""
        request = uuid.uuid4().hex
        header = {
            "msg_id": request,
            "msg_type": "execute_request",
            "username": "u",
            "session": self.session,
            "date": "2026-01-01T00:00:00Z",
            "version": "5.3",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
        }
        wire = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self.ws.write_message(json.dumps({**wire, "channel": "shell", "buffers": []}))
        return request

    async def hear(self) -> dict[str, Any]:
        """The next message.

        Acknowledged at once: the server holds back small ones until then, which takes
        40 ms and would hide what is to be seen.
        """
        assert self.ws.stream is not None
        self.ws.stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        text = await self.ws.read_message()
        if text is None:
            raise WebSocketClosedError
        return {} if isinstance(text, bytes) else dict(json.loads(text))

    async def read(self) -> None:
        """Take whatever comes, for ever, and look into errors alone."""
        while (text := await self.ws.read_message()) is not None:
            self.heard += len(text)
            self.messages += 1
            if isinstance(text, str) and len(text) < LONGEST_NOTE and '"ename"' in text:
                self.last.append(str(json.loads(text)["content"].get("ename")))

    async def round_trip(self) -> float:
        """Seconds for a small cell."""
        begun = time.perf_counter()
        request = await self.ask("1")
        while True:
            message = await self.hear()
            mine = message.get("parent_header", {}).get("msg_id") == request
            if mine and message.get("msg_type") == "execute_reply":
                return time.perf_counter() - begun


async def _round_trips(browser: Browser, seconds: float) -> float:
    """The middle one of as many as fit."""
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        took.append(await browser.round_trip())
        await asyncio.sleep(0.02)
    return statistics.median(took)


async def _watch(server: Server, toll: Toll, before: float) -> None:
    """Ask the server and look at its memory, for ever."""
    while True:
        begun = time.perf_counter()
        status, _ = await asyncio.to_thread(server.ask, "GET", "/api/status")
        toll.rest = max(toll.rest, time.perf_counter() - begun)
        assert status == 200
        toll.grown = max(toll.grown, memory(server.pid) - before)
        await asyncio.sleep(0.05)


def new_kernel(server: Server, name: str) -> str:
    """Start a kernel as JupyterLab does; its id."""
    status, body = server.ask("POST", "/api/kernels", {"name": name})
    assert status == 201, body
    return str(json.loads(body)["id"])


def _used(pid: int) -> float:
    """Seconds of processor that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _flooded_browser(server: Server, kernel: str, mode: str) -> Iterator[subprocess.Popen[str]]:
    """A browser in a process of its own; it has had a round trip, and waits for code."""
    words = [str(server.port), server.token, kernel, mode]
    with subprocess.Popen(
        [sys.executable, __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def flooded(server: Server, name: str, code: str, *, mode: str, seconds: float) -> Toll:
    """Have a kernel of that name run such code, beside another that goes on working."""
    toll = Toll()
    kernels = [await asyncio.to_thread(new_kernel, server, name) for _ in range(2)]
    beside = Browser(server, kernels[1])
    await beside.connect()
    with _flooded_browser(server, kernels[0], mode) as flooding:
        await _round_trips(beside, 0.5)
        toll.alone = await _round_trips(beside, max(1.0, seconds / 4))
        before, used, begun = memory(server.pid), _used(server.pid), time.monotonic()
        assert flooding.stdin is not None
        assert flooding.stdout is not None
        flooding.stdin.write(json.dumps(code) + "\n")
        flooding.stdin.flush()
        watch = asyncio.create_task(_watch(server, toll, before))
        try:
            toll.beside = await _round_trips(beside, seconds)
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
        toll.kept = memory(server.pid) - before
        toll.busy = (_used(server.pid) - used) / (time.monotonic() - begun)
        flooding.stdin.close()
        told = await asyncio.to_thread(flooding.stdout.readline)
        toll.heard, toll.messages, toll.last = json.loads(told)
    for kernel in kernels:
        await asyncio.to_thread(server.ask, "DELETE", f"/api/kernels/{kernel}")
    beside.leave()
    return toll


async def be_flooded(browser: Browser, mode: str) -> None:
    """Have the code of one line from standard input executed, until its end; then tell."""
    await browser.connect()
    await browser.round_trip()
    print("ready", flush=True)
    await browser.ask(json.loads(await asyncio.to_thread(sys.stdin.readline)))
    read = asyncio.create_task(browser.read()) if mode == READS else None
    if mode == GONE:
        browser.leave()
    await asyncio.to_thread(sys.stdin.read)
    if read is not None:
        read.cancel()
        with suppress(asyncio.CancelledError):
            await read
    print(json.dumps([browser.heard, browser.messages, browser.last]), flush=True)
    browser.leave()


if __name__ == "__main__":
    PORT, TOKEN, KERNEL, MODE = sys.argv[1:]
    asyncio.run(
        be_flooded(Browser(Server(port=int(PORT), token=TOKEN, log=Path(os.devnull)), KERNEL), MODE)
    )
