"""D1: what changes hands between warden and sandbox, and who may take part in it."""

import asyncio
import json
import os
import socket
import stat
import threading
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from proxy import START, EngineProxy, answer
from sandboxes import KEY, Seen, containers_of, look, session_of, sockets, until, value

from kernel_provider import names
from kernel_provider.engines import NameTakenError, SandboxSpec
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import StartError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.session import Session
from kernel_provider.warden import cgroup
from kernel_provider.warden.sandbox import Sandbox

pytestmark = pytest.mark.container
Pair = tuple[KernelManager, BlockingKernelClient]

DESCRIPTORS = """
import os, socket
found = []
for name in os.listdir("/proc/self/fd"):
    try:
        link = os.readlink("/proc/self/fd/" + name)
        s = socket.socket(fileno=os.dup(int(name))) if link.startswith("socket:") else None
    except OSError:
        continue
    if s is None:
        continue
    try:
        peer = os.fsdecode(s.getpeername())
    except OSError:
        peer = None
    found.append((link, int(s.family), int(s.type), s.getsockopt(socket.SOL_SOCKET, 30),
                  os.fsdecode(s.getsockname()), peer))
    s.close()
found
"""


@pytest.fixture
def seen(shared_kernel: Pair, engine: docker.DockerClient) -> Seen:
    """The module's kernel, seen from the host."""
    return look(session_of(shared_kernel[0]), engine)


def test_what_the_kernel_holds(shared_kernel: Pair, seen: Seen) -> None:
    """AF_UNIX streams only, each listening or connected, and no name tells a host folder.

    An unbound socket would reach the host's abstract sockets, and one of AF_INET could be
    turned into a connection in the host's network.
    """
    held = value(shared_kernel[1], DESCRIPTORS)
    passed = [
        link for link, _, _, accepts, name, _ in held if accepts and not name.startswith("\0")
    ]
    assert len(passed) == 5
    for _, family, kind, accepts, name, peer in held:
        assert (family, kind & 0xF) == (socket.AF_UNIX, socket.SOCK_STREAM)
        assert accepts or peer is not None
        assert not name or name.startswith(("/proc/self/fd/", "\0executor-iopub-", "\0"))
        assert seen.warden_folder not in name
    assert not set(passed) & sockets(seen.warden), "the warden kept a listener"
    assert not set(passed) & sockets(seen.guardian), "the guardian kept a listener"
    assert set(passed) <= kernel_sockets(seen), "the control: seen from the host as well"
    assert len(sockets(seen.guardian)) == 1, "more than its connection to the warden"


def kernel_sockets(seen: Seen) -> set[str]:
    """Sockets of everybody in the sandbox but the guardian."""
    return set().union(*(sockets(p) for p in seen.group.processes() if p != seen.guardian))


# --- strangers ------------------------------------------------------------------------


def launch_held_at_start(proxy: EngineProxy) -> tuple[Session, Path, threading.Event]:
    """A launch whose container is made and not started: the rendezvous is open."""
    gate = proxy.hold(START)
    session = Session(environ=os.environ, name="test")
    session.launch(KernelPolicy(), key=KEY, env={})
    assert proxy.arrived[START].wait(10)
    return session, Path(session.describe()["warden"]), gate


def assert_refused(session: Session, engine: docker.DockerClient) -> None:
    """The launch says that a stranger came, and nothing is left of it."""
    folder = Path(session.describe()["warden"])
    pid = session.warden
    assert pid is not None
    with pytest.raises(StartError, match="stranger"):
        asyncio.run(session.launched(30))
    assert not containers_of(pid, engine)
    session.close()
    assert until(lambda: not folder.exists())
    assert until(lambda: not cgroup.is_alive(pid))


def test_a_stranger_on_the_host_is_refused(proxy: EngineProxy, engine: docker.DockerClient) -> None:
    """A process that connects before the guardian gets nothing and ends the launch.

    The rendezvous is alone in its folder, which only the owner's user can reach.
    """
    session, folder, gate = launch_held_at_start(proxy)
    assert [path.name for path in (folder / "r").iterdir()] == ["s"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(folder / "r/s"))
        stranger.settimeout(10)
        gate.set()
        assert_refused(session, engine)
        assert stranger.recv(100) == b""
        with socket.socket(socket.AF_UNIX) as second, pytest.raises(OSError, match="o"):
            second.connect(str(folder / "r/s"))


