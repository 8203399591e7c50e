"""A JupyterHub with its proxy, and a person of this machine whom only it knows."""

import hashlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pytest
from pages import ROOT
from servers import Server, free_port

from kernel_provider.builder.wheels import cache_folder

NPM: Final = ROOT / "tests/npm"
"""Names the proxy that a Hub needs, and what that needs, with their digests."""

NAME: Final = "exhub"
GROUP: Final = "exkernels"
START: Final = 120.0

OPEN: Final = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
"""
"""Run in mount namespaces of their own: the person is nobody outside of it."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A running Hub: its address, the token of somebody who may do anything, its folder."""

    port: int
    token: str
    folder: Path
    uid: int

    @property
    def log(self) -> str:
        """All that it and the servers that it started have said."""
        return (self.folder / "log").read_text(encoding="utf-8")

    @property
    def server(self) -> Server:
        """The person's server, as the Hub's proxy shows it."""
        base = f"/user/{NAME}"
        return Server(port=self.port, token=self.token, log=self.folder / "log", base=base)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A call of the Hub's own API."""
        hub = Server(port=self.port, token=self.token, log=self.folder / "log", base="/hub/api")
        status, answer = hub.ask(method, path, body)
        return status, json.loads(answer) if answer else None


def closed_above(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Folders that a stranger may not enter, and which of the paths lie below each."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                found.setdefault(folder, []).append(path)
                break
    return found


def opening(paths: Sequence[Path], stash: Path) -> str:
    """Shell commands that let everybody reach these paths, and nothing beside them."""
    lines = []
    for folder, inside in closed_above(paths).items():
        there = dict(enumerate(inside))
        lines += [f'mount --bind "{path}" "{_made(stash / str(n))}"' for n, path in there.items()]
        lines.append(f'mount -t tmpfs -o mode=755 none "{folder}"')
        lines += [
            f'mkdir -p "{p}"; mount --bind "{stash / str(n)}" "{p}"' for n, p in there.items()
        ]
    return "\n".join(lines)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def people(folder: Path, uid: int) -> None:
    """The machine's people, and one more with a home in this folder, in a group of its own."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    passwd = Path("/etc/passwd").read_text() + f"{NAME}:x:{uid}:{uid}::{home}:/bin/sh\n"
    group = Path("/etc/group").read_text() + f"{NAME}:x:{uid}:\n{GROUP}:x:{uid + 1}:{NAME}\n"
    (folder / "passwd").write_text(passwd)
    (folder / "group").write_text(group)


def proxy_program() -> Path:
    """The proxy in the user's cache by its lock's content; made at first.

    Skips the test where Node.js is not there, or no package index of its.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("a Hub's proxy needs Node.js")
    lock = (NPM / "package-lock.json").read_bytes()
    wanted = cache_folder(os.environ) / "hub-proxy" / hashlib.sha256(lock).hexdigest()[:32]
    program = wanted / "node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    if program.exists():
        return program
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wanted.parent) as made:
        folder = Path(made, "hub-proxy")
        shutil.copytree(NPM, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            if "EINTEGRITY" in done.stderr:
                pytest.fail(f"package-lock.json does not hold:\n{done.stderr}")
            pytest.skip(f"a Hub's proxy cannot be installed: {done.stderr.strip()[-300:]}")
        try:
            folder.rename(wanted)
        except OSError:  # another run was first
            assert wanted.exists()
    return program


CONFIG: Final = """
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.ConfigurableHTTPProxy.command = ["node", "{program}"]
c.ConfigurableHTTPProxy.pid_file = "{folder}/proxy.pid"
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie"
c.JupyterHub.data_files_path = "{tools}/share/jupyterhub"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = "{token}"
c.Authenticator.allowed_users = {{"{name}"}}
c.JupyterHub.services = [{{"name": "tests", "api_token": "{token}"}}]
scopes = ["admin:users", "admin:servers", "access:servers"]
c.JupyterHub.load_roles = [{{"name": "tests", "services": ["tests"], "scopes": scopes}}]
c.Spawner.environment["EXECUTOR_ML_RUNTIME_DIR"] = "{folder}/home/s"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
"""
"""What a test's Hub has beside the configuration that the page tells of."""


@contextmanager
def hub(config: str, tools: Path) -> Iterator[Hub]:
    """A Hub as root, with a proxy, whose one person has an account for as long as it runs."""
    program = proxy_program()
    folder = Path(f"/tmp/exh-{secrets.token_hex(3)}")
    folder.mkdir(mode=0o755)
    made = Hub(
        port=free_port(),
        token=secrets.token_hex(16),
        folder=folder,
        uid=100_000 + secrets.randbelow(50_000),
    )
    try:
        people(folder, made.uid)
        file = folder / "jupyterhub_config.py"
        file.touch(mode=0o600)
        own = CONFIG.format(
            **vars(made) | {"hub_port": free_port(), "api_port": free_port()},
            program=program,
            tools=tools,
            name=NAME,
        )
        file.write_text(config + own)
        paths = [Path(sys.prefix), Path(sys.base_prefix), ROOT, tools, program.parents[3]]
        script = OPEN + opening([path.resolve() for path in paths], folder / "stash")
        command = [sys.executable, "-m", "jupyterhub", "-f", str(file)]
        with (
            (folder / "log").open("w") as log,
            _running(script, command, folder, log, tools) as process,
        ):
            _wait_until_up(made, process)
            yield made
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(
    script: str, command: Sequence[str], folder: Path, log: IO[str], tools: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A command in mount namespaces of its own; told to end, and killed if it does not."""
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    process = subprocess.Popen(
        [
            *unshare,
            f'{script}\nfolder="$1"; shift; cd "$folder"; exec "$@"',
            "sh",
            folder,
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            "HOME": str(folder),
            "PATH": f"{tools / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(tools),
        },
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def _wait_until_up(made: Hub, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            if made.ask("GET", "/")[0] == 200:
                return
        except (OSError, http.client.HTTPException, ValueError):
            pass
        assert process.poll() is None, made.log[-3000:]
        assert time.monotonic() < deadline, made.log[-3000:]
        time.sleep(0.2)


def start_server(made: Hub) -> None:
    """Start the person's server, as their log-in would; returns when it answers."""
    status, answer = made.ask("POST", f"/users/{NAME}")
    assert status in {201, 409}, answer
    status, answer = made.ask("POST", f"/users/{NAME}/server")
    assert status in {201, 202}, answer
    deadline = time.monotonic() + START
    while not made.ask("GET", f"/users/{NAME}")[1]["servers"].get("", {}).get("ready"):
        assert time.monotonic() < deadline, made.log[-3000:]
        time.sleep(0.2)
