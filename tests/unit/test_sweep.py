import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_provider import names
from kernel_provider.engines import ContainerSummary
from kernel_provider.warden import cgroup
from kernel_provider.warden.sweep import is_abandoned, sweep, sweep_folders

HERE = "boot:4026531836:50:900"


def container(label: str | None, state: str = "running", name: str = "x") -> ContainerSummary:
    """A row of the engine's list."""
    labels = {names.LABEL: names.KIND_KERNEL}
    if label is not None:
        labels[names.LABEL_WARDEN] = label
    return ContainerSummary(id=f"id-{name}", name=name, state=state, labels=labels)


@pytest.mark.parametrize("state", ["created", "running", "paused", "exited", "dead"])
@pytest.mark.parametrize(
    ("warden", "start", "abandoned"),
    [
        pytest.param("boot:4026531836:70:1000", "1000", (), id="our living"),
        pytest.param("boot:4026531836:70:1000", "", "all", id="our dead"),
        pytest.param("boot:4026531836:70:1000", "2000", "all", id="our dead, pid reused"),
        pytest.param("boot:4026539999:70:1000", "1000", "ended", id="another namespace's"),
        pytest.param("boot:4026539999:70:1000", "", "ended", id="another namespace's, no pid"),
        pytest.param("other:4026531836:70:1000", "", "ended", id="another boot's"),
        pytest.param(None, "", "ended", id="no label"),
        pytest.param("nonsense", "", "ended", id="a label without parts"),
    ],
)
def test_who_is_abandoned(
    warden: str | None, start: str, abandoned: str | tuple[str, ...], state: str
) -> None:
    """Our own dead in any state; others' only when they have ended by themselves."""
    ended = state in {"exited", "dead"}
    expected = abandoned == "all" or (abandoned == "ended" and ended)
    assert is_abandoned(container(warden, state), here=HERE, start=start) is expected


class FakeEngine:
    """Lists what it was made with, and notes what is removed."""

    def __init__(self, *containers: ContainerSummary) -> None:
        self.containers = containers
        self.removed: list[str] = []

    def list(self, label: str) -> tuple[ContainerSummary, ...]:
        """All of them."""
        assert label == "executor-ml=kernel"
        return self.containers

    def remove(self, container: str) -> None:
        """Note it."""
        self.removed.append(container)


@pytest.fixture
def zombie() -> Iterator[int]:
    """The pid of a process that ended and was not waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_sweep_removes_the_dead_and_nobody_else(zombie: int) -> None:
    """A warden that was killed and not yet waited for is dead as well."""
    me = cgroup.identity(os.getpid())
    front = me.rsplit(":", 2)[0]
    engine = FakeEngine(
        container(me, name="mine"),
        container(f"{front}:{os.getpid()}:1", name="pid reused"),
        container(cgroup.identity(zombie), name="zombie"),
        container(f"{front}:x:y", name="nonsense"),
        container("a:b:c:d", name="elsewhere"),
        container("a:b:c:d", state="exited", name="elsewhere, ended"),
    )
    removed = sweep(engine)  # type: ignore[arg-type]
    assert removed == ("pid reused", "zombie", "nonsense", "elsewhere, ended")
    assert engine.removed == [f"id-{name}" for name in removed]


def test_folders_of_the_dead_are_removed(tmp_path: Path, zombie: int) -> None:
    """A folder stays while its maker lives or somebody listens in it."""
    me = f"{os.getpid()}-{cgroup.start_time(os.getpid())}"
    dead = f"{os.getpid()}-1"
    undead = f"{zombie}-{cgroup.start_time(zombie)}"
    keep = {f"s-{me}-aaa", f"w-{me}-aaa", f"s-{dead}-lll", f"w-{dead}-lll", "other", "s-1"}
    drop = {f"s-{dead}-bbb", f"w-{dead}-bbb", f"s-{undead}-bbb", f"w-{undead}-bbb"}
    for name in keep | drop:
        (tmp_path / name).mkdir()
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    stale = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for sockets, end in ((listeners, "lll"), (stale, "bbb")):
        for listener, place in zip(sockets, ("s-{}-{}/.c-5", "w-{}-{}/w"), strict=True):
            listener.bind(str(tmp_path / place.format(dead, end)))
            listener.listen()
    for listener in stale:
        listener.close()
    assert set(sweep_folders(str(tmp_path))) == drop
    assert {path.name for path in tmp_path.iterdir()} == keep
    for listener in listeners:
        listener.close()
    assert set(sweep_folders(str(tmp_path))) == {f"s-{dead}-lll", f"w-{dead}-lll"}
