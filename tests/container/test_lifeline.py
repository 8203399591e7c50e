"""D2 to D4, D6, D7: the claim, the limits of a start, and who ends when somebody is killed."""

import asyncio
import json
import os
import queue
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import KERNEL, kernel, run
from proxy import CREATE, INSPECT, REMOVE, START, UPDATE, EngineProxy
from sandboxes import (
    KEY,
    containers_of,
    end,
    failed_launch,
    left_of,
    look,
    session,
    session_of,
    until,
    value,
)

import kernel_provider
from kernel_provider.commands import ps
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import EngineError, LimitNotHeldError, WardenError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session, prune
from kernel_provider.values import MIB
from kernel_provider.warden import cgroup
from kernel_provider.warden.order import Order
from kernel_provider.warden.rendezvous import BACKLOG

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]

CYCLES = int(os.environ.get("EXECUTOR_ML_SOAK_CYCLES", "5"))


# --- the claim (D2) -------------------------------------------------------------------


def say(folder: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Connect to a warden, say one thing, hear its answer; empty if it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(f"{folder}/w")
        connection.sendall(json.dumps(order).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.recv(65536).partition(b"\n")[0] or b"{}")
        return answer


CLAIM = {
    "op": "claim",
    "key": "another",
    "env": {},
    "cwd": "",
    "subscribers": 0,
    "output": KernelPolicy().output,
    "times": KernelPolicy().times,
}


def test_a_second_claim_is_refused(shared_kernel: Pair) -> None:
    """Never the same sandbox twice: the second hears why, the first goes on."""
    folder = session_of(shared_kernel[0]).describe()["warden"]
    assert value(shared_kernel[1], "mine = 1; mine") == 1
    answer = say(folder, CLAIM)
    assert (answer["event"], answer["error"]) == ("failed", "WardenError")
    assert "another's already" in answer["data"]["reason"]
    assert value(shared_kernel[1], "mine") == 1


def test_of_claims_during_the_start_the_first_wins(proxy: EngineProxy) -> None:
    """A claim that comes while the sandbox starts is refused as well."""
    gate = proxy.hold(UPDATE)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    assert proxy.arrived[UPDATE].wait(20)
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(made.describe()["warden"] + "/w")
        late.sendall(json.dumps(CLAIM).encode() + b"\n")
        late.settimeout(10)
        gate.set()
        assert json.loads(late.recv(65536))["event"] == "failed"
    assert asyncio.run(made.launched(30))
    end(made)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"op": "claim"}\n',
        b'{"op": "attach"}\n',
        b"x" * (2 << 20),
    ],
)
def test_nonsense_costs_the_one_who_says_it(shared_kernel: Pair, line: bytes) -> None:
    """A process of the user's that mistakes the socket is hung up on, and that is all."""
    folder = session_of(shared_kernel[0]).describe()["warden"]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(f"{folder}/w")
        try:
            connection.sendall(line)
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
    assert value(shared_kernel[1], "1") == 1


def test_attach_needs_the_key(shared_kernel: Pair) -> None:
    """The key is the password of a second owner; a wrong one is refused."""
    made = session_of(shared_kernel[0])
    with pytest.raises(WardenError, match="key"):
        asyncio.run(Session.attach(made.describe(), key="wrong", environ=os.environ, name="t"))
    with pytest.raises(WardenError, match="key"):
        asyncio.run(Session.attach(made.describe(), key="", environ=os.environ, name="t"))
    assert value(shared_kernel[1], "1") == 1


def test_an_attached_owner_restarts(image: str) -> None:
    """Who joined a kernel can launch its next sandbox: clients find it at the same paths."""
    assert image
    first = Session(environ=os.environ, name="first")
    first.launch(KernelPolicy(), key=KEY, env={})
    asyncio.run(first.launched(30))
    second = asyncio.run(
        Session.attach(first.describe(), key=KEY, environ=os.environ, name="second")
    )
    second.stop()
    assert asyncio.run(second.gone(10))
    second.launch(KernelPolicy(), key=KEY, env={})
    asyncio.run(second.launched(30))
    client = BlockingKernelClient(transport="ipc", ip=second.outer.ip)
    client.session.key = KEY.encode()
    for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), start=1):
        setattr(client, f"{channel}_port", number)
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        assert value(client, "6 * 7") == 42
    finally:
        client.stop_channels()
        second.close()
        first.close()


