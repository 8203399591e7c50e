"""Jupyter servers as processes of their own, asked by their REST API."""

import asyncio
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

BIN: Final = Path(sys.executable).parent
BARE: Final = ("jupyter-server", "--ServerApp.jpserver_extensions={}")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running Jupyter server's port and token, the file that it logs to, and its pid.

    ``base`` is where its REST API begins, where that is not at the top.
    """

    port: int
    token: str
    log: Path
    pid: int = 0
    base: str = ""

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One request of its REST API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, self.base + path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def run(self, kernel: str, code: str) -> str:
        """Run a cell as a browser does, over a websocket: what it prints, and its value."""
        return asyncio.run(asyncio.wait_for(self._run(kernel, code), 60))

    async def _run(self, kernel: str, code: str) -> str:
        request = HTTPRequest(
            f"ws://127.0.0.1:{self.port}{self.base}/api/kernels/{kernel}/channels",
            headers={"Authorization": f"token {self.token}"},
        )
        connection = await websocket_connect(request)
        asked = secrets.token_hex(8)
        header = {
            "msg_id": asked,
            "msg_type": "execute_request",
            "session": asked,
            "version": "5.3",
        }
        cell: dict[str, Any] = {"code": code, "silent": False, "allow_stdin": False}
        await connection.write_message(
            json.dumps(
                {
                    "channel": "shell",
                    "header": {**header, "username": "", "date": ""},
                    "parent_header": {},
                    "metadata": {},
                    "content": cell,
                    "buffers": [],
                }
            )
        )
        said = ""
        try:
            while (text := await connection.read_message()) is not None:
                message = json.loads(text)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                content: dict[str, Any] = message["content"]
                said += str(
                    content.get("text", "") or content.get("data", {}).get("text/plain", "")
                )
                if content.get("execution_state") == "idle":
                    return said
        finally:
            connection.close()
        raise ConnectionResetError(said)


def new_session(kernel_name: str) -> dict[str, object]:
    """What JupyterLab posts when a person opens a notebook."""
    return {
        "path": f"{kernel_name}.ipynb",
        "name": "",
        "type": "notebook",
        "kernel": {"name": kernel_name},
    }


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    *,
    kill: bool = False,
    command: Sequence[str] = BARE,
    environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """A server that shows ``folder``; ``environ`` is on top of this process's.

    ``prefix`` is a command that starts it as somebody else.
    """
    server = Server(port=free_port(), token="t", log=folder / "log")  # noqa: S106
    with server.log.open("w") as log:
        process = subprocess.Popen(
            [
                *prefix,
                str(BIN / command[0]),
                *command[1:],
                "--allow-root",
                "--no-browser",
                f"--ServerApp.port={server.port}",
                f"--IdentityProvider.token={server.token}",
                f"--ServerApp.root_dir={folder}",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
        )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                server.ask("GET", "/api/status")
                break
            except OSError:
                time.sleep(0.1)
        yield replace(server, pid=process.pid)
    finally:
        (process.kill if kill else process.terminate)()
        process.wait(30)
