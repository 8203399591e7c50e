"""What befalls machines, with sandboxes parked: sleep, kills, full disks, restarted engines.

After each, a launch gets a sandbox, parked or cold, or a clear error; nothing leaks.
"""

import gc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from engines import copy_image
from kernels import manager, run, started
from parked import KEEPER, PLAIN, launch, lying, park, recipe, warden_of
from sandboxes import memory, sockets, until

from kernel_provider import names
from kernel_provider.errors import EngineUnreachableError, RuntimeFolderError
from kernel_provider.pool import hand, keeper
from kernel_provider.pool.keeper import Keeper
from kernel_provider.session import Session
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.warden import cgroup, shelf
from kernel_provider.warden.shelf import Entry

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("empty_shelf")]


@contextmanager
def asleep(*pids: int) -> Iterator[None]:
    """Stop processes, as all are while a machine sleeps, and continue them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def keeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps one parked; killed at the end."""
    with subprocess.Popen([sys.executable, "-c", KEEPER]) as process:
        try:
            yield process
        finally:
            process.kill()


def gone(entry: Entry) -> bool:
    """Whether nothing is left of a parked sandbox."""
    return not cgroup.is_alive(entry.pid) and not Path(entry.folder).exists()


# --- sleep ------------------------------------------------------------------------------


def test_a_machine_that_sleeps_wakes_with_what_was_parked() -> None:
    """Keeper and warden stopped for a while: then it is claimed, and made up for."""
    with keeping() as process:
        assert until(lambda: len(lying()) == 1, 30)
        (entry,) = lying()
        with asleep(process.pid, warden_of(entry)):
            time.sleep(1)
        assert launch() == entry.container
        assert until(lambda: len(lying()) == 1, 30)
        assert lying()[0].container != entry.container
    assert until(lambda: not lying(), 15)


def test_a_keeper_that_is_stopped_keeps_nobody_from_claiming() -> None:
    """Its parked one is taken meanwhile, and made up for when it goes on."""
    with keeping() as process:
        assert until(lambda: len(lying()) == 1, 30)
        (entry,) = lying()
        with asleep(process.pid):
            assert launch() == entry.container
            assert not lying()
        assert until(lambda: len(lying()) == 1, 30)
    assert until(lambda: not lying(), 15)


def test_one_that_slept_past_its_time_ends() -> None:
    """Launches, also at the moment when it wakes, get a sandbox all the same."""
    (entry,) = park(replace(PLAIN, park_ttl=1.0))
    with asleep(warden_of(entry)):
        time.sleep(1.2)
    launch()
    assert until(lambda: gone(entry), 15)
    assert not lying()


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_jumps_harms_nobody(hours: int) -> None:
    """The wall clock is for people: what is parked is claimed by another one (D2)."""
    (entry,) = park()
    jumped = replace(entry, since=entry.since + hours * 3600, until=entry.until + hours * 3600)
    shelf.put(jumped)
    (seen,) = hand.look(os.environ)
    assert seen.age >= 0
    assert seen.ends_in >= 0
    assert launch() == entry.container


# --- kills ------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.1, 0.4])
def test_a_keeper_killed_while_it_parks_leaves_nothing(
    moment: float, engine: docker.DockerClient, own_folders: Path
) -> None:
    """At whatever step: no container, no folder, nothing on the shelf."""
    with keeping() as process:
        assert until(lambda: list(own_folders.glob("w-*")), 30)
        time.sleep(moment)
        process.kill()
    assert until(lambda: not list(own_folders.glob("w-*")), 20)
    assert not lying()
    assert not containers(engine, own_folders)


def containers(engine: docker.DockerClient, runtime: Path) -> list[str]:
    """Sandboxes whose rendezvous is in a folder for sockets."""
    label = f"{names.LABEL}={names.KIND_KERNEL}"
    rows = engine.api.containers(all=True, filters={"label": label})
    engine.close()
    return [r["Id"] for r in rows if any(str(runtime) in m["Source"] for m in r["Mounts"])]


# --- a full disk ------------------------------------------------------------------------


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for sockets on a disk of 128 KB and 64 files."""
    disk = Path(f"/tmp/exmd-{secrets.token_hex(3)}")
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=64,mode=700", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("only root can mount a disk")
    monkeypatch.setenv("EXECUTOR_ML_RUNTIME_DIR", str(disk))
    try:
        yield disk
    finally:
        for _ in hand.end(os.environ, None):
            pass
        unmount = ["umount", "-q", str(disk)]  # busy until the last warden has ended
        assert until(lambda: not subprocess.run(unmount, check=False).returncode, 15)
        disk.rmdir()


def fill(disk: Path, name: str = "full") -> Path:
    """Leave no byte."""
    full = disk / name
    with full.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return full


def test_what_was_parked_is_claimed_on_a_full_disk(small_disk: Path) -> None:
    """Nothing needs to be written for that; and a cold start goes without its memo."""
    (entry,) = park()
    fill(small_disk)
    assert launch() == entry.container
    (small_disk / "uids").unlink(missing_ok=True)
    fill(small_disk, "fuller")
    launch()


def test_a_full_disk_parks_nothing_and_says_so(
    small_disk: Path,
    engine: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason, as an error or in the server's log; and parks again when there is room."""
    full = fill(small_disk)
    with pytest.raises(RuntimeFolderError, match="its disk is full"):
        park()
    assert until(lambda: not list(small_disk.glob("w-*")))
    assert not containers(engine, small_disk)
    monkeypatch.setattr(keeper, "QUIET", 0.0)
    kept = Keeper(os.environ, ceiling=8 << 30)
    try:
        kept.want(recipe(), "mine")
        assert until(lambda: bool(caplog.records), 15)
        assert caplog.records[0].getMessage().endswith("its disk is full")
        full.unlink()
        kept.want(recipe(), "mine")
        assert until(lambda: len(lying()) == 1, 30)
    finally:
        kept.stop()


