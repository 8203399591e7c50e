"""Drills: what happens to kernels when everything around them goes wrong, or all at once."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager
from kernels import KERNEL, kernel, run
from proxy import CREATE, INSPECT, REMOVE, START, EngineProxy
from sandboxes import (
    KEY,
    containers_of,
    left_of,
    look,
    session,
    session_of,
    until,
)

from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import EngineError
from kernel_provider.policy import KernelPolicy
from kernel_provider.pool import hand
from kernel_provider.recipe import Recipe
from kernel_provider.session import Session, prune
from kernel_provider.warden import cgroup, shelf

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]

CYCLES = int(os.environ.get("EXECUTOR_ML_SOAK_CYCLES", "5"))
GONE_WITHIN = 5.0


# --- owners that are killed -----------------------------------------------------------------

OWNER = """
import json, sys, time
from jupyter_client.manager import KernelManager
km = KernelManager(kernel_name="executor-ml")
km.start_kernel()
session = km.provisioner.session
print(json.dumps({**session.describe(), **session._need().ready}), flush=True)
if "running" in sys.argv:
    client = km.client()
    client.start_channels()
    client.wait_for_ready(timeout=30)
    client.execute("import subprocess, time; subprocess.Popen(['sleep', '60']); print('on')\\n"
                   "time.sleep(60)")
    while client.get_iopub_msg(timeout=30)["content"].get("text") != "on\\n":
        pass
    print("{}", flush=True)
time.sleep(60)
"""
JSON = KernelPolicy(preload=("json",))


class Server:
    """A process of this user with a kernel of its own, and a child beside itself."""

    def __init__(self, how: str = "idle") -> None:
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f'sleep 60 & exec {sys.executable} -c "$0" {how}', OWNER],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.told: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Wait until it has a kernel; one that runs a cell has another line to say."""
        self.told = json.loads(self.out.readline())

    @property
    def guardian(self) -> int:
        """PID 1 of its sandbox, by its number on the host."""
        return int(self.told["pid"])

    def kill_all(self) -> None:
        """SIGKILL to everybody in its process group at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def left(self) -> list[str]:
        """What of its kernel is still there."""
        left = [f for f in (self.told["session"], self.told["warden"]) if Path(f).exists()]
        return left + ["PID 1"] * cgroup.is_alive(self.guardian)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Ended with the test."""
    made: list[Server] = []
    yield made
    for server in made:
        server.kill_all()
        server.out.close()


def test_an_owner_killed_with_its_whole_group_while_a_cell_runs(
    servers: list[Server], engine: docker.DockerClient
) -> None:
    """The wardens are in sessions of their own: they see it, and leave nothing."""
    server = Server("running")
    servers.append(server)
    server.wait_ready()
    assert server.out.readline()
    group = cgroup.Cgroup(server.guardian)
    assert len(group.processes()) >= 3, "the control: the cell's own child"
    server.kill_all()
    assert until(lambda: not server.left() and not group.processes(), GONE_WITHIN), server.left()
    assert not [c for c in containers(engine) if c == server.told["container"]]


def containers(engine: docker.DockerClient) -> list[str]:
    """All sandboxes of the engine."""
    rows = engine.api.containers(all=True, filters={"label": "executor-ml=kernel"})
    engine.close()
    return [row["Id"] for row in rows]