def test_a_stranger_in_another_container_is_refused(
    proxy: EngineProxy, engine: docker.DockerClient, image: str
) -> None:
    """Even with the folder mounted and as PID 1 of its own container."""
    session, folder, gate = launch_held_at_start(proxy)
    code = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/r/s'); "
        "print('connected', flush=True); print(socket.recv_fds(s, 9, 9)[:2], flush=True)"
    )
    stranger = engine.containers.create(
        image,
        entrypoint=[names.SANDBOX_PYTHON, "-c", code],
        labels={names.LABEL: "test"},
        network_mode="none",
        volumes={str(folder / "r"): {"bind": "/r", "mode": "ro"}},
    )
    try:
        stranger.start()
        assert until(lambda: b"connected" in stranger.logs(), 10)
        gate.set()
        assert_refused(session, engine)
        stranger.wait(timeout=10)
        assert b"(b'', [])" in stranger.logs()
    finally:
        stranger.remove(force=True)
        engine.close()


def test_the_guardian_is_let_in(proxy: EngineProxy) -> None:
    """The control: the same launch, held in the same way, without a stranger."""
    session, _, gate = launch_held_at_start(proxy)
    gate.set()
    assert asyncio.run(session.launched(30))["uid"]
    session.stop()
    assert asyncio.run(session.gone(10))
    session.close()


# --- uids -----------------------------------------------------------------------------


class TakenEngine:
    """Gives uids of a small range, of which some are taken."""

    def __init__(self, first: int, count: int, taken: set[int]) -> None:
        self.range = first, count
        self.taken = taken
        self.asked: list[int] = []

    def id_range(self) -> tuple[int, int]:
        """As made."""
        return self.range

    def create(self, spec: SandboxSpec, *, image_id: str, uid: int) -> str:
        """Refuse a taken uid."""
        assert spec.image
        self.asked.append(uid)
        if uid in self.taken:
            raise NameTakenError
        return f"container-{image_id}-{uid}"


def create(tmp_path: Path, engine: TakenEngine) -> Sandbox:
    """Only the step that chooses a uid."""
    address = tmp_path / "engine"
    address.touch()
    folder = tmp_path / "w"
    folder.mkdir()
    spec = sandbox_spec(KernelPolicy(), rendezvous=str(folder / "r"))
    sandbox = Sandbox(engine, spec, folder=str(folder), address=str(address))  # type: ignore[arg-type]
    try:
        sandbox._create(engine, "image")  # type: ignore[arg-type]  # noqa: SLF001
    finally:
        sandbox.listener.close()
    return sandbox


@pytest.mark.parametrize("free", [5000, 5001, 5002])
def test_a_taken_name_means_the_next_uid(tmp_path: Path, free: int) -> None:
    """Wherever it begins to look, the one free uid of a range is found."""
    engine = TakenEngine(5000, 3, {5000, 5001, 5002} - {free})
    sandbox = create(tmp_path, engine)
    assert (sandbox.uid, sandbox.container) == (free, f"container-image-{free}")


def test_the_servers_uid_is_never_given(tmp_path: Path) -> None:
    """Not even where it is the only one that is free."""
    engine = TakenEngine(os.getuid(), 2, {os.getuid() + 1})
    with pytest.raises(StartError, match="uids in a row"):
        create(tmp_path, engine)
    assert os.getuid() not in engine.asked


def test_the_engine_refuses_a_second_of_the_same_uid(
    engine: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    """The real engine's conflict is what tells that a uid is used."""
    ours = DockerEngine(find_socket(os.environ))
    spec = sandbox_spec(KernelPolicy(), rendezvous=str(tmp_path))
    uid = 0x7FFF_0000
    first = ours.create(spec, image_id=image, uid=uid)
    try:
        with pytest.raises(NameTakenError):
            ours.create(spec, image_id=image, uid=uid)
    finally:
        ours.remove(first)
    with pytest.raises(docker.errors.NotFound):
        engine.containers.get(first)
    engine.close()


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        (["name=seccomp,profile=default"], 0x7FFF_FFFE),
        (["name=seccomp,profile=default", "name=userns"], 65_535),
        (["name=rootless"], 65_535),
        (None, 0x7FFF_FFFE),
    ],
)
def test_uids_fit_the_engines_map(
    proxy: EngineProxy, options: list[str] | None, largest: int
) -> None:
    """An engine that maps ids has 65536 of them; any range is above system users'."""
    proxy.replies["GET /info"] = lambda facts: {**facts, "SecurityOptions": options}
    first, count = DockerEngine(proxy.path).id_range()
    assert 1000 < first < first + count - 1 <= largest
    assert json.loads(answer(200, {}).partition(b"\r\n\r\n")[2]) == {}