def test_a_disk_without_room_for_a_file_is_a_clear_error(small_disk: Path) -> None:
    """Not a traceback, for a parked one as for a launch."""
    made: list[Path] = []
    try:
        while True:
            made.append(small_disk / f"f{len(made)}")
            made[-1].touch()
    except OSError:
        made.pop()
    for attempt in (park, launch, lambda: Session(environ=os.environ, name="test")):
        with pytest.raises(RuntimeFolderError, match="its disk is full"):
            attempt()
    for path in made[:3]:  # room for the folder of a session and two sockets
        path.unlink()
    with pytest.raises(RuntimeFolderError, match="its disk is full"):
        launch()
    assert not list(small_disk.glob("[sw]-*"))
    for path in made[3:]:
        path.unlink()
    launch()


# --- an engine that restarts ------------------------------------------------------------


@pytest.fixture
def second_engine(
    own_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> Iterator[EngineHome]:
    """An engine of this test's own, with our image in it; all that starts goes there."""
    if os.geteuid() != 0 or engine_host.dockerd_path() is None:
        pytest.skip("only root can start an engine, and dockerd must be installed")
    home = EngineHome(data=tmp_path / "data", run=own_folders / "engine")
    engine_host.start(home)
    try:
        copy_image(image, f"unix://{home.socket}")
        monkeypatch.setenv("DOCKER_HOST", f"unix://{home.socket}")
        yield home
        for _ in hand.end(os.environ, None):
            pass
    finally:
        engine_host.stop(home)
        shutil.rmtree(home.run)
        shutil.rmtree(home.data)


@pytest.mark.soak
def test_an_engine_that_restarts(second_engine: EngineHome) -> None:
    """What was parked ended with it; the next launch is a cold one."""
    (entry,) = park()
    assert launch() == entry.container
    (entry,) = park()
    engine_host.stop(second_engine)
    assert until(lambda: gone(entry), 20)
    assert not lying()
    with pytest.raises(EngineUnreachableError):
        launch()
    engine_host.start(second_engine)
    assert launch()


@pytest.mark.soak
def test_an_engine_that_is_killed(second_engine: EngineHome) -> None:
    """Nothing that it forgot is claimed: an error while it is away, then a cold start."""
    (entry,) = park()
    engine = engine_host.running_pid(second_engine)
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    assert until(lambda: not cgroup.is_alive(engine))
    with pytest.raises(EngineUnreachableError):
        launch()
    engine_host.start(second_engine)
    assert launch() != entry.container
    assert until(lambda: not cgroup.is_alive(entry.pid), 20)


# --- many times -------------------------------------------------------------------------


def traces(engine: docker.DockerClient, runtime: Path) -> dict[str, int]:
    """How much of everything that could grow there is."""
    gc.collect()
    return {
        "containers": len(containers(engine, runtime)),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "sockets": len(sockets(os.getpid())),
        "folders": len(list(runtime.iterdir())),
        "temporary files": len(list(Path(os.environ.get("TMPDIR", "/tmp")).iterdir())),
        "connection files": len(list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("*"))),
    }


def cycles(count: int) -> None:
    """Launch, run, stop, each with a parked one that this process keeps."""
    kept = Keeper(os.environ, ceiling=8 << 30)
    try:
        for number in range(count):
            kept.want(recipe(), "test")
            assert until(lambda: len(lying()) == 1, 60)
            (entry,) = lying()
            km = manager({"preload": ["json"], "pool": 1})
            with started(km) as client:
                assert run(client, f"print({number})").stdout == f"{number}\n"
                assert not cgroup.is_alive(entry.pid) or entry not in lying()
    finally:
        kept.stop()
    assert until(lambda: not lying(), 20)


@pytest.mark.soak
def test_many_claims_leave_nothing(
    engine: docker.DockerClient, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXECUTOR_ML_SOAK_CYCLES launches from parked ones: nothing grows, memory by 5 MB."""
    monkeypatch.setattr(keeper, "QUIET", 0.0)
    cycles(20)
    before, size = traces(engine, own_folders), memory(os.getpid())
    cycles(int(os.environ.get("EXECUTOR_ML_SOAK_CYCLES", "300")))
    assert until(lambda: not _grown(before, traces(engine, own_folders)), 15), _grown(
        before, traces(engine, own_folders)
    )
    grown = memory(os.getpid()) - size
    print(f"grown by {grown:.1f} MB")
    assert grown < 5


def _grown(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {kind: now[kind] - before[kind] for kind in before if now[kind] > before[kind]}
