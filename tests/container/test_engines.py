"""Engines that end, die, fill up or answer nonsense while there are kernels."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker
import pytest
from engines import OwnEngine, held_socket, own_engine, share_images
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import Outcome, collect, kernel, run
from sandboxes import (
    containers_of,
    failed_launch,
    left_of,
    look,
    session,
    session_of,
    until,
    value,
)

from kernel_provider.errors import EngineError
from kernel_provider.session import prune
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.warden import cgroup

pytestmark = [
    pytest.mark.container,
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(
        os.geteuid() != 0 or engine_host.dockerd_path() is None,
        reason="only root can start an engine, and dockerd must be installed",
    ),
]
SOON = 2.0


@pytest.fixture(scope="module")
def home(
    own_folders: Path, tmp_path_factory: pytest.TempPathFactory, image: str
) -> Iterator[EngineHome]:
    """Where the engine of these drills lives; its images are the tests' own."""
    assert image
    made = EngineHome(data=tmp_path_factory.mktemp("engine") / "data", run=own_folders / "e")
    share_images(made.data)
    yield made
    shutil.rmtree(made.data)


@pytest.fixture
def drilled(
    request: pytest.FixtureRequest, home: EngineHome, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OwnEngine]:
    """A running engine that new kernels are started in; its socket may be ``HELD``."""
    with ExitStack() as stack:
        held = stack.enter_context(held_socket(home)) if request.param == HELD else None
        options = () if request.param == HELD else request.param
        made = stack.enter_context(own_engine(home, *options, held=held))
        monkeypatch.setenv("DOCKER_HOST", made.address)
        yield made


HELD = "held"
"""By somebody else, and passed on: as systemd does with Docker's."""
live = pytest.mark.parametrize("drilled", [("--live-restore",)], indirect=True)
plain = pytest.mark.parametrize("drilled", [()], indirect=True)
any_socket = pytest.mark.parametrize("drilled", [(), HELD], indirect=True, ids=["own", HELD])


@live
def test_kernels_outlive_an_engine_with_live_restore(drilled: OwnEngine) -> None:
    """Told to end or killed: cells run on meanwhile, and the next engine has the kernel."""
    with kernel() as (km, client):
        seen = look(session_of(km), engine_client(drilled))
        run(client, "kept = 42")
        for number in (signal.SIGTERM, signal.SIGKILL):
            request = client.execute("import time; time.sleep(1); kept")
            drilled.end(number)
            assert client.get_shell_msg(timeout=20)["parent_header"]["msg_id"] == request
            assert value(client, "kept") == 42
            km.interrupt_kernel()  # by a message: no engine is needed
            assert km.is_alive()
            drilled.start()
            assert value(client, "kept") == 42
            assert until(lambda: containers_of(seen.warden, engine_client(drilled)), 10)
    assert until(lambda: not left_of(seen, engine_client(drilled)))
    with session() as made:
        gone = look(made, engine_client(drilled))
        drilled.end(signal.SIGKILL)
        made.stop()
        assert until(lambda: not gone.group.processes(), 10), "ended without an engine"
    drilled.start()
    prune(os.environ)
    assert until(lambda: not left_of(gone, engine_client(drilled)))


def engine_client(engine: OwnEngine) -> docker.DockerClient:
    """The SDK's client; it opens connections as it needs them."""
    return docker.DockerClient(base_url=engine.address)


@any_socket
def test_an_engine_that_ends_is_told_once_and_kernels_start_again(
    drilled: OwnEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Without live-restore it takes its kernels along: the running cell says why.

    One that is killed leaves them, until the next engine ends them.
    """
    with kernel() as (km, client):
        for number in (signal.SIGTERM, signal.SIGKILL):
            caplog.clear()
            end_with_its_engine(drilled, number, km, client)
            assert [r.levelname for r in caplog.records] == ["WARNING"]
            assert "EngineGone" in caplog.text
            km.restart_kernel(now=True)
            client.wait_for_ready(timeout=30)
            assert value(client, "6 * 7") == 42


def end_with_its_engine(
    drilled: OwnEngine, number: int, km: KernelManager, client: BlockingKernelClient
) -> None:
    """End an engine while a cell runs, start the next one, look what the cell was told."""
    seen = look(session_of(km), engine_client(drilled))
    outcome = Outcome(status="")
    hook = collect(outcome)
    request = client.execute("import time; time.sleep(60)")
    time.sleep(0.3)
    drilled.end(number)
    if number == signal.SIGKILL:
        assert km.is_alive()
        drilled.start()
    assert until(lambda: not cgroup.is_alive(seen.guardian), 20)
    died = time.monotonic()
    while not outcome.error:
        message = client.get_iopub_msg(timeout=10)
        if message["parent_header"].get("msg_id") == request:
            hook(message)
    assert time.monotonic() - died < SOON
    assert outcome.error["ename"] == "EngineGone"
    assert "the container engine was stopped or restarted" in outcome.error["evalue"]
    assert until(lambda: not km.is_alive())
    if number == signal.SIGTERM:
        drilled.start()
    prune(os.environ)
    assert until(lambda: not left_of(seen, engine_client(drilled)))


@contextmanager
def small_disk(home: EngineHome) -> Iterator[Path]:
    """Put what a running engine knows of containers on a disk of one megabyte."""
    place = home.data / "containers"
    mount = shutil.which("mount")
    assert mount is not None
    subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run([Path(mount).with_name("umount"), place], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on its disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(bytes(2 << 20))  # as much as fits
        with pytest.raises(OSError, match="No space left"):
            file.write(b"more")
    return filler


@plain
def test_an_engine_whose_disk_is_full(drilled: OwnEngine) -> None:
    """A start fails at once and says so; who runs is unhurt; with room all is well again."""
    with small_disk(drilled.home) as small:
        check_full_disk(drilled, small)


def check_full_disk(drilled: OwnEngine, small: Path) -> None:
    """Start one with room, one without, and one with room again."""
    with session() as running:
        seen = look(running, engine_client(drilled))
        filler = fill(small)
        begun = time.monotonic()
        error = failed_launch(engine_client(drilled))
        assert time.monotonic() - begun < 10
        assert isinstance(error, EngineError)
        assert "failed to create the sandbox" in str(error)
        assert "no space left on device" in str(error)
        assert running.alive
    assert until(lambda: not left_of(seen, engine_client(drilled)))
    filler.unlink()
    with session() as made:
        assert made.alive
