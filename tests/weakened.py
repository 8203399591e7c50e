"""Sandboxes that are weaker than ours on purpose: what is promised does not hold in them.

Made by the product itself through an engine's proxy that loosens what it is asked for, or
weakened by hand on the host once they run.
"""

import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from kernels import KERNEL
from proxy import CREATE, REMOVE, EngineProxy

from kernel_provider.verify.box import Box, opener
from kernel_provider.verify.look import CANARY_VARIABLE, SHOWN_AT, Host, Look

CAPABILITIES = (
    *("SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "SYSLOG", "DAC_READ_SEARCH", "NET_ADMIN"),
    *("IPC_LOCK", "SYS_TIME"),
)
GUARDIAN = """
import _socket, os, sys
sys.path.insert(0, "/opt/executor")
import guardian

def leak(descriptor, at):
    os.dup2(descriptor, at, inheritable=True)

leak(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM).detach(), 100)
one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
one.bind("/tmp/leaked")
leak(one.detach(), 101)
leak(os.open("/etc", os.O_RDONLY), 102)
leak(1, 103)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("900")

def reap(self):
    pid, status = os.waitpid(self.pid, os.WNOHANG)
    if pid:
        self.status = os.waitstatus_to_exitcode(status)

guardian.become_undumpable = lambda: None
guardian.Guardian.forward = lambda *_: os._exit(1)
guardian.Guardian.reap = reap
guardian.main()
"""
"""A guardian that leaks, hides nothing, dies of signals, and does not reap."""

quick = opener(KERNEL, {"cpus": os.cpu_count() or 1})
"""All of the machine's processors: their time is not what these are about."""

Body = dict[str, Any]
Opened = Callable[[Host], Any]


def by_hand(
    weaken: Callable[[Look], object], mend: Callable[[Look], object] = lambda _look: None
) -> Opened:
    """Opens our sandboxes, and weakens each as soon as it runs."""

    @asynccontextmanager
    async def opened(host: Host) -> AsyncIterator[Box]:
        async with quick(host) as box:
            weaken(box.look)
            try:
                yield box
            finally:
                mend(box.look)

    return opened


# --- by the engine ------------------------------------------------------------------------


@contextmanager
def odd_folder() -> Iterator[Path]:
    """A folder with what must not be found in a sandbox: a socket, a setuid file, a device."""
    folder = Path(f"/tmp/exml-odd-{secrets.token_hex(3)}")
    folder.mkdir()
    program = folder / "program"
    program.write_text("#!/bin/true")
    program.chmod(0o6755)
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def wide(odd: Path) -> Callable[[Body], Body]:
    """Root with rights, no filter, the host's network, everything writable."""

    def edit(body: Body) -> Body:
        host = body["HostConfig"]
        shown = next(Path(m["Source"]) for m in host["Mounts"] if m["Target"] == SHOWN_AT)
        for mount in host["Mounts"]:
            mount["ReadOnly"] = False
        host["Mounts"] += [
            {"Type": "bind", "Source": source, "Target": target}
            for source, target in (
                (str(odd), "/data/odd"),
                (str(shown.parent), str(shown.parent)),
                ("/dev/pts", "/dev/pts"),
            )
        ]
        host |= {
            "NetworkMode": "host",
            "ReadonlyRootfs": False,
            "CapDrop": [],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": ["seccomp=unconfined"],
            "Tmpfs": {"/tmp": "rw,exec,suid,dev,mode=1777,size=300m"},
            "ShmSize": 2 * host["ShmSize"],
            "Ulimits": [
                {"Name": "nofile", "Soft": 8192, "Hard": 8192},
                {"Name": "core", "Soft": -1, "Hard": -1},
            ],
            "CgroupnsMode": "host",
            "MaskedPaths": [],
            "ReadonlyPaths": [],
            "Dns": [],
            "DnsSearch": [],
            "LogConfig": {"Type": "json-file", "Config": {}},
        }
        leaked = [f"LEAKED={os.environ[CANARY_VARIABLE]}", f"FOLDER={shown.parent}"]
        return {
            **body,
            "User": "0:0",
            "Hostname": os.uname().nodename,
            "NetworkDisabled": False,
            "Env": [*body["Env"], *leaked],
        }

    return edit


def other_guardian(body: Body) -> Body:
    """The same sandbox with another PID 1."""
    return {**body, "Entrypoint": [*body["Entrypoint"][:3], "-c", GUARDIAN]}


def both(one: Callable[[Body], Body], other: Callable[[Body], Body]) -> Callable[[Body], Body]:
    """One change after the other."""
    return lambda body: other(one(body))


def joined(container: str) -> Callable[[Body], Body]:
    """A sandbox among another container's processes."""

    def edit(body: Body) -> Body:
        body["HostConfig"]["PidMode"] = f"container:{container}"
        return body

    return edit


@contextmanager
def one_household(proxy: EngineProxy, folder: Path) -> Iterator[Callable[[Body], Body]]:
    """Sandboxes of one uid, network, ``/tmp`` and, from the second on, process table."""
    made: list[str] = []

    def note(answer: Body) -> Body:
        made.append(answer["Id"])
        return answer

    def edit(body: Body) -> Body:
        host = body["HostConfig"]
        host["Mounts"].append({"Type": "bind", "Source": str(folder), "Target": "/tmp"})
        host |= {"NetworkMode": "host", "Tmpfs": {}}
        if made:
            host["PidMode"] = f"container:{made[0]}"
        return {**body, "User": "54321:54321", "NetworkDisabled": False}

    proxy.replies[CREATE] = note
    try:
        yield edit
    finally:
        del proxy.replies[CREATE]


# --- by hand ------------------------------------------------------------------------------


def let_out(look: Look) -> None:
    """Move a sandbox's processes out of its control group."""
    root = Path("/sys/fs/cgroup")
    groups = (
        [root]
        if look.group.unified
        else [*root.glob("memory"), *root.glob("pids"), *root.glob("cpu*")]
    )
    for pid in look.group.processes():
        for group in groups:
            (group / "cgroup.procs").write_text(str(pid))


def immortal(proxy: EngineProxy) -> Opened:
    """Sandboxes that outlive their end: PID 1 is halted, and the engine only says yes."""

    def weaken(look: Look) -> None:
        os.kill(look.guardian, signal.SIGSTOP)
        proxy.answers[REMOVE] = 404

    def mend(look: Look) -> None:
        proxy.answers.clear()
        for pid in {look.guardian, *look.pids}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        look.engine.remove(look.container)

    return by_hand(weaken, mend)


@contextmanager
def telling() -> Iterator[Opened]:
    """Sandboxes whose key is in some process's arguments; the host has terminals open."""
    started: list[subprocess.Popen[bytes]] = []
    terminals = [os.openpty() for _ in range(3)]

    def weaken(look: Look) -> None:
        words = [sys.executable, "-c", "import time; time.sleep(300)", look.key]
        started.append(subprocess.Popen(words))

    try:
        yield by_hand(weaken)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for pair in terminals:
            for descriptor in pair:
                os.close(descriptor)
