"""An engine of our own beside whatever else runs on this machine."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from kernel_provider.errors import EngineError
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(
        os.geteuid() != 0 or engine_host.dockerd_path() is None,
        reason="only root can start an engine, and dockerd must be installed",
    ),
]


@pytest.fixture
def home(own_folders: Path, tmp_path: Path) -> Iterator[EngineHome]:
    """A home with a short path for its sockets, of which nothing must be left."""
    home = EngineHome(data=tmp_path / "data", run=own_folders / "engine")
    yield home
    engine_host.stop(home)
    shutil.rmtree(home.run)
    shutil.rmtree(home.data, ignore_errors=not home.data.exists())
    assert not home.data.exists()
    assert not processes_of(home)


def processes_of(home: EngineHome) -> list[str]:
    """Command lines that name this engine's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(home.run) in command:
            found.append(command)
    return found


def test_started_twice_it_is_one_and_stopped_it_is_gone(home: EngineHome) -> None:
    """It answers, has nothing of the other engine, and leaves no process behind."""
    first = engine_host.start(home)
    assert engine_host.start(home) == first
    assert first.pid == engine_host.running_pid(home)
    client = docker.DockerClient(base_url=f"unix://{home.socket}")
    try:
        assert client.images.list() == []
        assert {network.name for network in client.networks.list()} == {"host", "none"}
    finally:
        client.close()
    assert engine_host.stop(home) is True
    assert engine_host.stop(home) is False
    assert not processes_of(home)


def test_after_sigkill_it_starts_again(home: EngineHome) -> None:
    """The socket and the pid file of a killed engine are no obstacle."""
    first = engine_host.start(home)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while engine_host.running_pid(home) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = engine_host.start(home)
    assert second.pid != first.pid


def test_a_failing_engine_says_why_and_leaves_nothing(home: EngineHome) -> None:
    """The engine's last lines are in the error, at once, not after the time-out."""
    home.data.parent.mkdir(exist_ok=True)
    home.run.mkdir()
    begun = time.monotonic()
    broken = EngineHome(data=Path("/proc/self/data"), run=home.run)
    with pytest.raises(EngineError, match="start"):
        engine_host.start(broken)
    (home.run / "exec").write_text("in the way")
    with pytest.raises(EngineError, match=r"it ended at once(.|\n)*exec"):
        engine_host.start(home)
    assert time.monotonic() - begun < 20
    assert not processes_of(home)