def test_an_owner_killed_right_after_its_claim() -> None:
    """It took a parked sandbox and died at once: nobody else gets it, and it goes."""
    recipe = Recipe(policy=JSON, address=find_socket(os.environ))
    hand.park(recipe, "test", os.environ)
    root = os.environ["EXECUTOR_ML_RUNTIME_DIR"]
    (entry,) = shelf.entries(root)
    code = (
        "import os, signal; from kernel_provider.session import Session\n"
        "from kernel_provider.policy import KernelPolicy\n"
        "made = Session(environ=os.environ, name='test')\n"
        "made.launch(KernelPolicy(preload=('json',)), key='k' * 32, env={})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not shelf.entries(root)
    assert until(lambda: not cgroup.is_alive(entry.pid), GONE_WITHIN)
    assert until(lambda: not Path(entry.folder).exists(), GONE_WITHIN)
    assert until(lambda: prune(os.environ) == (), GONE_WITHIN)


def test_two_servers_of_one_user_leave_each_other_alone(servers: list[Server]) -> None:
    """Starts, ends and ``prune`` of the one never touch what the other has, parked or not."""
    first, second = Server(), Server()
    servers += [first, second]
    first.wait_ready()
    second.wait_ready()
    prune(os.environ)
    assert cgroup.is_alive(second.guardian)
    second.kill_all()
    assert until(lambda: not second.left(), GONE_WITHIN)
    with session():
        assert prune(os.environ) == ()
    assert cgroup.is_alive(first.guardian)
    assert Path(first.told["session"]).exists()


# --- engines that answer nonsense -------------------------------------------------------------

SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda _: b"\x16\x03\x01\xff\x00 no HTTP",
    "half": lambda data: data[: len(data) // 2],
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("call", ["GET /images/NAME/json", CREATE, INSPECT])
def test_an_engine_that_answers_garbage_or_half(
    proxy: EngineProxy, engine: docker.DockerClient, call: str, how: str
) -> None:
    """A typed error at once, and nothing left but what an engine made and did not tell of.

    That goes with the next start.
    """
    proxy.spoils[call] = SPOILT[how]
    made = Session(environ=os.environ, name="test")
    made.launch(JSON, key=KEY, env={})
    warden = made.warden
    assert warden is not None
    begun = time.monotonic()
    with pytest.raises(EngineError):
        asyncio.run(made.launched(30))
    assert time.monotonic() - begun < 10
    made.close()
    assert until(lambda: not cgroup.is_alive(warden))
    del proxy.spoils[call]
    prune(os.environ)
    assert not containers_of(warden, engine)


async def longest_pause(work: Any) -> float:
    """Seconds that an event loop stood still while something else was done on it."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - begun)

    ticking = asyncio.create_task(tick())
    try:
        await work
    finally:
        ticking.cancel()
    return longest


def test_the_servers_loop_never_waits_for_the_engine(proxy: EngineProxy) -> None:
    """Start, poll, interrupt, end, with an engine that hangs at each: others are served."""

    async def life() -> None:
        km = AsyncKernelManager(kernel_name=KERNEL)
        gate = proxy.hold(START)
        starting = asyncio.ensure_future(km.start_kernel())
        await asyncio.to_thread(proxy.arrived[START].wait, 20)
        await asyncio.sleep(0.5)
        gate.set()
        await starting
        gates = [proxy.hold(call) for call in (INSPECT, REMOVE, "POST /containers/ID/kill")]
        assert await km.is_alive()
        assert km.provisioner is not None
        await km.provisioner.send_signal(signal.SIGINT)
        assert await km.is_alive()
        ending = asyncio.ensure_future(km.shutdown_kernel(now=True))
        await asyncio.to_thread(proxy.arrived[REMOVE].wait, 20)
        await asyncio.sleep(0.5)
        for gate in gates:
            gate.set()
        await ending

    # a launch does some work of its own, and this machine may have other things to do
    assert asyncio.run(longest_pause(life())) < 0.5


# --- many at once -----------------------------------------------------------------------------


def at_once(count: int, engine: docker.DockerClient) -> tuple[float, float]:
    """Start so many in the same moment and end them in the same; seconds for each."""
    made = [Session(environ=os.environ, name=f"test-{number}") for number in range(count)]

    async def start() -> None:
        for one in made:
            one.launch(JSON, key=KEY, env={})
        await asyncio.gather(*(one.launched(55) for one in made))

    async def stop() -> None:
        for one in made:
            one.stop()
        assert all(await asyncio.gather(*(one.gone(30) for one in made)))

    try:
        begun = time.monotonic()
        asyncio.run(start())
        ready = time.monotonic()
        seen = [look(one, engine) for one in made]
        assert len({one.uid for one in seen}) == count
        asyncio.run(stop())
        ended = time.monotonic()
    finally:
        for one in made:
            one.close()
    assert until(lambda: not [left for one in seen for left in left_of(one, engine)])
    return ready - begun, ended - ready


def test_many_kernels_at_once(engine: docker.DockerClient) -> None:
    """All ready, each with a uid of its own; all removed, and nothing left."""
    at_once(4, engine)


@pytest.mark.soak
def test_sixteen_kernels_at_once(engine: docker.DockerClient) -> None:
    """The same with sixteen; the figures are in the output."""
    ready, ended = at_once(16, engine)
    print(f"16 kernels: ready in {ready:.1f} s, removed in {ended:.1f} s")


# --- restarts and ends ------------------------------------------------------------------------


def restarts_while_printing(km: KernelManager, client: BlockingKernelClient, count: int) -> None:
    """Restart a kernel in the middle of its output, again and again."""
    for number in range(count):
        client.execute(f"while True: print('old-{number}', flush=True)")
        while client.get_iopub_msg(timeout=20)["content"].get("text", "")[:4] != "old-":
            pass
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        outcome = run(client, f"print('new-{number}')")
        assert outcome.stdout == f"new-{number}\n"
        with suppress(queue.Empty):
            while True:
                message = client.get_iopub_msg(timeout=0.05)
                assert "old-" not in message["content"].get("text", "")


def test_nothing_of_an_old_kernel_is_heard_in_the_new() -> None:
    """What it had said before its end is its own cell's; the next cell has only its own."""
    with kernel() as (km, client):
        restarts_while_printing(km, client, 2)


@pytest.mark.soak
def test_restarts_while_a_cell_prints() -> None:
    """The same, 100 times or as many as asked for."""
    with kernel() as (km, client):
        restarts_while_printing(km, client, CYCLES)


FORK_BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('on', flush=True)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
"""


def test_a_fork_bomb_is_killed_in_five_seconds(engine: docker.DockerClient) -> None:
    """It has all its processes and all its processor time, and everyone tries to fork."""
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        client.execute(FORK_BOMB)
        assert until(lambda: seen.group.load().pids >= 128, 30), "the control: it is full"
        begun = time.monotonic()
        km.shutdown_kernel(now=True)
        assert until(lambda: not seen.group.processes(), GONE_WITHIN)
        assert time.monotonic() - begun < GONE_WITHIN
        assert until(lambda: not left_of(seen, engine))
