"""D11: PID 1 of a sandbox, as code in the notebook finds it, and what it costs."""

import os
import signal
import time
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel, run
from sandboxes import look, memory, session, session_of, until, value

from kernel_provider.warden import cgroup

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]

LEAST_MB = 15


def test_pid_one_is_the_guardian(shared_kernel: Pair) -> None:
    """The kernel is its child, in a process group and session of its own."""
    code = """
import os
command = open("/proc/1/cmdline").read().split("\\0")
(command[-2], os.getpid() != 1, os.getppid(), os.getpgrp() == os.getsid(0) == os.getpid())
"""
    assert value(shared_kernel[1], code) == ("/opt/executor/guardian.py", True, 1, True)


def test_pid_one_is_closed_to_its_own_uid(shared_kernel: Pair) -> None:
    """Its memory, descriptors and environment are refused to code of the same uid.

    Of the kernel itself they can be read.
    """
    code = """
import os
def look(pid):
    refused = []
    for name in ("mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "io"):
        try:
            open(f"/proc/{pid}/{name}", "rb").read(0 if name == "mem" else 1)
        except OSError:
            refused.append(name)
    for name in ("fd", "map_files", "fdinfo"):
        try:
            os.listdir(f"/proc/{pid}/{name}")
        except OSError:
            refused.append(name)
    for name in ("exe", "cwd", "root", "ns/net", "fd/0"):
        try:
            os.readlink(f"/proc/{pid}/{name}")
        except OSError:
            refused.append(name)
    return refused
uids = open("/proc/1/status").read().split("Uid:")[1].split()[:4]
(look(1), look("self"), set(uids) == {str(os.getuid())})
"""
    guardian, own, same = value(shared_kernel[1], code)
    assert same, "the control: it is the same uid"
    closed = {"mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "io"}
    closed |= {"fd", "fdinfo", "exe", "cwd", "root", "ns/net", "fd/0", "map_files"}
    # Linux 6.? lets the names in fdinfo be listed; opening them stays refused
    assert closed - set(guardian) <= {"fdinfo"}
    assert {"mem", "environ", "maps", "fd", "exe", "ns/net", "fd/0"}.isdisjoint(own)


def test_pid_one_cannot_be_written_to(shared_kernel: Pair) -> None:
    """Neither its memory nor how likely it is to be killed for memory."""
    code = """
told = []
attempts = {"mem": b"x", "oom_score_adj": b"1000", "comm": b"x", "coredump_filter": b"0"}
for name, text in attempts.items():
    try:
        with open("/proc/1/" + name, "r+b", buffering=0) as file:
            file.write(text)
        told.append(name)
    except OSError:
        pass
told
"""
    assert value(shared_kernel[1], code) == []


@pytest.mark.parametrize("name", ["KILL", "STOP", "TERM", "INT", "HUP", "SEGV", "USR1", "QUIT"])
def test_signals_from_inside_do_not_end_pid_one(
    shared_kernel: Pair, engine: docker.DockerClient, name: str
) -> None:
    """Whatever code in the notebook sends it, the guardian is there and does its work.

    What it passes on reaches the kernel's own group, which could signal itself as well.
    """
    seen = look(session_of(shared_kernel[0]), engine)
    code = f"""
import os, signal, time
for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGINT):
    signal.signal(n, lambda *_: None)
try:
    os.kill(1, signal.SIG{name})
    told = "sent"
except OSError as error:
    told = str(error)
time.sleep(0.2)
told
"""
    assert value(shared_kernel[1], code) == "sent"
    assert state_of(seen.guardian) in {"S", "R"}, "neither stopped nor ended"
    assert value(shared_kernel[1], "1 + 1") == 2


def state_of(pid: int) -> str:
    """One letter: running, sleeping, stopped..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_orphans_are_reaped(shared_kernel: Pair) -> None:
    """Processes that lost their parent leave no zombie, however many there are."""
    code = """
import os, time
def orphan():
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os._exit(7)
        os._exit(0)
    os.waitpid(child, 0)
for _ in range(200):
    orphan()
def zombies():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [pid] * (open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z")
        except OSError:
            pass
    return found
deadline = time.monotonic() + 3
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
zombies()
"""
    assert value(shared_kernel[1], code) == []


BACKGROUND = """
import os, signal, subprocess, sys
ignoring = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; "
ignoring += "print(1, flush=True); time.sleep(600)"
process = subprocess.Popen(
    [sys.executable, "-c", ignoring], start_new_session=True, stdout=subprocess.PIPE)
process.stdout.read(1)
process.pid
"""


@pytest.mark.parametrize("end", ["stopped", "exits", "killed"])
def test_background_processes_end_with_the_kernel(engine: docker.DockerClient, end: str) -> None:
    """In sessions of their own and deaf to signals: after the kernel nobody is left."""
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        assert value(client, BACKGROUND) > 1
        before = seen.group.processes()
        assert len(before) >= 3
        if end == "stopped":
            km.shutdown_kernel(now=True)
        else:
            client.execute(
                "import os; os._exit(3)" if end == "exits" else "os.kill(os.getpid(), 9)"
            )
        assert until(lambda: not any(map(cgroup.is_alive, before)))
        assert seen.group.processes() == ()


def test_the_engines_signals_reach_the_kernels_group(shared_kernel: Pair) -> None:
    """An interrupt by signal reaches the kernel's children as well (their group)."""
    km, client = shared_kernel
    code = """
import subprocess, sys
waits = "import time\\ntry:\\n  time.sleep(60)\\nexcept KeyboardInterrupt:\\n  print('told')"
child = subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE, text=True)
import time; time.sleep(0.5); print("go", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    pass
child.communicate(timeout=10)[0]
"""
    request = client.execute(code)
    seen = ""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=10)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            session_of(km).signal(signal.SIGINT)
        if message["msg_type"] == "execute_result":
            seen = message["content"]["data"]["text/plain"]
            break
    client.get_shell_msg(timeout=10)
    assert "told" in seen


def test_memory_of_both_watchers(engine: docker.DockerClient) -> None:
    """Guardian and warden stay at or under 15 MB, while serving and after 100 MB of output."""
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        run(client, "print('x' * 1000)")
        figures = {"at first": both(seen.guardian, seen.warden)}
        before = memory(seen.warden)
        outcome = run(client, "for _ in range(100): print('x' * 2**20)", timeout=120)
        assert len(outcome.stdout) > 100 << 20
        figures["after 100 MB"] = both(seen.guardian, seen.warden)
        print(figures)
        for measured in figures.values():
            assert max(measured.values()) <= LEAST_MB, figures
        assert memory(seen.warden) < before + 2, "what passes through stays in the warden"


def both(guardian: int, warden: int) -> dict[str, float]:
    """Resident and proportional size of both."""
    return {
        f"{name} {field}": round(memory(pid, field), 1)
        for name, pid in (("guardian", guardian), ("warden", warden))
        for field in ("VmRSS", "Pss")
    }


def test_pid_one_ends_when_its_connection_does(engine: docker.DockerClient) -> None:
    """Without its warden the sandbox ends by itself, with all that ran in it."""
    with session() as running:
        seen = look(running, engine)
        os.kill(seen.warden, signal.SIGKILL)
        assert until(lambda: not cgroup.is_alive(seen.guardian), 2)
        assert until(lambda: not seen.group.processes(), 2)
