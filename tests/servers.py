"""Jupyter servers as processes of their own, asked by their REST API."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

BIN: Final = Path(sys.executable).parent
BARE: Final = ("jupyter-server", "--ServerApp.jpserver_extensions={}")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running Jupyter server's port and token, the file that it logs to, and its pid."""

    port: int
    token: str
    log: Path
    pid: int = 0

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One request of its REST API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


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
