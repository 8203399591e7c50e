"""Runs in a sandbox: what the checks attack with. Its text is sent to the kernel.

Whatever an attempt answers is told by the name of its error, and "done" is what a
hostile notebook hopes for.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OFFERED = (array, fcntl, mmap, resource, stat, struct, subprocess, threading, time)
"""Modules for the checks' own code, which runs in this one's namespace."""

MIB = 1 << 20
LIBC: Any = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
PAGE = bytes(65536)
PATIENCE = 40.0
"""Seconds that a child may take on a slow machine."""
left_running: list[int] = []
"""Pids of children that hold something until the next check."""
left_files: list[str] = []
"""Files that lie about until then."""


def probe(code: str, values: Mapping[str, Any]) -> str:
    """Run one check's code; its ``report``, or what it raised, as JSON."""
    sweep()
    space: dict[str, Any] = {**globals(), "v": values}
    try:
        exec(code, space)  # noqa: S102  a check's code, from the host
        return json.dumps({"report": space["report"]})
    except BaseException as problem:  # noqa: BLE001  all of it is told
        return json.dumps({"raised": f"{type(problem).__name__}: {problem}"})


def sweep() -> None:
    """End what the check before has left running, and remove what it left lying."""
    while left_files:
        path = left_files.pop()
        if os.path.lexists(path):
            os.remove(path)
    while left_running:
        pid = left_running.pop()
        for end in (os.killpg, os.kill):
            try:
                end(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass


def told(attempt: Callable[[], object]) -> str:
    """How an attempt ended: "done", or the name of its error."""
    try:
        attempt()
    except OSError as problem:
        return errno.errorcode.get(problem.errno or 0, type(problem).__name__)
    except Exception as problem:  # noqa: BLE001  all of it is told
        return type(problem).__name__
    return "done"


def tell(attempts: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """How each of several attempts ended."""
    return {name: told(attempt) for name, attempt in attempts.items()}


def tell_apart(attempts: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """The same, each in a child of its own: for what would change the kernel itself."""
    return {name: in_child(lambda a=a: (a(), 0)[1]) for name, a in attempts.items()}  # type: ignore[misc]


def call(number: int, *arguments: int | bytes, apart: bool = False) -> str:
    """A raw system call in a child of its own; bytes stand for their address.

    ``apart``: where that is possible at all, in a mount namespace of its own.
    """
    kept = [ctypes.create_string_buffer(a) if isinstance(a, bytes) else a for a in arguments]
    words = [ctypes.c_long(a if isinstance(a, int) else ctypes.addressof(a)) for a in kept]

    def attempt() -> int:
        if apart:
            LIBC.unshare(0x20000)
        ctypes.set_errno(0)
        return ctypes.get_errno() if LIBC.syscall(ctypes.c_long(number), *words) == -1 else 0

    return in_child(attempt)


def in_child(attempt: Callable[[], int]) -> str:
    """Run it in a child, whose exit code is an errno; "done", an errno or a signal."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = attempt()
        except OSError as problem:
            code = problem.errno or 255
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return signal.Signals(-status).name
    return errno.errorcode.get(status, str(status)) if status else "done"


def calls(table: Mapping[str, tuple[Any, ...]], *, apart: bool = False) -> dict[str, str]:
    """How each of several system calls was answered."""
    return {name: call(*words, apart=apart) for name, words in table.items()}


def child(work: Callable[[], object]) -> int:
    """Start a child in a group of its own that is ended before the next check.

    It is the first that dies where memory runs out.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write("1000")
            work()
        finally:
            os._exit(0)
    left_running.append(pid)
    return pid


def ended(pid: int, patience: float) -> str:
    """How a child ended: "exit 0", a signal's name, or "runs"."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            left_running.remove(pid)
            code = os.waitstatus_to_exitcode(status)
            return f"exit {code}" if code >= 0 else signal.Signals(-code).name
        time.sleep(0.005)
    return "runs"


def shared_numbers(count: int) -> memoryview:
    """Integers, 0 at first, that children see as well."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("q")


def filled(work: Callable[[memoryview], object]) -> int:
    """Have a child fill something up and hold it; what it counted, once it is through."""
    numbers = shared_numbers(2)

    def go() -> None:
        try:
            work(numbers)
        finally:
            numbers[1] = 1
            time.sleep(60)

    child(go)
    deadline = time.monotonic() + PATIENCE
    while not numbers[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(numbers[0])


def hoard(take: Callable[[int], object], size: int) -> dict[str, Any]:
    """Have a child take memory by the piece, up to ``size``; how much, and its end."""
    taken = shared_numbers(1)
    step = 8 * MIB

    def work() -> None:
        kept = []
        while taken[0] < size:
            kept.append(take(step))
            taken[0] += step
        time.sleep(0.2)

    return {"end": ended(child(work), PATIENCE), "taken": taken[0]}


@lru_cache(maxsize=1)
def walk() -> list[tuple[str, os.stat_result]]:
    """Every file and folder of the sandbox but /proc, /sys and its own /tmp."""
    found = []
    for folder, folders, files in os.walk("/"):
        if folder == "/":
            folders[:] = [name for name in folders if name not in {"proc", "sys", "tmp"}]
        for name in ("", *files):
            path = f"{folder}/{name}" if name else folder
            try:
                found.append((path, os.lstat(path)))
            except OSError:
                continue
    return found


def own_sockets() -> list[dict[str, Any]]:
    """The sockets that the kernel holds, with what can be asked of them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with one:
            try:
                peer = os.fsdecode(one.getpeername())
            except OSError:
                peer = None
            found.append(
                {
                    "fd": int(name),
                    "family": int(one.family),
                    "type": int(one.type) & 0xF,
                    "listens": bool(one.getsockopt(socket.SOL_SOCKET, 30)),
                    "name": str(os.fsdecode(one.getsockname())) if one.family == 1 else "",
                    "peer": peer,
                }
            )
    return found


def listeners() -> list[int]:
    """Descriptors of the sockets that were passed in: they listen, on no name of ours."""
    return [
        s["fd"] for s in own_sockets() if s["listens"] and not s["name"].startswith(("\0", "/tmp"))
    ]


def accepted() -> list[int]:
    """Descriptors of connections to the host, accepted on what was passed in."""
    return [
        s["fd"]
        for s in own_sockets()
        if s["peer"] == "" and s["name"] and not s["name"].startswith("\0")
    ]


def copy_of(descriptor: int) -> socket.socket:
    """A socket object on a copy of a descriptor."""
    return socket.socket(fileno=os.dup(descriptor))


def texts() -> dict[str, str]:
    """Environment, command line, maps and open files of every process that can be read."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline", "maps"):
            try:
                with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
                    found[f"{pid}/{name}"] = file.read()
            except OSError:
                continue
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        found[f"{pid}/fd"] = "\n".join(links)
    return found


def processes() -> list[int]:
    """Pids that can be seen in here."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]


if __name__ == "__main__":
    sys.exit("this is sent to a kernel")
