"""D11: what PID 1 of a sandbox does, and what it costs. What it withstands: the self-test."""

import os
import signal
import time

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


BACKGROUND = """
import os, signal, subprocess, sys
ignoring = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; "
ignoring += "print(1, flush=True); time.sleep(600)"
process = subprocess.Popen(
    [sys.executable, "-c", ignoring], start_new_session=True, stdout=subprocess.PIPE)
process.stdout.read(1)
process.pid
"""


def test_background_processes_end_with_the_kernel(engine: docker.DockerClient) -> None:
    """In sessions of their own and deaf to signals: after a killed kernel nobody is left.

    After one that was stopped, or ended itself, the self-test looks.
    """
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        assert value(client, BACKGROUND) > 1
        before = seen.group.processes()
        assert len(before) >= 3
        client.execute("os.kill(os.getpid(), 9)")
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
