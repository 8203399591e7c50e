"""One kernel's lifetime as its owner sees it: outer sockets, and the sandbox behind them.

A session is made once, launches a sandbox, may launch another after the first has
ended (the clients stay connected to the same outer sockets), and is closed. All calls
return at once but for ``launched``, ``ended`` and ``gone``, which wait on the caller's
event loop and nothing else.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel_provider.engines import Engine, open_engine
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import RuntimeFolderError, SandboxError, WardenError, from_wire
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.warden import cgroup
from kernel_provider.warden.rendezvous import BACKLOG, CHANNELS
from kernel_provider.warden.sweep import sweep, sweep_folders

RUNTIME_VARIABLE: Final = "EXECUTOR_ML_RUNTIME_DIR"
SOCKET_PATH_LIMIT: Final = 107
GRACE: Final = 5.0
"""Seconds beyond the sandbox's own time-out before a silent warden is given up."""

_BOOT: Final = (
    "import sys; sys.path.append(sys.argv[1]); from kernel_provider.warden.main import main; main()"
)


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a kernel ended; ``expected`` when somebody asked for it."""

    name: str
    reason: str
    remedy: str
    exit_code: int
    expected: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} {self.remedy}"


_STOPPED: Final = Death(
    name="KernelStopped", reason="the kernel was stopped.", remedy="", exit_code=-9, expected=True
)
_WARDEN_LOST: Final = Death(
    name="WardenLost",
    reason="the process beside the sandbox ended, and the sandbox with it.",
    remedy="Restart the kernel; the server's log may say more.",
    exit_code=70,
)
_NOT_GONE: Final = Death(
    name="SandboxLost",
    reason="the engine removed the sandbox, and processes of it are still there.",
    remedy="Restart the engine: it has lost sight of them.",
    exit_code=70,
)


@dataclass(kw_only=True)
class _Sandbox:
    """What a session knows of the sandbox that it has now."""

    connection: socket.socket
    folder: str
    pid: int | None
    buffer: bytes = b""
    ready: dict[str, Any] | None = None
    error: SandboxError | None = None
    death: Death | None = None
    gone: bool = False
    troubles: list[str] = field(default_factory=list)


def runtime_root(environ: Mapping[str, str]) -> str:
    """Make and check the private folder that all sockets of this user live in.

    Raises RuntimeFolderError where it belongs to somebody else, is open to others or
    its path is too long for a socket.
    """
    if environ.get(RUNTIME_VARIABLE):
        root = environ[RUNTIME_VARIABLE]
    elif environ.get("XDG_RUNTIME_DIR"):
        root = f"{environ['XDG_RUNTIME_DIR']}/executor-ml"
    else:
        root = f"/tmp/executor-ml-{os.getuid()}"  # noqa: S108  checked below
    longest = f"{root}/{_folder_name('s')}/.c-5"
    if len(longest) > SOCKET_PATH_LIMIT:
        excess = len(longest) - SOCKET_PATH_LIMIT
        raise RuntimeFolderError(path=root, reason=f"its path is {excess} characters too long")
    try:
        Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = Path(root).lstat()
    except OSError as error:
        raise RuntimeFolderError(path=root, reason=error.strerror or "unusable") from error
    if facts.st_uid != os.getuid():
        raise RuntimeFolderError(path=root, reason="it belongs to another user")
    if facts.st_mode & 0o077 or not Path(root).is_dir() or Path(root).is_symlink():
        raise RuntimeFolderError(path=root, reason="it is open to others, or not a folder")
    return root


def _folder_name(kind: str) -> str:
    pid = os.getpid()
    return f"{kind}-{pid}-{cgroup.start_time(pid)}-{secrets.token_hex(3)}"


class Session:
    """The outer sockets of one kernel, and whatever sandbox is behind them now."""

    def __init__(self, *, environ: Mapping[str, str], name: str, folder: str = "") -> None:
        """Bind the outer sockets; ``name`` is for messages. Nothing is started.

        ``folder`` is another session's, whose sockets are used instead. Raises
        RuntimeFolderError.
        """
        self.name = name
        self._environ = environ
        self._root = runtime_root(environ)
        self.folder = folder or f"{self._root}/{_folder_name('s')}"
        self._outer: list[socket.socket] = []
        if not folder:
            Path(self.folder).mkdir(mode=0o700)
            self._outer = [self._listen(number) for number in range(1, len(CHANNELS) + 1)]
        self._sandbox: _Sandbox | None = None
        self._subscribers = 0
        self._spawned: list[int] = []

    @property
    def ip(self) -> str:
        """What Jupyter calls ``ip`` for ipc: the sockets are ``ip-1`` to ``ip-5``."""
        return f"{self.folder}/c"

    def _listen(self, number: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{self.folder}/.c-{number}")
        listener.listen(BACKLOG)
        os.link(f"{self.folder}/.c-{number}", f"{self.ip}-{number}")
        return listener

    def restore_paths(self) -> None:
        """Put the sockets' names back, which Jupyter removes on each restart."""
        for number in range(1, len(CHANNELS) + 1):
            if not Path(f"{self.ip}-{number}").exists():
                os.link(f"{self.folder}/.c-{number}", f"{self.ip}-{number}")

    def _take_over_paths(self) -> None:
        """Bind anew what another process bound: clients find their way by the paths."""
        for path in Path(self.folder).glob("*c-*"):
            path.unlink()
        self._outer = [self._listen(number) for number in range(1, len(CHANNELS) + 1)]

    # --- starting ---------------------------------------------------------------------

    def launch(
        self, policy: KernelPolicy, *, key: str, env: Mapping[str, str], cwd: str = ""
    ) -> None:
        """Start a warden and claim its sandbox; ``launched`` waits for the outcome.

        ``env`` and ``cwd`` are brought by the claim, ``key`` signs messages. Raises
        EngineError where no engine can be found.
        """
        if not self._outer:
            self._take_over_paths()
        address = find_socket(self._environ)
        folder = f"{self._root}/{_folder_name('w')}"
        Path(folder).mkdir(mode=0o700)
        order = {
            "engine": "docker",
            "address": address,
            "spec": asdict(sandbox_spec(policy, rendezvous=f"{folder}/r")),
            "folder": folder,
            "startup_timeout": policy.startup_timeout,
        }
        claim = {
            "op": "claim",
            "key": key,
            "env": dict(env),
            "cwd": cwd,
            "subscribers": self._subscribers,
        }
        self._forget()
        try:
            connection, pid = self._start(folder, json.dumps(order), json.dumps(claim))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._spawned.append(pid)
        self._sandbox = _Sandbox(connection=connection, folder=folder, pid=pid)

    def _start(self, folder: str, order: str, claim: str) -> tuple[socket.socket, int]:
        """Start a warden that finds the claim waiting: it never runs without a lifeline."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(f"{folder}/w")
                listener.listen(BACKLOG)
                connection.connect(f"{folder}/w")
                connection.setblocking(False)  # noqa: FBT003
                line = claim.encode() + b"\n"
                sent = socket.send_fds(connection, [line], [s.fileno() for s in self._outer])
                pid = _spawn(order, listener, f"{folder}/log")
            if sent < len(line):
                connection.setblocking(True)  # noqa: FBT003
                connection.sendall(line[sent:])
                connection.setblocking(False)  # noqa: FBT003
        except BaseException:
            connection.close()
            raise
        return connection, pid

    async def launched(self, patience: float) -> Mapping[str, Any]:
        """Wait until the sandbox serves; give its container id, uid and pid.

        Raises the error that ended the start; by then nothing of it is left.
        """
        sandbox = self._need()
        deadline = time.monotonic() + patience + GRACE
        while sandbox.ready is None:
            await self._hear(sandbox, deadline)
            if sandbox.error is not None:
                raise sandbox.error
            if sandbox.gone or sandbox.death is not None:
                raise WardenError(reason="ended while it was starting" + _log_of(sandbox))
            if time.monotonic() > deadline:
                raise WardenError(reason=f"was silent for {patience + GRACE:g} s")
        return sandbox.ready

    # --- running ----------------------------------------------------------------------

    @property
    def launched_once(self) -> bool:
        """Whether a sandbox was ever launched, or attached to."""
        return self._sandbox is not None

    @property
    def alive(self) -> bool:
        """Whether there is a sandbox that has not died, as far as was heard."""
        self._listen_now()
        return self._sandbox is not None and self._sandbox.death is None

    @property
    def death(self) -> Death | None:
        """How the latest sandbox ended; None while it lives."""
        self._listen_now()
        return self._sandbox.death if self._sandbox is not None else None

    def signal(self, number: int) -> None:
        """Send the kernel's process group a signal. Of the dead: nothing happens."""
        name = signal.Signals(number).name.removeprefix("SIG")
        self._say({"op": "stop"} if number == signal.SIGKILL else {"op": "signal", "signal": name})

    def stop(self) -> None:
        """Kill and remove the sandbox; ``gone`` waits for it. Twice is fine."""
        self._say({"op": "stop"})

    async def gone(self, patience: float) -> bool:
        """Wait until nothing of the sandbox is left; false if it takes too long."""
        sandbox = self._sandbox
        deadline = time.monotonic() + patience
        while sandbox is not None and not sandbox.gone:
            if time.monotonic() > deadline:
                return False
            await self._hear(sandbox, deadline)
        self._reap()
        return True

    # --- across processes -------------------------------------------------------------

    def describe(self) -> dict[str, str]:
        """What another process of this user needs to take part: see ``attach``."""
        return {"session": self.folder, "warden": self._need().folder}

    @classmethod
    def attach(
        cls, description: Mapping[str, str], *, key: str, environ: Mapping[str, str], name: str
    ) -> "Session":
        """Become an owner of a running kernel as well, with the key as the password.

        The kernel lives until its last owner goes. Raises WardenError where it is gone
        or the key is wrong.
        """
        session = cls(environ=environ, name=name, folder=description["session"])
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(description["warden"] + "/w")
            connection.sendall(json.dumps({"op": "attach", "key": key}).encode() + b"\n")
            connection.settimeout(GRACE)
            answer = json.loads(connection.recv(65536).partition(b"\n")[0] or b"{}")
        except OSError as error:
            connection.close()
            raise WardenError(reason="cannot be reached: the kernel has ended") from error
        if answer.get("event") != "ready":
            connection.close()
            raise WardenError(reason="does not know this key")
        connection.setblocking(False)  # noqa: FBT003
        session._sandbox = _Sandbox(
            connection=connection, folder=description["warden"], pid=None, ready=answer
        )
        return session

    # --- ending -----------------------------------------------------------------------

    def close(self) -> None:
        """Let go: the sandbox ends unless another owner holds it. Twice is fine."""
        self._forget()
        for listener in self._outer:
            listener.close()
        if self._outer:
            self._outer = []
            shutil.rmtree(self.folder, ignore_errors=True)
        self._reap()
        _reap_later(self._spawned)
        self._spawned = []

    def _forget(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.connection.close()
            if sandbox.death is _WARDEN_LOST:
                self._sweep(sandbox)

    def _sweep(self, sandbox: _Sandbox) -> None:
        """Remove what a killed warden left; the next start would, but may never come."""
        shutil.rmtree(sandbox.folder, ignore_errors=True)
        with contextlib.suppress(SandboxError):
            sweep(self.engine())

    def engine(self) -> Engine:
        """The engine that sandboxes of this session run on."""
        return open_engine("docker", find_socket(self._environ))

    def _need(self) -> _Sandbox:
        if self._sandbox is None:
            raise WardenError(reason="was never started")
        return self._sandbox

    def _say(self, order: Mapping[str, Any]) -> None:
        if self._sandbox is None or self._sandbox.gone:
            return
        try:
            self._sandbox.connection.send(json.dumps(order).encode() + b"\n")
        except OSError:
            self._listen_now()

    async def _hear(self, sandbox: _Sandbox, deadline: float) -> None:
        """Wait for the warden's next words, or for the deadline."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                data = await loop.sock_recv(sandbox.connection, 65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        self._take(sandbox, data)

    def _listen_now(self) -> None:
        sandbox = self._sandbox
        while sandbox is not None and not sandbox.gone:
            try:
                data = sandbox.connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._take(sandbox, data)

    def _take(self, sandbox: _Sandbox, data: bytes) -> None:
        if not data:
            sandbox.gone = True
            if sandbox.death is None and sandbox.error is None:
                sandbox.death = _WARDEN_LOST
            return
        *lines, sandbox.buffer = (sandbox.buffer + data).split(b"\n")
        for line in lines:
            self._on_event(sandbox, json.loads(line))

    def _on_event(self, sandbox: _Sandbox, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "ready":
            sandbox.ready = event
        elif kind == "failed":
            sandbox.error = from_wire(event)
        elif kind == "died":
            self._subscribers = event["subscribers"]
            sandbox.death = Death(**event["cause"], expected=event["expected"])
        elif kind == "trouble":
            sandbox.troubles.append(event["text"])
        elif kind == "gone":
            sandbox.gone = True
            if not event["clean"]:
                sandbox.death = _NOT_GONE
            elif sandbox.death is None:
                self._subscribers = event["subscribers"]
                sandbox.death = _STOPPED

    def _reap(self) -> None:
        for pid in tuple(self._spawned):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._spawned.remove(pid)


def _spawn(order: str, listener: socket.socket, log: str) -> int:
    """Start a warden in a session of its own, with nothing of ours but these files."""
    reader = os.memfd_create("order", os.MFD_CLOEXEC)
    with os.fdopen(reader, "r+b", buffering=0) as file:
        file.write(order.encode())
        file.seek(0)
        package = str(Path(__file__).resolve().parent.parent)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _BOOT, package],
            {"PATH": os.defpath, "LANG": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, file.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), 3),
            ],
            setsid=True,
        )


def _reap_later(pids: Sequence[int]) -> None:
    """Collect wardens that are about to end, or each would stay a zombie of ours."""

    def collect() -> None:
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)

    if pids:
        with suppress(RuntimeError):  # the interpreter is ending: init will do it
            threading.Thread(target=collect, name="executor-ml-reaper", daemon=True).start()


def _log_of(sandbox: _Sandbox) -> str:
    """The end of a warden's own complaints, if it left any."""
    try:
        lines = Path(f"{sandbox.folder}/log").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""


def prune(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Remove sandboxes and folders that dead processes left; give their names."""
    removed = sweep(open_engine("docker", find_socket(environ)))
    return removed + sweep_folders(runtime_root(environ))