UNCLAIMED = """
import os, sys
sys.path.append(sys.argv[1])
os.dup2(int(sys.argv[2]), 3)
import kernel_provider.warden.warden as warden
from kernel_provider.warden.main import main
warden.UNCLAIMED = 0.5
main()
"""


@contextmanager
def unclaimed(folder: Path, policy: KernelPolicy) -> Iterator[subprocess.Popen[bytes]]:
    """A warden that nobody has claimed yet."""
    folder.mkdir(mode=0o700)
    order = Order(
        engine="docker",
        address=find_socket(os.environ),
        spec=sandbox_spec(policy, rendezvous=f"{folder}/r"),
        folder=str(folder),
        startup_timeout=30,
    )
    package = str(Path(kernel_provider.__file__).parent.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/w")
        listener.listen(BACKLOG)
        warden = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", UNCLAIMED, package, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
    with warden:
        assert warden.stdin is not None
        warden.stdin.write(order.to_json().encode())
        warden.stdin.close()
        yield warden
        assert warden.wait(20) == 0
    assert not folder.exists()


@pytest.fixture
def place(own_folders: Path) -> Path:
    """Where a warden's folder may be."""
    return own_folders / f"w-{os.getpid()}-{cgroup.start_time(os.getpid())}-un"


def test_an_unclaimed_sandbox_ends(place: Path, engine: docker.DockerClient, image: str) -> None:
    """Parked and never claimed, it goes by itself (after 30 s; here after 0.5)."""
    assert image
    with unclaimed(place, KernelPolicy()) as warden:
        assert until(lambda: containers_of(warden.pid, engine), 10), "the control: it was there"
    assert not containers_of(warden.pid, engine)


def test_a_claim_that_comes_after_the_failure_hears_of_it(place: Path) -> None:
    """A start that failed waits a little for somebody to tell."""
    with unclaimed(place, KernelPolicy(image="executor-ml:none-such")) as warden:
        time.sleep(0.3)
        assert warden.poll() is None
        answer = say(str(place), CLAIM)
    assert (answer["event"], answer["error"]) == ("failed", "ImageUnknownError")


def test_the_key_is_told_to_nobody_else(shared_kernel: Pair, engine: docker.DockerClient) -> None:
    """Not in what the engine knows, nor in any command line or environment on the host."""
    km, client = shared_kernel
    key = km.session.key
    assert len(key) >= 32
    seen = look(session_of(km), engine)
    assert key not in json.dumps(engine.api.inspect_container(seen.container)).encode()
    assert key not in engine.api.logs(seen.container)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found += [process / name] * (key in (process / name).read_bytes())
            except OSError:
                continue
    assert not found
    inside = (
        "import os; told = str(dict(os.environ)) + open('/proc/self/cmdline').read(); "
        f"{key.decode()[:8]!r} in told"
    )
    assert value(client, inside) is False
    leaked = [
        f for f in Path(seen.warden_folder).rglob("*") if f.is_file() and key in f.read_bytes()
    ]
    assert not leaked


# --- the lifeline (D3) ----------------------------------------------------------------

OWNER = """
import asyncio, json, os, signal, sys, time
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session
how = sys.argv[1]
made = Session(environ=os.environ, name="owner")
made.launch(KernelPolicy(), key="key", env={})
print(json.dumps({"pid": made.warden, **made.describe()}), flush=True)
if how == "forks":
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
if how == "forks and goes":
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(made.launched(60))
print(json.dumps(made._need().ready), flush=True)
if how == "stops":
    made.stop()
    print("stopping", flush=True)
time.sleep(60)
"""


class Owner:
    """A process that owns a kernel, to be killed."""

    def __init__(self, how: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, how],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.spawned = json.loads(self.out.readline())
        self.spawned_warden: int = self.spawned["pid"]
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Wait until its kernel serves."""
        self.ready = json.loads(self.out.readline())

    def kill(self, *, group: bool = False) -> None:
        """SIGKILL, to its whole process ``group`` or to itself; and be sure that it is dead."""
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Whatever it forked goes as well."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.out.close()

    def left(self, engine: docker.DockerClient) -> list[str]:
        """What of its kernel is still there."""
        warden = self.spawned_warden
        left = [f"container {c}" for c in containers_of(warden, engine)]
        left += [f"warden {warden}"] * cgroup.is_alive(warden)
        left += [f for f in (self.spawned["session"], self.spawned["warden"]) if Path(f).exists()]
        if self.ready:
            left += [f"PID 1, {self.ready['pid']}"] * cgroup.is_alive(self.ready["pid"])
        return left


@pytest.fixture
def owners(image: str) -> Iterator[list[Owner]]:
    """Owners that are ended with the test."""
    assert image
    made: list[Owner] = []
    yield made
    for owner in made:
        owner.close()


def assert_nothing_left(owner: Owner, engine: docker.DockerClient, seconds: float = 5) -> None:
    """Within 5 s of a death nothing is left, and nothing comes up later."""
    assert until(lambda: not owner.left(engine), seconds), owner.left(engine)


@pytest.mark.parametrize("delay", [step / 10 for step in range(13)])
def test_owner_killed(owners: list[Owner], engine: docker.DockerClient, delay: float) -> None:
    """From the moment its warden exists until it serves: killed any time, nothing is left."""
    owner = Owner()
    owners.append(owner)
    time.sleep(delay)
    owner.kill()
    assert_nothing_left(owner, engine)


@pytest.mark.soak
def test_owner_killed_at_random(owners: list[Owner], engine: docker.DockerClient) -> None:
    """The same many times, at moments nobody chose, and every other time its whole group.

    The figures are in the output.
    """
    took = []
    for cycle in range(CYCLES):
        delay = random.uniform(0, 1.2)  # noqa: S311
        owner = Owner()
        owners.append(owner)
        time.sleep(delay)
        owner.kill(group=cycle % 2 == 1)
        killed = time.monotonic()
        assert until(lambda: not owner.left(engine)), (delay, owner.left(engine))  # noqa: B023
        took.append(time.monotonic() - killed)
        owner.close()
        owners.clear()
    middle = statistics.median(took)
    print(f"{CYCLES} owners killed: nothing left after {middle:.2f} s, at most {max(took):.2f} s")


@pytest.mark.parametrize("call", [CREATE, START, UPDATE])
@pytest.mark.parametrize("when", ["before", "after"])
def test_owner_killed_around_a_call(
    owners: list[Owner], proxy: EngineProxy, engine: docker.DockerClient, call: str, when: str
) -> None:
    """Killed while the engine is about to make, start or limit the container."""
    gate = proxy.hold(call)
    owner = Owner()
    owners.append(owner)
    assert proxy.arrived[call].wait(20)
    if when == "before":
        owner.kill()
        gate.set()
    else:
        gate.set()
        owner.kill()
    assert_nothing_left(owner, engine)


def test_owner_killed_while_it_stops(owners: list[Owner], engine: docker.DockerClient) -> None:
    """A stop that was asked for is seen through by the warden."""
    owner = Owner("stops")
    owners.append(owner)
    owner.wait_ready()
    owner.out.readline()
    owner.kill()
    assert_nothing_left(owner, engine)


def test_owner_killed_whose_child_holds_the_connection(
    owners: list[Owner], engine: docker.DockerClient
) -> None:
    """A forked child that inherited everything does not keep the sandbox alive.

    The folder of the outer sockets, which it holds, can go when it has gone.
    """
    owner = Owner("forks")
    owners.append(owner)
    owner.wait_ready()
    child = [
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if parent(int(p.name)) == owner.process.pid and int(p.name) != owner.spawned_warden
    ]
    owner.kill()
    assert until(lambda: not cgroup.is_alive(owner.spawned_warden))
    assert any(map(cgroup.is_alive, child)), "the control: the child lives on"
    assert until(lambda: owner.left(engine) == [owner.spawned["session"]])
    os.killpg(child[0], signal.SIGKILL)
    assert until(lambda: not cgroup.is_alive(child[0]))
    prune(os.environ)
    assert not owner.left(engine)


def parent(pid: int) -> int:
    """A process's parent."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_owner_dead_before_it_is_accepted(owners: list[Owner], engine: docker.DockerClient) -> None:
    """Its child holds the connection, and it is dead before the warden looks: noticed."""
    owner = Owner("forks and goes")
    owners.append(owner)
    owner.process.wait()
    assert until(lambda: not cgroup.is_alive(owner.spawned_warden))
    assert not containers_of(owner.spawned_warden, engine)


def test_an_attached_owner_keeps_it_alive(owners: list[Owner], engine: docker.DockerClient) -> None:
    """The kernel lives until the last of its owners goes; a mere visitor is none."""
    owner = Owner()
    owners.append(owner)
    owner.wait_ready()
    description = owner.spawned
    second = asyncio.run(Session.attach(description, key="key", environ=os.environ, name="t"))
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(description["warden"] + "/w")
        owner.kill()
        time.sleep(0.5)
        assert cgroup.is_alive(owner.spawned_warden)
        assert cgroup.is_alive(owner.ready["pid"])
        assert second.alive
        second.close()
        assert_nothing_left(owner, engine)


# --- the warden killed ----------------------------------------------------------------


def test_warden_killed(
    image: str, engine: docker.DockerClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The sandbox ends by itself, the owner hears of a death, and a restart works.

    Programs hear of it as of any other death: by the log's record, and by ``ps``.
    """
    assert image
    with kernel() as (km, client):
        session_before = session_of(km)
        seen = look(session_before, engine)
        assert value(client, "before = 1; before") == 1
        os.kill(seen.warden, signal.SIGKILL)
        assert until(lambda: not seen.group.processes(), 2), "its guardian outlived it"
        assert until(lambda: not km.is_alive(), 2)
        death = session_before.death
        assert death is not None
        assert (death.name, death.expected) == ("WardenLost", False)
        (told,) = [vars(r) for r in caplog.records if r.levelname == "WARNING"]
        assert (told["event"], told["cause"]) == ("kernel_died", "WardenLost")
        assert told["exit_code"] == death.exit_code
        row = ps.died(os.environ)[-1]
        assert (row.name, row.uid) == (told["container"], seen.uid)
        assert row.death is not None
        assert (row.death.name, row.death.reason) == (death.name, death.reason)
        assert (row.kernel, row.owner, row.memory_limit) == (KERNEL, os.getpid(), 512 * MIB)
        assert abs(time.time() - row.death.at) < 30
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=30)
        assert run(client, "before").error["ename"] == "NameError"
        assert until(lambda: not left_of(seen, engine)), left_of(seen, engine)


def test_warden_killed_then_closed(engine: docker.DockerClient, image: str) -> None:
    """An owner that closes after its warden was killed leaves nothing to later starts."""
    assert image
    with session() as made:
        seen = look(made, engine)
        os.kill(seen.warden, signal.SIGKILL)
        assert until(lambda: made.death is not None)
    assert until(lambda: not left_of(seen, engine), 2)  # somebody else's sweep may be at it


def test_warden_terminated(engine: docker.DockerClient, image: str) -> None:
    """SIGTERM (a machine that shuts down) ends everything in order."""
    assert image
    with session() as made:
        seen = look(made, engine)
        os.kill(seen.warden, signal.SIGTERM)
        assert until(lambda: made.death is not None)
        made.close()
        assert until(lambda: not left_of(seen, engine))


def test_warden_terminated_while_it_starts(proxy: EngineProxy, engine: docker.DockerClient) -> None:
    """In the middle of making a container, too."""
    gate = proxy.hold(CREATE)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    assert proxy.arrived[CREATE].wait(10)
    warden = made.warden
    assert warden is not None
    os.kill(warden, signal.SIGTERM)
    gate.set()
    assert until(lambda: not cgroup.is_alive(warden))
    assert not containers_of(warden, engine)
    with pytest.raises(WardenError, match=r"was told to end \(SIGTERM\) during its start"):
        asyncio.run(made.launched(5))
    made.close()


def end_in_its_launch(number: int, delay: float, engine: docker.DockerClient) -> None:
    """Signal a warden so long after it was started: an error, then nothing left.

    What the engine was about to make when it died is found by the sweep.
    """
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden, folder = made.warden, Path(made.describe()["warden"])
    assert warden is not None
    time.sleep(delay)
    os.kill(warden, number)
    pid = 0
    try:
        pid = asyncio.run(made.launched(30))["pid"]
    except WardenError as error:
        assert re.search("ended while it was starting|told to end", str(error))  # noqa: PT017
    else:
        assert until(lambda: made.death is not None)
        assert made.death is not None
        assert made.death.name == "WardenLost"
    made.close()
    assert until(lambda: not (prune(os.environ) or containers_of(warden, engine)), 10), delay
    assert until(lambda: not (cgroup.is_alive(warden) or (pid and cgroup.is_alive(pid)))), delay
    assert until(lambda: not folder.exists()), delay
    assert not Path(made.outer.folder).exists()


@pytest.mark.parametrize("delay", [0.0, 0.04, 0.08, 0.13, 0.2, 0.3, 0.45, 0.6])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_warden_ended_while_it_starts(
    engine: docker.DockerClient, image: str, number: int, delay: float
) -> None:
    """At any moment of a launch: told as an error, and nothing is left."""
    assert image
    end_in_its_launch(number, delay, engine)


@pytest.mark.soak
def test_warden_ended_at_random(engine: docker.DockerClient, image: str) -> None:
    """The same many times, at moments nobody chose."""
    assert image
    for cycle in range(CYCLES):
        number = signal.SIGTERM if cycle % 3 == 0 else signal.SIGKILL
        end_in_its_launch(number, random.uniform(0, 0.8), engine)  # noqa: S311


def test_warden_stopped(engine: docker.DockerClient, image: str) -> None:
    """A warden that is stopped (SIGSTOP) harms nobody: all goes on when it does.

    The kernel runs on unheard. If its owner lets go meanwhile, it ends when the warden is
    continued, and not before.
    """
    assert image
    with kernel() as (km, client):
        seen = look(session_of(km), engine)
        os.kill(seen.warden, signal.SIGSTOP)
        try:
            request = client.execute("5 * 5")
            with pytest.raises(queue.Empty):
                client.get_shell_msg(timeout=0.5)
            assert cgroup.is_alive(seen.guardian)
        finally:
            os.kill(seen.warden, signal.SIGCONT)
        assert client.get_shell_msg(timeout=10)["parent_header"]["msg_id"] == request
    with session() as made:
        seen = look(made, engine)
        os.kill(seen.warden, signal.SIGSTOP)
        made.close()
        time.sleep(0.2)
        assert seen.group.processes()
        os.kill(seen.warden, signal.SIGCONT)
        assert until(lambda: not left_of(seen, engine))


# --- both killed ----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["prune", "the next start"])
def test_both_killed(
    owners: list[Owner], shared_kernel: Pair, engine: docker.DockerClient, by: str
) -> None:
    """What is left is removed by ``prune`` or the next start, and nothing of the living."""
    owner = Owner()
    owners.append(owner)
    owner.wait_ready()
    os.kill(owner.process.pid, signal.SIGSTOP)  # so that neither sees the other's end
    os.kill(owner.spawned_warden, signal.SIGKILL)
    owner.kill()
    assert until(lambda: not cgroup.is_alive(owner.ready["pid"]), 2), "PID 1 ends by itself"
    assert containers_of(owner.spawned_warden, engine), "the control: something is left"
    if by == "prune":
        removed = prune(os.environ)
        assert f"executor-ml-{owner.ready['uid']}" in removed
        assert Path(owner.spawned["session"]).name in removed
        assert prune(os.environ) == ()
    else:
        with session():
            assert_nothing_left(owner, engine)
    assert not owner.left(engine)
    assert value(shared_kernel[1], "1") == 1, "a living kernel was hurt"


def test_prune_by_command(owners: list[Owner], engine: docker.DockerClient) -> None:
    """``executor-ml prune`` says what it removed; a living kernel is not among it."""
    owner, living = Owner(), Owner()
    owners += [owner, living]
    owner.wait_ready()
    living.wait_ready()
    time.sleep(0.5)  # it looks for the dead when it starts, and there is none yet
    os.kill(owner.process.pid, signal.SIGSTOP)
    os.kill(owner.spawned_warden, signal.SIGKILL)
    owner.kill()
    assert until(lambda: not cgroup.is_alive(owner.ready["pid"]), 2)
    start = "import sys; from kernel_provider.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "prune", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    removed = json.loads(done.stdout)
    assert f"executor-ml-{owner.ready['uid']}" in removed
    assert f"executor-ml-{living.ready['uid']}" not in removed
    assert not owner.left(engine)
    assert len(containers_of(living.spawned_warden, engine)) == 1


# --- stopped means stopped ------------------------------------------------------------


def test_stopped_means_stopped(engine: docker.DockerClient, image: str) -> None:
    """When a stop is told to be over, PID 1 and everybody in the group are gone."""
    assert image
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    asyncio.run(made.launched(30))
    seen = look(made, engine)
    everybody = seen.group.processes()
    assert len(everybody) >= 2
    made.stop()
    assert asyncio.run(made.gone(10))
    assert not any(map(cgroup.is_alive, everybody))
    assert seen.group.processes() == ()
    assert not containers_of(seen.warden, engine)
    made.close()


def test_an_engine_that_lies_about_removal(proxy: EngineProxy) -> None:
    """An engine forgets a container whose processes run on: looked at, not believed."""
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    asyncio.run(made.launched(30))
    with_real_engine = docker.DockerClient(base_url=f"unix://{proxy.engine}")
    seen = look(made, with_real_engine)
    with_real_engine.close()
    proxy.answers[REMOVE] = 404
    made.stop()
    assert asyncio.run(made.gone(15))
    assert seen.group.processes() == ()
    del proxy.answers[REMOVE]
    made.close()
    assert until(lambda: not cgroup.is_alive(seen.warden))
    prune(os.environ)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can stop a sandbox's PID 1")
def test_a_sandbox_that_is_not_gone_is_told(proxy: EngineProxy) -> None:
    """Where processes outlive everything, the end is not told as a stop."""
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    pid = asyncio.run(made.launched(30))["pid"]
    os.kill(pid, signal.SIGSTOP)
    proxy.answers[REMOVE] = 404
    made.stop()
    assert asyncio.run(made.gone(20))
    death = made.death
    assert death is not None
    assert (death.name, death.expected) == ("SandboxLost", False)
    os.kill(pid, signal.SIGCONT)
    del proxy.answers[REMOVE]
    made.close()
    prune(os.environ)
    assert until(lambda: not cgroup.is_alive(pid))


# --- limits at the start (D4, D6) -----------------------------------------------------


def test_full_speed_until_the_first_message(proxy: EngineProxy) -> None:
    """Open while the interpreter starts, closed when the first cell runs.

    All other limits hold from the start.
    """
    engine = docker.DockerClient(base_url=f"unix://{proxy.engine}")
    gate = proxy.hold(UPDATE)
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    warden = made.warden
    assert warden is not None
    assert proxy.arrived[UPDATE].wait(20)
    (container,) = containers_of(warden, engine)
    group = cgroup.Cgroup(engine.api.inspect_container(container)["State"]["Pid"])
    engine.close()
    starting = group.limits()
    gate.set()
    asyncio.run(made.launched(30))
    serving = group.limits()
    end(made)
    assert starting["cpu_quota"] == cgroup.UNLIMITED
    assert (serving["cpu_quota"], serving["cpu_period"]) == (50_000, 100_000)
    for limits in (starting, serving):
        assert limits["memory"] == limits["memory+swap"] == 512 << 20
        assert limits["pids"] == 128


def test_the_first_cell_is_limited(image: str) -> None:
    """What the first cell itself reads of its group: half a processor."""
    assert image
    code = """
from pathlib import Path
root = Path("/sys/fs/cgroup")
new = root / "cpu.max"
old = [root / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
tuple(map(int, new.read_text().split() if new.exists() else [f.read_text() for f in old]))
"""
    with kernel() as (_, client):
        assert value(client, code) == (50_000, 100_000)


def test_an_engine_that_refuses_to_limit(proxy: EngineProxy) -> None:
    """An engine that can't close a limit later gets it closed from the start."""
    proxy.answers[UPDATE] = 500
    made = Session(environ=os.environ, name="test")
    made.launch(KernelPolicy(), key=KEY, env={})
    pid = asyncio.run(made.launched(30))["pid"]
    limits = cgroup.Cgroup(pid).limits()
    assert (limits["cpu_quota"], limits["cpu_period"]) == (50_000, 100_000)
    assert proxy.calls.count(CREATE) == 2
    made.stop()
    assert asyncio.run(made.gone(10))
    made.close()


def without(key: str) -> Any:
    """A change to a create call: one limit is dropped."""

    def edit(body: dict[str, Any]) -> dict[str, Any]:
        body["HostConfig"].pop(key)
        return body

    return edit


@pytest.mark.parametrize(
    ("dropped", "key"),
    [("Memory", "memory"), ("MemorySwap", "memory+swap"), ("PidsLimit", "pids")],
)
def test_a_limit_that_reads_back_differently(
    proxy: EngineProxy, engine: docker.DockerClient, dropped: str, key: str
) -> None:
    """An engine that takes a limit and does not set it: the launch names it."""

    def edit(body: dict[str, Any]) -> dict[str, Any]:
        body["HostConfig"].pop(dropped)
        if dropped == "Memory":
            body["HostConfig"].pop("MemorySwap")
        return body

    proxy.requests[CREATE] = edit
    error = failed_launch(engine)
    assert isinstance(error, LimitNotHeldError)
    assert error.data["key"] == key


def test_a_processor_limit_that_reads_back_differently(
    proxy: EngineProxy, engine: docker.DockerClient
) -> None:
    """The same for the limit that is closed later."""
    proxy.requests[UPDATE] = lambda body: {**body, "CpuQuota": 150_000}
    error = failed_launch(engine)
    assert isinstance(error, LimitNotHeldError)
    assert (error.data["key"], error.data["found"]) == ("cpu_quota", 150_000)


@pytest.mark.parametrize("call", [CREATE, UPDATE])
def test_any_warning_ends_the_launch(
    proxy: EngineProxy, engine: docker.DockerClient, call: str
) -> None:
    """An engine warns when it discards a limit, and goes on; we don't."""
    words = "Your kernel does not support swap limit capabilities"
    proxy.replies[call] = lambda answer: {**answer, "Warnings": [words]}
    error = failed_launch(engine)
    assert isinstance(error, LimitNotHeldError)
    assert words in str(error)


@pytest.mark.parametrize("call", [CREATE, START, "GET /images/NAME/json", INSPECT])
def test_an_engine_that_fails(proxy: EngineProxy, engine: docker.DockerClient, call: str) -> None:
    """Whichever call of a start fails: an error with the engine's words, nothing left."""
    proxy.answers[call] = 500
    error = failed_launch(engine)
    assert isinstance(error, EngineError)
    assert "the test says no" in str(error)


def test_an_engine_that_answers_nonsense(proxy: EngineProxy, engine: docker.DockerClient) -> None:
    """An answer without what it should hold ends the launch, and leaves nothing."""
    proxy.replies[INSPECT] = lambda _: {"State": {}}
    error = failed_launch(engine)
    assert isinstance(error, EngineError)
    assert "inspect the sandbox: its answer was not understood" in str(error)


# --- the least of Docker (D7) ---------------------------------------------------------


def test_the_calls_of_a_kernels_life(proxy: EngineProxy) -> None:
    """Start, interrupt, restart, stop: these calls are made of the engine and no others."""
    with kernel() as (km, client):
        run(client, "1")
        session_of(km).signal(signal.SIGINT)
        km.restart_kernel()
        client.wait_for_ready(timeout=30)
        run(client, "1")
    assert set(proxy.calls) == {
        "GET /info",
        "GET /images/NAME/json",
        CREATE,
        START,
        INSPECT,
        UPDATE,
        "POST /containers/ID/kill",
        "GET /containers/json",
        REMOVE,
    }
