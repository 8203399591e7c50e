"""A Docker engine of our own, for machines where no other is reachable.

It shares nothing with an engine that may be started later: data, sockets, containerd
namespace and configuration are its own, and it makes neither a bridge nor firewall
rules. There is no state file: the engine's own pid file and the command line of that
process say whether it is ours. Standard library only: it runs before anything is
installed.
"""

import fcntl
import http.client
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_provider import names
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import (
    EngineError,
    EnginePermissionError,
    EngineUnreachableError,
    SandboxError,
)
from kernel_provider.setup import host_process, leftovers
from kernel_provider.steps import last_lines

START_TIMEOUT: Final = 60.0
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class EngineHome:
    """Where an engine of ours lives: ``data`` is kept, ``run`` goes when it stops."""

    data: Path = Path("/var/lib/executor-ml/engine")
    run: Path = Path(names.ENGINE_SOCKET).parent

    @property
    def socket(self) -> Path:
        """Where it answers."""
        return self.run / Path(names.ENGINE_SOCKET).name

    @property
    def pidfile(self) -> Path:
        """Written by the engine itself."""
        return self.run / "dockerd.pid"

    @property
    def exec_root(self) -> Path:
        """Its containerd, and the state of running containers."""
        return self.run / "exec"

    @property
    def log(self) -> Path:
        """All that it says."""
        return self.data.with_name(f"{self.data.name}.log")

    def command(self, dockerd: str) -> list[str]:
        """How it is started. A system-wide containerd may be shared, a namespace not."""
        return [
            dockerd,
            f"--pidfile={self.pidfile}",
            f"--host=unix://{self.socket}",
            f"--data-root={self.data}",
            f"--exec-root={self.exec_root}",
            f"--config-file={self.run / 'daemon.json'}",
            "--containerd-namespace=executor-ml",
            "--containerd-plugins-namespace=executor-ml-plugins",
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
        ]


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """An engine that answers; ``pid`` is set if it is the one of ours."""

    socket: str
    version: str
    pid: int | None = None


def dockerd_path() -> str | None:
    """The engine's program; /usr/sbin is often missing from a person's PATH."""
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def version(path: str, *, timeout: float = 5.0) -> str:
    """Version of the engine that answers at ``path``.

    Raises:
        EngineUnreachableError, EnginePermissionError, EngineError: nobody does.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.sendall(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return str(json.loads(answer.read())["Version"])
    except PermissionError as error:
        raise EnginePermissionError(socket=path) from error
    except (http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise EngineError(action="say its version", reason=f"not Docker at {path}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineUnreachableError(socket=path, reason=reason) from error


def find(environ: Mapping[str, str], home: EngineHome | None = None) -> EngineStatus:
    """The engine that everything else of this project would use.

    Raises:
        EngineUnreachableError, EnginePermissionError, EngineAddressError: there is none.
    """
    path = find_socket(environ)
    home = home or EngineHome()
    pid = running_pid(home) if path == str(home.socket) else None
    return EngineStatus(socket=path, version=version(path), pid=pid)


def running_pid(home: EngineHome) -> int | None:
    """Process id of our engine, None if it doesn't run: told by its command line."""
    return host_process.pid_of(home.pidfile, f"--pidfile={home.pidfile}")


def start(
    home: EngineHome | None = None,
    *,
    dockerd: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> EngineStatus:
    """Start our engine, detached, and wait until it answers; twice is fine.

    Raises:
        EngineError: it is not installed, ended at once or stays silent; nothing of it
            is left running then.
    """
    home = home or EngineHome()
    program = dockerd or dockerd_path()
    if program is None:
        raise EngineError(action="start", reason="dockerd is not installed")
    with _locked(home):
        pid = running_pid(home)
        mark = f"--pidfile={home.pidfile}"
        if pid is None:
            _clear(home)
            mark = ""  # our own child: its number is not given to another process
            try:
                pid = _spawn(home, program)
            except OSError as error:
                raise EngineError(action="start", reason=str(error)) from error
        try:
            return _await_answer(home, pid, sleep)
        except BaseException:
            host_process.end(pid, mark)
            _clear(home)
            raise


def stop(home: EngineHome | None = None) -> bool:
    """End our engine with its containers; False if it did not run. Its data stay."""
    home = home or EngineHome()
    if not home.run.exists():
        return False
    with _locked(home):
        pid = running_pid(home)
        if pid is not None:
            host_process.end(pid, f"--pidfile={home.pidfile}")
        _clear(home)
    return pid is not None


def _spawn(home: EngineHome, program: str) -> int:
    """Start it in a session of its own, with the log as its only open file.

    Not through ``subprocess``: that wants to see the end of what it starts.
    """
    home.data.mkdir(parents=True, exist_ok=True, mode=0o710)
    (home.run / "daemon.json").write_text("{}\n")
    environ = {key: value for key, value in os.environ.items() if "DOCKER" not in key}
    environ["PATH"] = f"{environ.get('PATH', '')}:{SYSTEM_PATH}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.posix_spawn(
        program,
        home.command(program),
        environ,
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(home.log), flags, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def _await_answer(home: EngineHome, pid: int, sleep: Callable[[float], None]) -> EngineStatus:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        if not host_process.alive(pid):
            reason = f"it ended at once; from {home.log}:{_tail(home.log)}"
            raise EngineError(action="start", reason=reason)
        with suppress(SandboxError):
            found = version(str(home.socket), timeout=2.0)
            return EngineStatus(socket=str(home.socket), version=found, pid=pid)
        if time.monotonic() > deadline:
            reason = f"silent for {START_TIMEOUT:.0f} s; from {home.log}:{_tail(home.log)}"
            raise EngineError(action="start", reason=reason)
        sleep(0.1)


def _clear(home: EngineHome) -> None:
    """Remove what a dead engine left: containerd, pid file, socket, mounts."""
    containerd = home.exec_root / "containerd" / "containerd.pid"
    pid = host_process.pid_of(containerd, str(home.exec_root))
    if pid is not None:
        host_process.end(pid, str(home.exec_root))
    for leftover in (containerd, home.pidfile, home.socket):
        with suppress(OSError):  # what stays in the way, the engine itself will tell
            leftover.unlink()
    for folder in (home.exec_root, home.data):
        leftovers.take_off(folder)


def _tail(path: Path) -> str:
    try:
        return last_lines(path.read_text(errors="replace"))
    except OSError as error:
        return f" {error.strerror}"


@contextmanager
def _locked(home: EngineHome) -> Iterator[None]:
    """Let one start or stop run at a time; raises EngineError without the right to."""
    try:
        home.run.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = os.open(home.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        reason = f"only root may use {home.run}"
        raise EngineError(action="start or stop", reason=reason) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
